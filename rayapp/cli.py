"""The command line: verbs -> functions.

Logs and progress go to stderr. Verbs that make something end with one JSON line on stdout; those that show something
(models, predict, doctor) print a table there instead, unless --json is given.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from rayapp import __version__
from rayapp.config.commands import (
    BatchPredictSettings,
    DemoSettings,
    DoctorSettings,
    EvaluateSettings,
    ModelsSettings,
    PredictSettings,
    PromoteSettings,
    RollbackSettings,
    ServeSettings,
    Settings,
    TrainSettings,
)
from rayapp.config.env import Home, ray_address
from rayapp.config.parse import load
from rayapp.config.tune import TuneSettings
from rayapp.errors import ConfigError, RayAppError, did_you_mean
from rayapp.runtime.address import check_address

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verb:
    """A word of the command line: its settings, and "module:function" of (settings, home).

    It returns what is printed as JSON: a dict, a result with to_dict(), or None. It is imported when its verb runs:
    torch, Ray and MLflow take seconds.
    """

    settings: type[Settings]
    function: str

    def run(self, settings: Settings, home: Home) -> dict[str, Any] | None:
        """What the verb has to say in JSON; None for nothing."""
        module, name = self.function.split(":")
        result: Any = getattr(importlib.import_module(module), name)(settings, home)
        content: dict[str, Any] | None = result.to_dict() if hasattr(result, "to_dict") else result
        return content


VERBS = {
    "train": Verb(TrainSettings, "rayapp.train.driver:run"),
    "tune": Verb(TuneSettings, "rayapp.verbs:tune"),
    "evaluate": Verb(EvaluateSettings, "rayapp.verbs:evaluate"),
    "promote": Verb(PromoteSettings, "rayapp.verbs:promote"),
    "rollback": Verb(RollbackSettings, "rayapp.verbs:rollback"),
    "models": Verb(ModelsSettings, "rayapp.verbs:models"),
    "predict": Verb(PredictSettings, "rayapp.verbs:predict"),
    "batch-predict": Verb(BatchPredictSettings, "rayapp.batch.driver:batch_predict"),
    "serve": Verb(ServeSettings, "rayapp.serve.app:serve_forever"),
    "demo": Verb(DemoSettings, "rayapp.demo:demo"),
    "doctor": Verb(DoctorSettings, "rayapp.doctor:doctor"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of `rayapp VERB ...`.

    0 done, 1 failed, 2 bad settings, 3 refused by the gate, 130 stopped by Ctrl-C, 143 stopped by SIGTERM (128 and the
    signal's number, as shells count). However it was stopped, runs are closed as KILLED.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if words[0] == "--version":
        print(f"rayapp {__version__}")
        return 0
    return run(words[0], words[1:], prog=f"rayapp {words[0]}")


def run(verb: str, argv: Sequence[str], *, prog: str) -> int:
    """The exit code of one verb; one of the two places where errors become sentences."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("alembic", "mlflow", "ray", "httpx", "filelock", "botocore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        if verb not in VERBS:
            raise ConfigError(f"unknown verb '{verb}'.{did_you_mean(verb, VERBS)}")
        settings = load(VERBS[verb].settings, argv, prog=prog)
        home = Home.from_env()
        _stand_somewhere(home)
        if settings.joins_ray and (address := ray_address()):
            check_address(address)  # before imports that take seconds
        result = VERBS[verb].run(settings, home)
    except RayAppError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as stop:
        by = signal.SIGTERM if signal.SIGTERM in stop.args else signal.SIGINT
        print(f"{prog} was stopped by {'SIGTERM' if by == signal.SIGTERM else 'Ctrl-C'}", file=sys.stderr)
        return 128 + by
    if result is not None:
        print(json.dumps(result), flush=True)
        return int(result.get("exit_code", 0))
    return 0


def _stand_somewhere(home: Home) -> None:
    """Leave a working folder that was deleted: Ray and MLflow ask where they are, and fail."""
    try:
        os.getcwd()
    except FileNotFoundError:
        home.folder.mkdir(parents=True, exist_ok=True)
        os.chdir(home.folder)
        log.warning("the working folder was deleted; relative paths are those of %s now", home.folder)


def _terminate(signum: int, _frame: object) -> NoReturn:
    """End as Ctrl-C does, once: `timeout` and some supervisors send a second one, which must not cut off the end."""
    signal.signal(signum, lambda *_: None)
    raise KeyboardInterrupt(signal.Signals(signum))


def _usage() -> str:
    width = max(map(len, VERBS))
    verbs = [f"  {name:<{width}}  {(verb.settings.__doc__ or '').splitlines()[0]}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            "usage: rayapp VERB [--config FILE.yaml] [--section.field VALUE ...]",
            "",
            "Takes an image-classification model from data to production on Ray.",
            "",
            *verbs,
            "",
            "rayapp VERB --help lists the settings of a verb. State lies in RAYAPP_HOME (default ./.rayapp);",
            "MLFLOW_TRACKING_URI and RAY_ADDRESS name an MLflow server and a Ray cluster to use instead.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
