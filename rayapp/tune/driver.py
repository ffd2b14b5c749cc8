"""tune: a sweep from a recipe and a space to the best trial, and from there to a registered version."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import time
from dataclasses import replace
from functools import partial
from typing import Any

from ray import tune as ray_tune
from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback, TBXLoggerCallback
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import BasicVariantGenerator
from rich.console import Console
from rich.text import Text

from rayapp.config.env import Home, ray_address
from rayapp.config.tune import TuneSettings, check_space
from rayapp.data.datasets import Dataset, Split, load
from rayapp.data.preprocess import Images
from rayapp.errors import ConfigError, RegistryError, TrainingError
from rayapp.provenance import flatten, run_tags
from rayapp.registry.tracking import Status, Tracker
from rayapp.runtime.cost import ClusterPrice, usd_per_hour
from rayapp.runtime.progress import print_line
from rayapp.runtime.resources import check_room, resources_each, resources_held, worker_device
from rayapp.runtime.start import interruptible, ray_cluster
from rayapp.train.setup import absolute_paths, initial_weights
from rayapp.tune.record import Sweep, SweepResult, find_sweep, new_sweep_name, result_of
from rayapp.tune.recorder import TrialRecorder
from rayapp.tune.report import SweepView, record, show
from rayapp.tune.retrain import retrain_best
from rayapp.tune.search import config_keys, scheduler, searcher
from rayapp.tune.trainable import TrialTrainable
from rayapp.tune.trial import TrialContext
from rayapp.vision.optim import TrainPlan

log = logging.getLogger(__name__)
KEPT_FOR_PBT = 4  # its worst trials take over checkpoints that their owners may have replaced meanwhile


def tune(settings: TuneSettings, home: Home, console: Console | None = None) -> SweepResult:
    """A finished sweep, new or resumed, and with then_train its winner trained, registered and evaluated.

    Everything that can be wrong is checked before the first trial. Raises a RayAppError; on Ctrl-C what runs is closed
    as KILLED, may be resumed, and the KeyboardInterrupt goes on.
    """
    console = console or Console(stderr=True)
    earlier = _earlier(home, settings)
    settings = earlier.settings if earlier else absolute_paths(settings)
    check_space(settings)
    name = earlier.name if earlier else new_sweep_name(home, settings)
    prices = usd_per_hour(settings.cost, local=ray_address() is None)
    dataset = load(settings.data, home.data)
    dataset.require_effect(settings.space)
    with ray_cluster(object_bytes=dataset.train.images_nhwc.nbytes if isinstance(dataset.train, Images) else 0):
        device = worker_device(settings.compute.device)
        resources = resources_each(settings, device)
        rates, at_once = ClusterPrice.of(prices, resources), check_room(settings, resources)
        rates.limit_s(settings.budget)
        sweep = earlier or _open(settings, home, name, dataset, device, rates)
        with sweep.locked():
            if sweep.stage == "searching":
                conditions = f"  (MLflow {sweep.run_id}), {at_once} at once on {device}"
                print_line(console, Text.assemble("sweep ", (sweep.name, "bold"), conditions))
                _search(sweep, home, dataset, device, at_once=at_once, rates=rates, console=console)
                sweep = sweep.at("searched")
            winner = retrain_best(sweep, home, console) if settings.then_train else None
            sweep = sweep.at("done")
    result = replace(result_of(sweep), winner=winner)
    show(result, console)
    return result


def _earlier(home: Home, settings: TuneSettings) -> Sweep | None:
    if not settings.resume:
        return None
    sweep = find_sweep(home, settings.resume)
    if sweep.stage == "done" and not settings.then_train:
        raise ConfigError(
            f"sweep '{sweep.name}' is done; look at it with: rayapp tune --results {sweep.name}, or train its winner:"
            f" rayapp tune --resume {sweep.name} --then-train"
        )
    given = settings.model_fields_set - {"resume", "then_train", "winner"}
    if given:
        raise ConfigError(
            f"--resume takes the settings of sweep '{sweep.name}', but {', '.join(sorted(given))} are given too;"
            " leave them out, or start a new sweep"
        )
    if not settings.then_train:
        return sweep
    changes = {"then_train": True} | ({"winner": settings.winner} if "winner" in settings.model_fields_set else {})
    return replace(sweep, settings=sweep.settings.model_copy(update=changes))


def _open(settings: TuneSettings, home: Home, name: str, dataset: Dataset, device: str, rates: ClusterPrice) -> Sweep:
    space = {f"space.{key}": f"{d.kind} {d.bounds}" for key, d in settings.space.items()}
    tracker = Tracker(home.tracking_uri, home.artifacts)
    params = {key: value for key, value in flatten(settings).items() if not key.startswith("space")} | space
    tags = _tags(settings, device, dataset) | {"kind": "sweep"}
    run_id = tracker.open_run(settings.tracking.experiment, name, params, tags)
    sweep = Sweep(name, run_id, "searching", home.sweeps / name, settings, rates.cluster)
    sweep.save()
    return sweep


def _search(
    sweep: Sweep, home: Home, dataset: Dataset, device: str, *, at_once: int, rates: ClusterPrice, console: Console
) -> None:
    """Run all trials that are left; rows and runs are closed whatever happens. Raises TrainingError: none is good."""
    settings, tracker = sweep.settings, Tracker(home.tracking_uri, home.artifacts)
    tracker.resume_run(sweep.run_id)
    split = dataset.split(settings.data)
    context = _context(settings, home, dataset, split, device)
    stops = scheduler(settings, _max_epochs(settings, len(split.train_indices)))
    budget = Budget(sweep, rates.limit_s(settings.budget))
    with SweepView(console, settings) as view:
        recorder = TrialRecorder(sweep, tracker, _tags(settings, device, dataset), rates.trial, view.update)
        try:
            interruptible(partial(run_trials, sweep, context, stops, recorder, at_once, budget))
        except BaseException as error:
            recorder.close(interrupted=True)
            _close(tracker, sweep, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            print_line(console, f"stopped; go on with: rayapp tune --resume {sweep.name}")
            raise
        unsent = recorder.close(interrupted=False)
    if unsent:
        raise RegistryError(
            f"MLflow lacks {unsent} trials, which wait in {sweep.folder};"
            f" send them with: rayapp tune --resume {sweep.name}"
        )
    result = SweepResult(sweep, tuple(recorder.rows), recorder.seconds)
    if result.best is None:
        _close(tracker, sweep, "FAILED")
        reason = next((row.error for row in result.rows if row.error), "the budget was over before the first epoch was")
        raise TrainingError(f"no trial of sweep '{sweep.name}' has a result: {reason}")
    record(result, result.best, tracker, rates.trial)


def _context(settings: TuneSettings, home: Home, dataset: Dataset, split: Split, device: str) -> TrialContext:
    one_model = not any(name.startswith(("model.", "data.")) for name in settings.space)
    images = dataset.train if isinstance(dataset.train, Images) else None
    return TrialContext(
        settings=settings.model_dump(mode="json", by_alias=True, exclude_unset=True),
        images=images,
        split=None if images is None else split,
        info=dataset.info,
        device=device,
        data_folder=str(home.data),
        weights=initial_weights(settings, dataset.info, home) if one_model else None,
    )


def _max_epochs(settings: TuneSettings, num_images: int) -> int:
    """Epochs of the longest trial, on so many images."""
    searched = settings.space.get("optim.epochs")
    found = [] if searched is None else [int(value) for value in searched.bounds if value is not None]
    if searched is None or searched.when or None in searched.bounds:
        optim = settings.optim if searched is None else settings.optim.model_copy(update={"epochs": None})
        found.append(TrainPlan.of(optim, num_images).epochs)
    return max(found)


def _tags(settings: TuneSettings, device: str, dataset: Dataset) -> dict[str, str]:
    """What a run stands on. Without the recipe's digest: trials foretell nothing of whole trainings."""
    found = run_tags(settings, device, dataset.info.digest)
    return {name: value for name, value in found.items() if name != "recipe"}


def _close(tracker: Tracker, sweep: Sweep, status: Status) -> None:
    try:
        tracker.close_run(sweep.run_id, status)
    except RegistryError as error:
        log.warning("sweep %s could not be closed as %s: %s", sweep.run_id, status, error)


def run_trials(
    sweep: Sweep, context: TrialContext, stops: TrialScheduler, recorder: TrialRecorder, at_once: int, budget: Budget
) -> None:
    """Run the trials that are left: those that were cut off from their newest checkpoints, then new ones."""
    settings = sweep.settings
    left = settings.num_trials - sum(row.state != "running" for row in recorder.rows)
    if not left:
        return
    chooses = searcher(settings, at_once, recorder.rows, f"{sweep.storage}/{sweep.name}")
    is_given = isinstance(chooses, BasicVariantGenerator)  # the values, before the first trial
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what it has to say we say ourselves, in a sentence
    with contextlib.redirect_stdout(io.StringIO()):  # of its own table nothing is left at verbose=0 but a frame
        ray_tune.run(
            ray_tune.with_parameters(TrialTrainable, context=context),
            name=sweep.name,
            storage_path=sweep.storage,
            config=config_keys(settings) if is_given else None,
            num_samples=left,
            search_alg=chooses,
            scheduler=stops,
            stop=budget,
            resources_per_trial=resources_held(settings, context.device),
            checkpoint_config=ray_tune.CheckpointConfig(
                num_to_keep=KEPT_FOR_PBT if settings.scheduler.name == "pbt" else 1
            ),
            max_failures=settings.compute.max_failures,
            raise_on_failed_trial=False,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
            callbacks=[recorder, *(kind() for kind in (_NoCsv, _NoJson, _NoTensorBoard))],
            verbose=0,
        )


class Budget(ray_tune.Stopper):
    """Ends a sweep when its time is over, earlier parts included; limit_s None: never.

    The time begins with the first trial: nodes that are still on their way do not use it up.
    """

    def __init__(self, sweep: Sweep, limit_s: float | None) -> None:
        self._sweep, self._left_s, self._until = sweep, math.inf if limit_s is None else limit_s, math.inf
        self._left_s -= sweep.load_trials()[1]

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether this trial is to end: no trial has a budget of its own."""
        return False

    def stop_all(self) -> bool:
        """Whether all trials are to end."""
        if self._until == math.inf and self._sweep.has_begun:
            self._until = time.monotonic() + self._left_s
        return time.monotonic() >= self._until


class _Silent:
    """Goes before a logger that Ray Tune would add by itself: it fills files, and only a variable turns it off."""

    def log_trial_start(self, *_: object) -> None: ...
    def log_trial_restore(self, *_: object) -> None: ...
    def log_trial_save(self, *_: object) -> None: ...
    def log_trial_result(self, *_: object) -> None: ...
    def log_trial_end(self, *_: object, failed: bool = False) -> None: ...


class _NoCsv(_Silent, CSVLoggerCallback): ...


class _NoJson(_Silent, JsonLoggerCallback): ...


class _NoTensorBoard(_Silent, TBXLoggerCallback): ...
