"""A place for sockets, whose paths have at most 107 bytes on Linux and 103 on a Mac: TMPDIR may be longer than that."""

from __future__ import annotations

import os
from pathlib import Path

from rayapp.errors import ConfigError

SOCKET_BYTES = 103
SHORT = Path("/tmp")  # noqa: S108 - what is made in it is for this user alone


def short_enough(usual: Path, longest: int) -> Path:
    """usual, or /tmp where a path of up to longest bytes below usual is too long for a socket.

    Raises ConfigError where /tmp cannot be used.
    """
    length = len(os.fsencode(usual))
    if length + 1 + longest <= SOCKET_BYTES:
        return usual
    if os.access(SHORT, os.W_OK | os.X_OK):
        return SHORT
    raise ConfigError(
        f"{usual} is too long for sockets ({length} bytes, at most {SOCKET_BYTES - 1 - longest}), and {SHORT} cannot be"
        " written; set TMPDIR to a folder with a short path"
    )
