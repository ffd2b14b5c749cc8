"""Records of answered requests, and a log that keeps them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from rayapp.config.serve import RequestLogConfig
from rayapp.serve.request_log import Record, RequestLog

MORNING = datetime(2026, 3, 1, 9, 30, tzinfo=UTC)


def record(at: int = 0, *, image: bytes = b"picture", when: datetime = MORNING) -> Record:
    return Record(
        time=when,
        request_id=f"request-{at}",
        endpoint="/predict_image",
        model_version="3",
        model_digest="d" * 64,
        image=image,
        predicted_class="bee",
        confidence=0.75,
        probabilities=np.array([0.25, 0.75], dtype=np.float32),
        seconds=0.5,
    )


def log_to(folder: Path | str, **settings: Any) -> RequestLog:
    """A log that keeps every request; its files are written when it is closed, unless the test says sooner."""
    config = RequestLogConfig(folder=str(folder), **{"fraction": 1.0, "flush_s": 3600.0} | settings)
    return RequestLog(config, replica="app#VisionClassifier#x1")
