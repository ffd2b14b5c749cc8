"""API keys: who may ask for predictions. Only digests are stored; a changed file counts from the next request on."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
from pathlib import Path

from rayapp.errors import ConfigError, RequestError

DIGEST = re.compile(r"[0-9a-f]{64}")  # SHA-256: keys are random, so a slow hash would protect nothing more
log = logging.getLogger(__name__)


class ApiKeys:
    """The keys whose digests a file lists: a line `SHA256 NAME` each; empty lines and lines that start with # are none.

    Raises ConfigError where the file cannot be read, has another form or no key.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = _stamp(path)
        self._digests = _read(path)

    def check(self, authorization: str | None) -> None:
        """Raises RequestError: 401 where a request brings no bearer token, 403 where it brings a wrong one."""
        self._reload()
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise RequestError("an API key is needed: send the header 'Authorization: Bearer KEY'", 401)
        given = hashlib.sha256(key.strip().encode()).digest()
        # all of them are compared, each in constant time: the answer's time says nothing of the keys
        if not sum(hmac.compare_digest(given, digest) for digest in self._digests):
            raise RequestError("the API key is not known here; ask who runs this service for one", 403)

    def _reload(self) -> None:
        """Read a file that has changed; one that has become unreadable leaves the keys as they are and is logged."""
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._digests = _read(self._path)
        except ConfigError as error:
            log.error("API keys not reloaded, the old ones stay: %s", error)
        else:
            log.info("API keys reloaded keys=%d", len(self._digests))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when the file does, also where Kubernetes exchanges the link that leads to it."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _read(path: Path) -> list[bytes]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the API keys in {path} ({error}); give a file of SHA-256 digests") from error
    digests = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if not DIGEST.fullmatch(words[0].lower()):  # the line itself may be a key that somebody put there in clear
            raise ConfigError(
                f"line {number} of {path} is no SHA-256 digest (64 hexadecimal digits); keys are not stored"
            )
        digests.append(bytes.fromhex(words[0]))
    if not digests:
        raise ConfigError(f"{path} has no API key, so nobody could ask; add the SHA-256 digest of one, or leave it out")
    return digests
