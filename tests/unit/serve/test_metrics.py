"""Metrics: the names, labels and buckets that dashboards of the replaced service read."""

from __future__ import annotations

import pickle

from prometheus_client.parser import text_string_to_metric_families

from rayapp.serve.metrics import CONTENT_TYPE, ENDPOINTS, Metrics, render

LABELS = 'runner_name="VisionClassifier",service_name="VisionClassifier",service_version="not available"'


def lines(metrics: Metrics) -> list[str]:
    return metrics.render().decode().splitlines()


def test_endpoints_are_there_at_zero_before_the_first_request():
    text = lines(Metrics())

    for endpoint in ENDPOINTS:
        for code in ("200", "500"):
            at = f'{{endpoint="{endpoint}",http_response_code="{code}",{LABELS}}} 0.0'
            assert f"bentoml_service_request_total{at}" in text
            assert f"bentoml_service_request_duration_seconds_count{at}" in text
        assert f'bentoml_service_request_in_progress{{endpoint="{endpoint}",{LABELS}}} 0.0' in text


def test_a_request_is_counted_and_timed():
    metrics = Metrics()

    num_running = 1
    metrics.watch_running("/health", lambda: num_running)
    running = f'bentoml_service_request_in_progress{{endpoint="/health",{LABELS}}} 1.0'
    assert running in lines(metrics)
    metrics.answered("/health", 413, 0.25)
    num_running = 0

    text = lines(metrics)
    at = f'{{endpoint="/health",http_response_code="413",{LABELS}}}'
    assert f"bentoml_service_request_total{at} 1.0" in text
    assert f"bentoml_service_request_duration_seconds_count{at} 1.0" in text
    assert f"bentoml_service_request_duration_seconds_sum{at} 0.25" in text
    assert running not in text
    assert any(line.startswith("bentoml_service_last_request_timestamp_seconds{pid=") for line in text)


def test_buckets_are_those_of_the_replaced_service():
    start = 'bentoml_service_request_duration_seconds_bucket{endpoint="/health",http_response_code="200",le="'

    found = [line.removeprefix(start).split('"')[0] for line in lines(Metrics()) if line.startswith(start)]

    expected = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 180, float("inf")]
    assert [float(bound) for bound in found] == expected


def test_content_type_is_the_recorded_one():
    assert CONTENT_TYPE == "text/plain; version=1.0.0; charset=utf-8"


def test_two_replicas_do_not_share_their_numbers():
    one, other = Metrics(), Metrics()

    one.rollout_failed("3", "BundleError")

    assert "BundleError" not in "\n".join(lines(other))


def test_replicas_are_rendered_together_each_with_its_name():
    """Behind one port a scrape meets any replica: counters must not jump with the one that answers."""
    one, other = Metrics(), Metrics()
    one.predicted("3", "sha256:x", 2, 0.01)
    other.predicted("3", "sha256:x", 5, 0.01)

    text = render({"a": one.families(), "b": other.families()}).decode()

    label = 'model_digest="sha256:x",model_version="3"'
    assert f'rayapp_predictions_total{{{label},replica="a"}} 2.0' in text
    assert f'rayapp_predictions_total{{{label},replica="b"}} 5.0' in text
    assert text.count("# TYPE rayapp_predictions_total counter") == 1
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)


def test_metrics_of_a_replica_can_be_sent_to_another():
    metrics = Metrics()
    metrics.batch_ran(7, 0.002)

    copied = pickle.loads(pickle.dumps(metrics.families()))

    assert b'rayapp_batch_images_bucket{le="8.0",replica="x"} 1.0' in render({"x": copied})
