"""The access log: a line of JSON for each request, for programs that collect such lines.

    {"time":"2026-11-24T10:15:30.123Z","request_id":"4f1c…","method":"POST","path":"/predict_image","status":200,
     "seconds":0.0042,"bytes_in":2841,"client":"10.0.3.7","images":1,"model_version":"7","model_digest":"9b0e…",
     "role":"champion"}

What a client sends is quoted as JSON and cut to a length, so that nobody writes lines of his own or fills the disk with
one request. Query strings, headers and bodies are never logged.
"""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime
from typing import Literal, NotRequired, TextIO, TypedDict, Unpack

import orjson

SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
MAX_CHARS = 300  # of a path, an error and the like


class Fields(TypedDict):
    """What a line says, beside its time. What is left out, or None, is not in the line."""

    request_id: str
    method: str
    path: str  # without the query
    status: int
    seconds: float  # from the request's head to its answer
    bytes_in: int  # of the body, as far as it was read
    client: NotRequired[str | None]  # address
    images: NotRequired[int | None]
    model_version: NotRequired[str | None]  # the model that answered, where one did
    model_digest: NotRequired[str | None]
    role: NotRequired[Literal["champion", "canary"] | None]
    error: NotRequired[str | None]  # what a client was told with a 4xx


class AccessLog:
    """Writes lines to a stream, each at once and as one piece."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._num_lost = 0

    @property
    def num_lost(self) -> int:
        """Lines that the stream did not take: a full disk or a closed pipe must not fail a request."""
        return self._num_lost

    def write(self, **fields: Unpack[Fields]) -> None:
        """Write the line of a request that was answered now."""
        line = access_line(datetime.now(UTC), **fields)
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except OSError:
            self._num_lost += 1


def access_line(time: datetime, **fields: Unpack[Fields]) -> str:
    """The line of a request that was answered at time (with a zone), without its end."""
    stamp = time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    line: dict[str, object] = {"time": stamp}
    for name, value in fields.items():
        if isinstance(value, str):
            line[name] = value[:MAX_CHARS]
        elif value is not None:
            line[name] = value
    line["seconds"] = round(fields["seconds"], 6)
    try:
        return orjson.dumps(line).decode()
    except orjson.JSONEncodeError:  # half of a surrogate pair, of which UTF-8 knows nothing
        whole = {name: _valid(value) if isinstance(value, str) else value for name, value in line.items()}
        return orjson.dumps(whole).decode()


def request_id(given: str | None) -> str:
    """The id of a request: the client's where it is short and plain, else a new one (16 hexadecimal digits)."""
    return given if given and SAFE_ID.fullmatch(given) else secrets.token_hex(8)


def _valid(text: str) -> str:
    return text.encode(errors="replace").decode()
