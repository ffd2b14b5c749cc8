"""tune: a sweep from a recipe and a space to the best trial, and from there to a registered version."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from pyarrow.fs import FileType
from rich.console import Console
from rich.text import Text

from rayapp.config.env import Home, ray_address
from rayapp.config.tune import TuneSettings
from rayapp.data.datasets import Dataset, Split, load
from rayapp.data.preprocess import Images
from rayapp.errors import ConfigError, RegistryError, TrainingError
from rayapp.provenance import flat, run_tags
from rayapp.registry.tracking import Status, Tracker
from rayapp.runtime.cost import Rates, usd_per_hour
from rayapp.runtime.progress import say
from rayapp.runtime.resources import check_room, device_of, resources_each
from rayapp.runtime.start import interruptible, ray_cluster
from rayapp.storage import open_fs
from rayapp.train.record import driver_imports
from rayapp.train.setup import absolute_paths, first_weights
from rayapp.tune.record import Sweep, TrialRow, find_sweep, new_name
from rayapp.tune.recorder import TrialLog, last_report
from rayapp.tune.report import SweepView
from rayapp.tune.result import Tuned, record, show
from rayapp.tune.search import scheduler
from rayapp.tune.trial import Shared
from rayapp.tune.trials import run_trials
from rayapp.tune.winner import train_winner
from rayapp.vision.optim import TrainPlan

log = logging.getLogger(__name__)


def tune(settings: TuneSettings, home: Home, console: Console | None = None) -> Tuned:
    """A finished sweep, new or resumed, and with then_train its winner trained, registered and evaluated.

    Everything that can be wrong is checked before the first trial. Raises a RayAppError; on Ctrl-C what runs is closed
    as KILLED, may be resumed, and the KeyboardInterrupt goes on.
    """
    console = console or Console(stderr=True)
    earlier = _earlier(home, settings)
    settings = earlier.settings if earlier else absolute_paths(settings)
    name = earlier.name if earlier else new_name(home, settings)
    prices = usd_per_hour(settings.cost, local=ray_address() is None)
    early: list[str] = []
    if not ray_address():  # before Ray is started
        at_once = check_room(settings, resources_each(settings, device_of(settings.compute.device)))
        early = ["rayapp.tune.trainable"] if _fills_the_machine(settings, at_once) else []
    dataset = load(settings.data, home.data)
    dataset.require_effect(settings.space)
    with ray_cluster(object_bytes=_num_bytes(dataset), workers_import=early, driver_imports=driver_imports(home)):
        device = device_of(settings.compute.device)
        resources = resources_each(settings, device)
        rates, at_once = Rates.of(prices, resources), check_room(settings, resources)
        rates.limit_s(settings.budget)
        sweep = earlier or _open(settings, home, name, dataset, device, rates)
        with sweep.locked():
            if sweep.stage == "searching":
                conditions = f"  (MLflow {sweep.run_id}), {at_once} at once on {device}"
                say(console, Text.assemble("sweep ", (sweep.name, "bold"), conditions))
                _search(sweep, home, dataset, device, at_once, rates, console)
                sweep = sweep.at("searched")
            winner = train_winner(sweep, home, console) if settings.then_train else None
            sweep = sweep.at("done")
    rows, seconds = sweep.load_trials()
    tuned = Tuned(sweep, tuple(rows), seconds, winner)
    show(tuned, console)
    return tuned


def results(home: Home, name: str) -> Tuned:
    """A sweep as far as it went."""
    sweep = find_sweep(home, name)
    rows, seconds = sweep.load_trials()
    return Tuned(sweep, tuple(rows), seconds)


def clean(home: Home, name: str) -> list[str]:
    """What was removed: the sweep's folder, and its part of a storage elsewhere. Its runs in MLflow stay."""
    sweep = find_sweep(home, name)
    with sweep.locked():
        removed = [str(sweep.folder)]
        if sweep.settings.compute.storage_path:
            files, root = open_fs(f"{sweep.storage.rstrip('/')}/{sweep.name}")
            if files.get_file_info(root).type == FileType.Directory:
                files.delete_dir(root)
                removed.append(f"{sweep.storage}/{sweep.name}")
    shutil.rmtree(sweep.folder)
    return removed


# --- the search -------------------------------------------------------------------------------------------------------


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


def _fills_the_machine(settings: TuneSettings, at_once: int) -> bool:
    """Whether most of the processes that Ray has ready, one a core, will run trials and nothing else.

    Ray Train, of a winner or of trials of several workers, has others beside them.
    """
    ray_train = settings.then_train or settings.compute.workers.high > 1
    return not ray_train and 2 * at_once >= (os.cpu_count() or 1)


def _open(settings: TuneSettings, home: Home, name: str, dataset: Dataset, device: str, rates: Rates) -> Sweep:
    space = {f"space.{key}": f"{d.kind} {d.bounds}" for key, d in settings.space.items()}
    tracker = Tracker(home.tracking_uri, home.artifacts)
    params = {key: value for key, value in flat(settings).items() if not key.startswith("space")} | space
    tags = _tags(settings, device, dataset) | {"kind": "sweep"}
    run_id = tracker.open_run(settings.tracking.experiment, name, params, tags)
    sweep = Sweep(name, run_id, "searching", home.sweeps / name, settings, rates.cluster)
    sweep.save()
    return sweep


def _search(
    sweep: Sweep, home: Home, dataset: Dataset, device: str, at_once: int, rates: Rates, console: Console
) -> None:
    """Run all trials that are left; rows and runs are closed whatever happens. Raises TrainingError: none is good."""
    settings, tracker = sweep.settings, Tracker(home.tracking_uri, home.artifacts)
    tracker.resume_run(sweep.run_id)
    split = dataset.split(settings.data)
    stops = scheduler(settings, _max_epochs(settings, len(split.train_indices)))
    with SweepView(console, settings) as view:
        trial_log = TrialLog(sweep, tracker, _tags(settings, device, dataset), rates.trial, stops, view.update)
        shared = _shared(settings, home, dataset, split, device, trial_log.rows)
        limits: dict[str, Any] = {"at_once": at_once, "limit_s": rates.limit_s(settings.budget)}
        try:
            interruptible(partial(run_trials, sweep, shared, stops, trial_log, **limits))
        except BaseException as error:
            trial_log.close(interrupted=True)
            _close(tracker, sweep, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            say(console, f"stopped; go on with: rayapp tune --resume {sweep.name}")
            raise
        unsent = trial_log.close(interrupted=False)
    if unsent:
        raise RegistryError(
            f"MLflow lacks {unsent} trials, which wait in {sweep.folder};"
            f" send them with: rayapp tune --resume {sweep.name}"
        )
    tuned = Tuned(sweep, tuple(trial_log.rows), trial_log.seconds)
    if tuned.best is None:
        _close(tracker, sweep, "FAILED")
        reason = next((row.error for row in tuned.rows if row.error), "the budget was over before the first epoch was")
        raise TrainingError(f"no trial of sweep '{sweep.name}' has a result: {reason}")
    record(tuned, tuned.best, tracker, rates.trial)


def _shared(
    settings: TuneSettings, home: Home, dataset: Dataset, split: Split, device: str, rows: Sequence[TrialRow]
) -> Shared:
    one_model = not any(name.startswith(("model.", "data.")) for name in settings.space)
    images = dataset.train if isinstance(dataset.train, Images) else None
    return Shared(
        settings=settings.model_dump(mode="json", by_alias=True, exclude_unset=True),
        images=images,
        split=None if images is None else split,
        info=dataset.info,
        device=device,
        data_folder=str(home.data),
        weights=first_weights(settings, dataset.info, home) if one_model else None,
        ended={row.trial_id: last_report(row) for row in rows if row.state != "running"},
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


def _num_bytes(dataset: Dataset) -> int:
    """What the images take in the object store."""
    return dataset.train.images_nhwc.nbytes if isinstance(dataset.train, Images) else 0


def _close(tracker: Tracker, sweep: Sweep, status: Status) -> None:
    try:
        tracker.close_run(sweep.run_id, status)
    except RegistryError as error:
        log.warning("sweep %s could not be closed as %s: %s", sweep.run_id, status, error)
