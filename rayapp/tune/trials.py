"""Ray Tune at work: the trials of a sweep, from their first or from where a killed driver left them."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import time
from typing import Any

from pyarrow.fs import FileSelector, FileType
from ray import tune as ray_tune
from ray.tune import Stopper
from ray.tune.execution import class_cache
from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback, TBXLoggerCallback
from ray.tune.schedulers import TrialScheduler

from rayapp.runtime.resources import resources_held
from rayapp.storage import open_fs
from rayapp.train.checkpoints import STATE
from rayapp.tune.record import Sweep
from rayapp.tune.recorder import TrialLog
from rayapp.tune.search import param_space, searcher
from rayapp.tune.trainable import run_trial
from rayapp.tune.trial import Shared

MENDED = 3  # checkpoints before the newest that Tune may think to be there
KEPT_FOR_PBT = 4  # its worst trials take over checkpoints that their owners may have replaced meanwhile


def run_trials(
    sweep: Sweep, shared: Shared, stops: TrialScheduler, trial_log: TrialLog, *, at_once: int, limit_s: float | None
) -> None:
    """Run the trials of a sweep that are left, from where Ray Tune and their checkpoints stand, for at most limit_s."""
    settings = sweep.settings
    resume = bool(sweep.tune_state())
    if resume:
        mend_checkpoints(sweep)
    # for PyTorch Lightning; with a variable of their own trials get new processes, not those that Ray has ready
    class_cache.DEFAULT_ENV_VARS.clear()
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what it has to say we say ourselves, in a sentence
    with contextlib.redirect_stdout(io.StringIO()):  # of its own table nothing is left at verbose=0 but a frame
        ray_tune.run(
            ray_tune.with_parameters(run_trial, shared=shared),
            name=sweep.name,
            storage_path=sweep.storage,
            config=param_space(settings),
            num_samples=1 if settings.search.algorithm == "grid" else settings.num_trials,
            search_alg=searcher(settings, at_once),
            scheduler=stops,
            stop=None if limit_s is None else _Budget(sweep, limit_s),
            resources_per_trial=resources_held(settings, shared.device),
            # the newest alone, and Tune writes down where a trial stands at each: nothing before it is done twice
            checkpoint_config=ray_tune.CheckpointConfig(
                num_to_keep=KEPT_FOR_PBT if settings.scheduler.name == "pbt" else 1
            ),
            max_failures=settings.compute.max_failures,
            raise_on_failed_trial=False,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
            callbacks=[trial_log, *_silent_loggers()],
            resume=resume,
            verbose=0,
        )


class _Budget(Stopper):
    """Ends the sweep when its time is over, earlier parts included. Ray Tune pickles it, and resumes with the copy.

    The time begins with the first trial: nodes that are still on their way do not use it up.
    """

    def __init__(self, sweep: Sweep, limit_s: float) -> None:
        self._sweep, self._limit_s = sweep, limit_s
        self._started, self._before = math.inf, sweep.load_trials()[1]

    def __reduce__(self) -> tuple[Any, ...]:
        return _Budget, (self._sweep, self._limit_s)

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        if self._started == math.inf and self._sweep.has_begun:
            self._started = time.monotonic()
        return self._before + time.monotonic() - self._started >= self._limit_s


def _silent_loggers() -> list[Any]:
    """Tune adds loggers of its own where these are not given, or an environment variable says so."""

    class Silent:
        def log_trial_start(self, *_: object) -> None: ...
        def log_trial_restore(self, *_: object) -> None: ...
        def log_trial_save(self, *_: object) -> None: ...
        def log_trial_result(self, *_: object) -> None: ...
        def log_trial_end(self, *_: object, failed: bool = False) -> None: ...

    kinds = (CSVLoggerCallback, JsonLoggerCallback, TBXLoggerCallback)
    return [type(f"No{kind.__name__}", (Silent, kind), {})() for kind in kinds]


def mend_checkpoints(sweep: Sweep) -> None:
    """Put copies of each trial's newest checkpoint where Tune may look for the ones before it.

    It removes a checkpoint when there is a newer one, and only then writes down that there is: a driver that is killed
    in between leaves a trial that could not be restored (2.60).
    """
    files, root = open_fs(f"{sweep.storage.rstrip('/')}/{sweep.name}")
    for trial in files.get_file_info(FileSelector(root)):
        if trial.type != FileType.Directory:
            continue
        entries = files.get_file_info(FileSelector(trial.path))
        whole = [e.path for e in entries if e.base_name.startswith("checkpoint_")]
        whole = sorted(path for path in whole if files.get_file_info(f"{path}/{STATE}").is_file)
        if not whole:
            continue
        folder, _, number = whole[-1].rpartition("_")
        for earlier in range(max(0, int(number) - MENDED), int(number)):
            path = f"{folder}_{earlier:06}"
            if path not in whole:
                files.create_dir(path)
                files.copy_file(f"{whole[-1]}/{STATE}", f"{path}/{STATE}")
