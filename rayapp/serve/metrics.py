"""What /metrics says: the names that dashboards of the replaced service read, and a few of our own.

Each replica counts for itself. Labels take values from fixed sets only: a path that a client makes up is no label.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

ENDPOINTS = ("/predict_image", "/predict_batch", "/get_model_info", "/health")
CONTENT_TYPE = CONTENT_TYPE_LATEST
_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 180)
_SERVICE = ("VisionClassifier", "VisionClassifier", "not available")  # runner_name, service_name, service_version


class Metrics:
    """The numbers of one replica, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        service = ("runner_name", "service_name", "service_version")
        by_code = ("endpoint", "http_response_code", *service)
        own = self._registry
        name = "bentoml_service_request"
        self._total = Counter(name, "Requests answered", by_code, registry=own)
        self._seconds = Histogram(
            f"{name}_duration_seconds", "Time to an answer (s)", by_code, buckets=_BUCKETS_S, registry=own
        )
        self._running = Gauge(f"{name}_in_progress", "Requests under way", ("endpoint", *service), registry=own)
        last = ("runner_name", "service_name", "service_version", "pid")
        self._last = Gauge("bentoml_service_last_request_timestamp_seconds", "Last request", last, registry=own)
        self._queued = Gauge("rayapp_queued_images", "Images that wait for their answer", registry=own)
        model = ("model_version", "model_digest")
        self._served = Gauge("rayapp_served_model_info", "The model that answers", model, registry=own)
        self._predicted = Counter("rayapp_predictions", "Images answered, by the model that did", model, registry=own)
        self._alias_resolved = Gauge(
            "rayapp_alias_resolved", "Whether the last look at the alias succeeded", registry=own
        )
        self._failed = Gauge(
            "rayapp_rollout_failed",
            "A version that the alias names and that cannot be served; the old one answers",
            ("model_version", "reason"),
            registry=own,
        )
        for endpoint in ENDPOINTS:  # so that a rate has a start
            self._running.labels(endpoint, *_SERVICE)
            for code in ("200", "500"):
                self._total.labels(endpoint, code, *_SERVICE)
                self._seconds.labels(endpoint, code, *_SERVICE)

    @contextmanager
    def request(self, endpoint: str) -> Iterator[Callable[[int], None]]:
        """Counts one request to an endpoint of ENDPOINTS; call what it yields with the status of the answer."""
        running = self._running.labels(endpoint, *_SERVICE)
        running.inc()
        started = time.perf_counter()

        def answered(status: int) -> None:
            self._total.labels(endpoint, str(status), *_SERVICE).inc()
            self._seconds.labels(endpoint, str(status), *_SERVICE).observe(time.perf_counter() - started)
            self._last.labels(*_SERVICE, str(os.getpid())).set_to_current_time()

        try:
            yield answered
        finally:
            running.dec()

    def watch_queue(self, num_queued: Callable[[], int]) -> None:
        """Ask num_queued for the length of the queue at each reading."""
        self._queued.set_function(num_queued)

    def predicted(self, version: str, digest: str, num_images: int) -> None:
        """A model has answered num_images images."""
        self._predicted.labels(version, digest).inc(num_images)

    def serves(self, version: str, digest: str) -> None:
        """A version answers from now on; nothing is wrong."""
        self._served.clear()
        self._served.labels(version, digest).set(1)
        self._failed.clear()

    def alias_resolved(self, resolved: bool) -> None:
        """Whether the registry said what the alias names."""
        self._alias_resolved.set(resolved)

    def rollout_failed(self, version: str, reason: str) -> None:
        """A version could not be taken; reason is a class of errors, not a text."""
        self._failed.clear()
        self._failed.labels(version, reason).set(1)

    def rollout_fine(self) -> None:
        """The alias names what is served."""
        self._failed.clear()

    def render(self) -> bytes:
        """The numbers as Prometheus reads them, of type CONTENT_TYPE."""
        return generate_latest(self._registry)
