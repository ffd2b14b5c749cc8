"""What is written of a request after its answer: a line of the access log, and rows of the request log.

The access log is a line of JSON for each request, for programs that collect such lines:

    {"time":"2026-11-24T10:15:30.123Z","request_id":"4f1c…","method":"POST","path":"/predict_image","status":200,
     "seconds":0.0042,"bytes_in":2841,"client":"10.0.3.7","images":1,"model_version":"7","model_digest":"9b0e…",
     "role":"champion"}

What a client sends is quoted as JSON and cut to a length, so that nobody writes lines of his own or fills the disk with
one request. Query strings, headers and bodies are never logged.
"""

from __future__ import annotations

import logging
import re
import secrets
import sys
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal, NotRequired, TextIO, TypedDict, Unpack

import orjson

from rayapp.config.serve import ServeArgs
from rayapp.serve.messages import Request, Response
from rayapp.serve.metrics import Metrics
from rayapp.serve.replica import Prediction
from rayapp.serve.request_log import Record, RequestLog

SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
MAX_CHARS = 300  # of a path, an error and the like


class Logs:
    """The logs that args ask for; replica is this process's name in them. Raises ConfigError (see RequestLog)."""

    def __init__(self, args: ServeArgs, metrics: Metrics, *, replica: str, stream: TextIO | None = None) -> None:
        self._canary = args.canary.alias if args.canary.fraction else None
        self._access = AccessLog(stream or sys.stderr) if args.access_log else None
        self._requests = RequestLog(args.request_log, replica=replica) if args.request_log.folder else None
        if self._requests:
            metrics.watch_request_log(lambda: self._requests.num_dropped if self._requests else 0)

    def answered(self, call: Request, answer: Response, seconds: float) -> None:
        """Write down an answered request."""
        sampled = self._requests is not None and answer.predicted is not None and self._requests.sampled()
        if not self._access and not sampled:
            return
        given = request_id(call.headers.get(b"x-request-id", b"").decode("latin-1"))
        if self._access:
            self._write_line(self._access, given, call, answer, seconds)
        if sampled and self._requests and answer.predicted:
            self._add_rows(self._requests, given, call, answer.predicted, answer.files, seconds)

    def _write_line(self, access: AccessLog, given: str, call: Request, answer: Response, seconds: float) -> None:
        served = answer.predicted.served if answer.predicted else None
        is_canary = served is not None and self._canary is not None and served.version.alias == self._canary
        access.write(
            request_id=given,
            method="POST",
            path=call.path,
            status=answer.status,
            seconds=seconds,
            bytes_in=call.num_bytes,
            client=call.client,
            images=len(answer.files) or None,
            model_version=served.label if served else None,
            model_digest=served.digest if served else None,
            role=None if served is None else "canary" if is_canary else "champion",
            error=answer.error or None,
        )

    def _add_rows(
        self, log: RequestLog, given: str, call: Request, predicted: Prediction, files: Sequence[bytes], seconds: float
    ) -> None:
        served, now = predicted.served, datetime.now(UTC)
        for file, row_k in zip(files, predicted.rows, strict=True):
            index = int(row_k.argmax())
            log.add(
                Record(
                    time=now,
                    request_id=given,
                    endpoint=call.path,
                    model_version=served.label,
                    model_digest=served.digest,
                    image=file,
                    predicted_class=served.class_names[index],
                    confidence=float(row_k[index]),
                    probabilities=row_k,
                    seconds=seconds,
                )
            )

    def close(self) -> None:
        """Write what waits."""
        if self._requests:
            self._requests.close()


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


def log_to_stderr() -> None:
    """Our log lines go where Ray collects those of its workers: a replica is a process of its own, so this is main."""
    logger = logging.getLogger("rayapp")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    # Pillow's words about a damaged file quote it: a client would write lines of its own, each remembered for ever
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
