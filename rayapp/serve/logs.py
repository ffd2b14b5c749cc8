"""What is written of a request after its answer: a line of the access log, and rows of the request log."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TextIO

from rayapp.config.train import ServeArgs
from rayapp.serve.access_log import AccessLog, request_id
from rayapp.serve.messages import Answer, Call
from rayapp.serve.metrics import Metrics
from rayapp.serve.replica import Predicted
from rayapp.serve.request_log import Record, RequestLog


class Logs:
    """The logs that args ask for; replica is this process's name in them. Raises ConfigError (see RequestLog)."""

    def __init__(self, args: ServeArgs, metrics: Metrics, *, replica: str, stream: TextIO | None = None) -> None:
        self._canary = args.canary.alias if args.canary.fraction else None
        self._access = AccessLog(stream or sys.stderr) if args.access_log else None
        self._requests = RequestLog(args.request_log, replica=replica) if args.request_log.folder else None
        if self._requests:
            metrics.watch_request_log(lambda: self._requests.num_dropped if self._requests else 0)

    def answered(self, call: Call, answer: Answer, seconds: float) -> None:
        """Write down an answered request."""
        sampled = self._requests is not None and answer.predicted is not None and self._requests.sampled()
        if not self._access and not sampled:
            return
        given = request_id(call.headers.get(b"x-request-id", b"").decode("latin-1"))
        if self._access:
            self._write_line(self._access, given, call, answer, seconds)
        if sampled and self._requests and answer.predicted:
            self._add_rows(self._requests, given, call, answer.predicted, answer.files, seconds)

    def _write_line(self, access: AccessLog, given: str, call: Call, answer: Answer, seconds: float) -> None:
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
        self, log: RequestLog, given: str, call: Call, predicted: Predicted, files: Sequence[bytes], seconds: float
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
