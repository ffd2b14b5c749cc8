"""Every error that rayapp raises for its users.

    RayAppError
    ├── ConfigError         a setting, flag or environment value
    ├── DataError           a data set: missing, corrupt, mislabelled, not reachable
    ├── BundleError         a model directory: missing file, wrong digest, unknown format
    ├── RegistryError       MLflow: no such run, version or alias
    │   └── RegistryUnavailable   it does not answer, or fails
    ├── TrainingError       training could not start or go on
    ├── PromotionRefused    the challenger is not better than the champion
    └── RequestError        a client's request (carries the HTTP status)
        └── ImageError      one image in it

A message is one sentence that says what was given, what is allowed and what to do. The two outer edges (the command
line and the request handler) print it without a traceback; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RayAppError(Exception):
    """Base of all errors that a user can act on. exit_code is what the command line returns for it."""

    exit_code = 1


class ConfigError(RayAppError):
    """A setting is unknown, out of range or without effect."""

    exit_code = 2


class DataError(RayAppError):
    """A data set cannot be read, or holds what it must not."""


class BundleError(RayAppError):
    """A model directory is incomplete, changed or of another format."""


class RegistryError(RayAppError):
    """MLflow has no such run, version or alias, or does not answer."""


class RegistryUnavailable(RegistryError):  # noqa: N818 - a state, not a fault of who asked
    """MLflow does not answer or fails; it may be there again in a moment."""


class TrainingError(RayAppError):
    """Training could not start or could not go on."""


class PromotionRefused(RayAppError):  # noqa: N818 - a refusal is an outcome, not a fault
    """The challenger did not pass the gate; reasons tells why, one sentence each."""

    exit_code = 3

    def __init__(self, message: str, reasons: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.reasons = reasons


class RequestError(RayAppError):
    """A client's request that cannot be served; status is the HTTP status of the answer (4xx)."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class ImageError(RequestError):
    """An image that cannot be decoded, or is larger than the limits allow."""


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """A clause that names the nearest allowed word, or lists them all: " Did you mean 'x'?" or " Allowed: x, y."."""
    names = sorted(allowed)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.6)
    if near:
        return f" Did you mean '{near[0]}'?"
    return f" Allowed: {', '.join(names)}."
