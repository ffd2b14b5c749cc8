"""What /metrics says: the names that dashboards of the replaced service read, and ours.

Each replica counts for itself; families() of all of them are put together by render(), each with its replica as a
label, so that it does not matter which one is asked. Labels take values from fixed sets only: a path that a client
makes up is no label.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from time import time

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Summary,
    generate_latest,
)
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

ENDPOINTS = ("/predict_image", "/predict_batch", "/get_model_info", "/health", "/explain")
CONTENT_TYPE = CONTENT_TYPE_LATEST
_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 180)
_FAST_BUCKETS_S = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1, 2, 4, 8)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_SERVICE = ("VisionClassifier", "VisionClassifier", "not available")  # runner_name, service_name, service_version
_SERVICE_LABELS = ("runner_name", "service_name", "service_version")
_MODEL = ("model_version", "model_digest")


class Metrics:
    """The numbers of one replica, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._endpoints = _EndpointMetrics(self._registry)
        self._queued = self._gauge("rayapp_queued_images", "Images that wait for their answer")
        self._batches = self._histogram(
            "rayapp_batch_images", "Images that went through the model at once", _BATCH_BUCKETS
        )
        self._model = self._histogram("rayapp_model_seconds", "Time of a batch in the model (s)")
        self._decode = self._histogram("rayapp_decode_seconds", "Time to decode the images of a request (s)")
        self._predicted = Counter(
            "rayapp_predictions", "Images answered, by the model that did", _MODEL, registry=self._registry
        )
        self._latency = self._histogram(
            "rayapp_prediction_seconds", "Time of a request in queue and model, by the model that answered (s)",
            _FAST_BUCKETS_S, ("model_version",),
        )  # fmt: skip
        self._served = self._gauge("rayapp_served_model_info", "The models that answer", (*_MODEL, "role"))
        self._alias_resolved = self._gauge("rayapp_alias_resolved", "Whether the last look at the alias succeeded")
        self._failed = self._gauge(
            "rayapp_rollout_failed",
            "A version that the alias names and that cannot be served; the old one answers",
            ("model_version", "reason"),
        )
        self._swaps = Counter(
            "rayapp_swaps", "Exchanges of the model, and attempts that failed", ("result",), registry=self._registry
        )
        for result in ("exchanged", "refused"):
            self._swaps.labels(result)
        self.shadow = ShadowMetrics(self._registry)
        self._dropped_log = self._gauge("rayapp_request_log_dropped", "Predictions missing from the request log")
        self._by_model: dict[tuple[str, str], tuple[Counter, Histogram]] = {}

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(name, text, labels, registry=self._registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...] = _FAST_BUCKETS_S, labels: tuple[str, ...] = ()
    ) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self._registry)

    def watch_running(self, endpoint: str, num_running: Callable[[], int]) -> None:
        """num_running tells how many requests to an endpoint of ENDPOINTS are under way."""
        self._endpoints.watch_running(endpoint, num_running)

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        """A request has its answer after so many seconds."""
        self._endpoints.answered(endpoint, status, seconds)

    def predicted(self, version: str, digest: str, num_images: int, seconds: float) -> None:
        """A model has answered num_images images of one request in so many seconds."""
        found = self._by_model.get((version, digest))
        if found is None:
            found = self._predicted.labels(version, digest), self._latency.labels(version)
            self._by_model[version, digest] = found
        found[0].inc(num_images)
        found[1].observe(seconds)

    def decoded(self, seconds: float) -> None:
        """The images of one request were decoded."""
        self._decode.observe(seconds)

    def batch_ran(self, num_images: int, seconds: float) -> None:
        """A batch went through the model."""
        self._batches.observe(num_images)
        self._model.observe(seconds)

    def watch_queue(self, num_queued: Callable[[], int]) -> None:
        """Ask num_queued for the length of the queue at each reading."""
        self._queued.set_function(num_queued)

    def watch_request_log(self, num_dropped: Callable[[], int]) -> None:
        """Ask num_dropped for what the request log has lost at each reading."""
        self._dropped_log.set_function(num_dropped)

    def serves(self, version: str, digest: str, second: tuple[str, str] | None = None) -> None:
        """A version answers from now on, and perhaps a second one beside it."""
        self._served.clear()
        self._served.labels(version, digest, "champion").set(1)
        if second:
            self._served.labels(*second, "challenger").set(1)

    def swapped(self) -> None:
        """The champion was exchanged."""
        self._swaps.labels("exchanged").inc()

    def alias_resolved(self, resolved: bool) -> None:
        """Whether the registry said what the alias names."""
        self._alias_resolved.set(resolved)

    def refused(self, version: str, reason: str) -> None:
        """This replica could not load a version."""
        self._swaps.labels("refused").inc()
        self.rollout_failed(version, reason)

    def rollout_failed(self, version: str, reason: str) -> None:
        """A version cannot be taken, here or by another replica; reason is a class of errors, not a text."""
        self._failed.clear()
        self._failed.labels(version, reason).set(1)

    def rollout_fine(self) -> None:
        """The alias names what is served."""
        self._failed.clear()

    def families(self) -> list[Metric]:
        """The numbers as they are now; they can be sent to another process."""
        return list(self._registry.collect())

    def render(self) -> bytes:
        """The numbers of this replica alone as Prometheus reads them, of type CONTENT_TYPE."""
        return generate_latest(self._registry)


class _EndpointMetrics:
    """The names of BentoML 1.4 (docs/contract.md, 3). Children are kept: looking them up costs more than counting."""

    def __init__(self, registry: CollectorRegistry) -> None:
        by_code = ("endpoint", "http_response_code", *_SERVICE_LABELS)
        name = "bentoml_service_request"
        self._total = Counter(name, "Requests answered", by_code, registry=registry)
        self._seconds = Histogram(
            f"{name}_duration_seconds", "Time to an answer (s)", by_code, buckets=_BUCKETS_S, registry=registry
        )
        running = Gauge(f"{name}_in_progress", "Requests under way", ("endpoint", *_SERVICE_LABELS), registry=registry)
        self._running = {endpoint: running.labels(endpoint, *_SERVICE) for endpoint in ENDPOINTS}
        last = (*_SERVICE_LABELS, "pid")
        self._last = Gauge("bentoml_service_last_request_timestamp_seconds", "Last request", last, registry=registry)
        self._answered: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        for endpoint in ENDPOINTS:  # so that a rate has a start
            for code in (200, 500):
                self._children(endpoint, code)

    def watch_running(self, endpoint: str, num_running: Callable[[], int]) -> None:
        self._running[endpoint].set_function(num_running)

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        total, histogram = self._children(endpoint, status)
        total.inc()
        histogram.observe(seconds)
        self._last.labels(*_SERVICE, str(os.getpid())).set(time())

    def _children(self, endpoint: str, status: int) -> tuple[Counter, Histogram]:
        found = self._answered.get((endpoint, status))
        if found is None:
            labels = (endpoint, str(status), *_SERVICE)
            found = self._answered[endpoint, status] = self._total.labels(*labels), self._seconds.labels(*labels)
        return found


class ShadowMetrics:
    """How the second model compares with the champion on the copied requests."""

    def __init__(self, registry: CollectorRegistry) -> None:
        pair = ("champion_version", "challenger_version")
        self.images = Counter(
            "rayapp_shadow_images", "Images copied to the challenger", (*pair, "agrees"), registry=registry
        )
        self.dropped = Counter("rayapp_shadow_dropped_images", "Copies left out under load", registry=registry)
        self.failed = Counter("rayapp_shadow_failed_images", "Copies the challenger failed on", registry=registry)
        # a histogram with buckets below 0 has no sum
        self.shift = Summary(
            "rayapp_shadow_confidence_shift", "Challenger's confidence less the champion's (-1 to 1)", pair,
            registry=registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "rayapp_shadow_seconds", "Time of the challenger for a copied request (s)", pair,
            buckets=_FAST_BUCKETS_S, registry=registry,
        )  # fmt: skip


class _Together(Collector):
    """The families of several replicas as one registry, the replica's name a label of each sample."""

    def __init__(self, replicas: Mapping[str, Iterable[Metric]]) -> None:
        self._replicas = replicas

    def collect(self) -> Iterable[Metric]:
        """One family a name."""
        together: dict[str, Metric] = {}
        for replica, families in self._replicas.items():
            for family in families:
                empty = Metric(family.name, family.documentation, family.type, family.unit)
                label = {"replica": replica} if replica else {}
                samples = together.setdefault(family.name, empty).samples
                samples += [sample._replace(labels={**sample.labels, **label}) for sample in family.samples]
        return together.values()


def render(replicas: Mapping[str, Iterable[Metric]]) -> bytes:
    """The numbers of several replicas, by their names ("" for one alone), as Prometheus reads them."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Together(replicas))
    return generate_latest(registry)
