"""What is written of requests over HTTP: lines of the access log, rows of the request log, and numbers on /metrics."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest
from httpx import Client, Response
from prometheus_client.parser import text_string_to_metric_families

from rayapp.serve.replica import LoadedModel
from tests.support.serving import PNGS, ask, ask_batch, gated, model, serving, version
from tests.support.wait import eventually

ON = {"access_log": True}
ALWAYS = {"time", "request_id", "method", "path", "status", "seconds", "bytes_in", "client"}
MODEL = {"images", "model_version", "model_digest", "role"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, LoadedModel]:
    folder = tmp_path_factory.mktemp("models")
    return model(folder, 1), model(folder, 2)


def lines(log: io.StringIO, count: int) -> list[dict[str, Any]]:
    """The lines of a log once there are so many, each a JSON object."""
    assert eventually(lambda: log.getvalue().count("\n") >= count), log.getvalue()
    text = log.getvalue()
    assert text.endswith("\n")
    found = [json.loads(line) for line in text.splitlines()]
    assert len(found) == count
    return found


# --- access log -------------------------------------------------------------------------------------------------------


def test_an_answered_prediction_is_a_line(models: tuple[LoadedModel, LoadedModel]) -> None:
    log, before = io.StringIO(), datetime.now(UTC)
    with serving(models[0], log=log, **ON) as (client, _):
        answer = ask(client, x_request_id="job-7.retry_2")
        (line,) = lines(log, 1)

    assert line.keys() == ALWAYS | MODEL
    assert line["request_id"] == "job-7.retry_2"
    assert (line["method"], line["path"], line["status"]) == ("POST", "/predict_image", 200)
    assert line["bytes_in"] == int(answer.request.headers["content-length"])
    assert line["client"] == "127.0.0.1"
    assert (line["images"], line["role"]) == (1, "champion")
    assert line["model_version"] == answer.headers["x-model-version"] == "1"
    assert line["model_digest"] == answer.headers["x-model-digest"] == models[0].digest
    assert 0 < line["seconds"] < 60
    assert line["time"].endswith("Z")
    written = datetime.fromisoformat(line["time"])
    assert (written - before).total_seconds() > -0.002  # it has milliseconds
    assert written <= datetime.now(UTC)


def test_each_request_is_one_line_with_an_id_of_its_own(models: tuple[LoadedModel, LoadedModel]) -> None:
    log = io.StringIO()
    with serving(models[0], log=log, **ON) as (client, _), ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda png: ask(client, png), PNGS[:20]))
        ask_batch(client, PNGS[:5])
        client.post("/get_model_info")
        client.post("/health")
        found = lines(log, 23)

    assert len({line["request_id"] for line in found}) == 23
    assert [line["path"] for line in found[20:]] == ["/predict_batch", "/get_model_info", "/health"]
    assert found[20]["images"] == 5
    assert found[22].keys() == ALWAYS


def test_bytes_are_those_of_the_whole_body_in_however_many_pieces_it_comes(
    models: tuple[LoadedModel, LoadedModel],
) -> None:
    log = io.StringIO()

    def pieces() -> Iterator[bytes]:
        for _ in range(3):
            yield b"x" * 1000
            threading.Event().wait(0.02)

    with serving(models[0], log=log, **ON) as (client, _):
        client.post("/predict_image", content=pieces())
        (line,) = lines(log, 1)

    assert (line["status"], line["bytes_in"]) == (400, 3000)


def test_a_canarys_answer_is_said_to_be_one(models: tuple[LoadedModel, LoadedModel]) -> None:
    log = io.StringIO()
    with serving(*models, log=log, canary={"fraction": 0.5}, **ON) as (client, _):
        sides = [version(ask(client, png)) for png in PNGS[:12]]
        found = lines(log, 12)

    assert set(sides) == {"1", "2"}
    assert [line["model_version"] for line in found] == sides
    assert [line["role"] for line in found] == ["canary" if side == "2" else "champion" for side in sides]
    assert {line["model_digest"] for line in found} == {served.digest for served in models}


def refusals(client: Client) -> list[Response]:
    """Answers to requests that clients got wrong: 400, 400, 400, 413, 401, 403."""
    good = {"authorization": "Bearer secret"}
    return [
        client.post("/predict_image", headers=good),
        ask(client, b"no image", **good),
        ask_batch(client, [PNGS[0], b""], **good),
        ask(client, bytes(2**16), **good),
        ask(client),
        ask(client, authorization="Bearer wrong"),
    ]


def test_a_refused_request_is_a_line_with_what_the_client_was_told(
    models: tuple[LoadedModel, LoadedModel], tmp_path: Path
) -> None:
    log, keys = io.StringIO(), tmp_path / "keys"
    keys.write_text(hashlib.sha256(b"secret").hexdigest() + "\n", encoding="utf-8")
    with serving(models[0], log=log, api_keys=keys, max_body_bytes=2**16, **ON) as (client, _):
        answers = refusals(client)
        found = lines(log, len(answers))

    assert [line["status"] for line in found] == [answer.status_code for answer in answers]
    assert [answer.status_code for answer in answers] == [400, 400, 400, 413, 401, 403]
    for line, answer in zip(found, answers, strict=True):
        assert line["error"] == answer.json()["error"]
        assert line.keys() <= ALWAYS | {"error"}
    assert "secret" not in log.getvalue()
    assert "wrong" not in log.getvalue()


def test_an_error_of_ours_is_a_line_that_says_no_more_than_the_answer(models: tuple[LoadedModel, LoadedModel]) -> None:
    def fail() -> None:
        raise RuntimeError("/secret/path is no matrix")

    log = io.StringIO()
    with serving(gated(models[0], fail, permits=9)[0], log=log, **ON) as (client, _):
        answer = ask(client)
        (line,) = lines(log, 1)

    assert answer.status_code == line["status"] == 500
    assert line["error"] == answer.json()["error"]
    assert "secret" not in log.getvalue() + answer.text


def test_a_request_that_takes_too_long_is_a_line(models: tuple[LoadedModel, LoadedModel]) -> None:
    log = io.StringIO()
    slow, gate = gated(models[0])
    with serving(slow, log=log, timeout_s=0.2, **ON) as (client, replica):
        answer = ask(client)
        (line,) = lines(log, 1)
        assert replica.num_queued == 0
        gate.let(9)

    assert answer.status_code == line["status"] == 504
    assert answer.json() == {"error": "Not able to process the request in 0.2 seconds"}
    assert line["seconds"] > 0.1


def test_what_a_client_makes_up_is_not_in_the_log(models: tuple[LoadedModel, LoadedModel]) -> None:
    log = io.StringIO()
    with serving(models[0], log=log, **ON) as (client, _):
        for sent in ('"}{"', "a" * 65, "two words", "../../x", ""):
            ask(client, x_request_id=sent)
        client.post("/predict_image?token=abc", files={"image": ("token.png", PNGS[0])}, headers={"cookie": "token"})
        found = lines(log, 6)

    assert all(len(line["request_id"]) == 16 and int(line["request_id"], 16) >= 0 for line in found)
    assert found[-1]["path"] == "/predict_image"
    assert "token" not in log.getvalue()


def test_nothing_is_written_unless_it_is_asked_for(models: tuple[LoadedModel, LoadedModel], tmp_path: Path) -> None:
    log, before = io.StringIO(), sorted(tmp_path.rglob("*"))
    with serving(models[0], log=log) as (client, _):
        ask(client)
        ask(client, b"")
        ask(client)

    assert log.getvalue() == ""
    assert sorted(tmp_path.rglob("*")) == before


# --- request log ------------------------------------------------------------------------------------------------------


def logged(folder: Path, **changes: Any) -> dict[str, Any]:
    return {"request_log": {"folder": str(folder), "fraction": 1.0, "flush_s": 0.2, **changes}}


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a request log, oldest first."""
    table = ds.dataset(folder, format="parquet", partitioning="hive").to_table()
    found: list[dict[str, Any]] = table.sort_by("time").to_pylist()
    return found


def test_rows_say_what_the_answers_said(models: tuple[LoadedModel, LoadedModel], tmp_path: Path) -> None:
    with serving(*models, canary={"fraction": 0.5}, **logged(tmp_path)) as (client, _):
        singles = [ask(client, png, x_request_id=f"one-{at}") for at, png in enumerate(PNGS[:8])]
        batch = ask_batch(client, PNGS[8:13], x_request_id="five")
    found = {(row["request_id"], row["image_sha256"]): row for row in rows(tmp_path)}

    answers = [(f"one-{at}", PNGS[at], answer, answer.json()) for at, answer in enumerate(singles)]
    answers += [("five", PNGS[8 + at], batch, body) for at, body in enumerate(batch.json())]
    assert len(found) == len(answers) == 13
    assert {version(answer) for answer in singles} == {"1", "2"}
    for request_id, png, answer, body in answers:
        row = found[request_id, hashlib.sha256(png).hexdigest()]
        assert row["endpoint"] == answer.request.url.path
        assert row["model_version"] == answer.headers["x-model-version"]
        assert row["model_digest"] == answer.headers["x-model-digest"]
        assert row["predicted_class"] == body["predicted_class"]
        assert row["confidence"] == pytest.approx(body["confidence"], abs=1e-7)
        assert row["probabilities"] == pytest.approx(list(body["probabilities"].values()), abs=1e-7)
        assert (row["image_bytes"], row["image"]) == (len(png), None)
        assert row["seconds"] > 0


def test_a_row_and_a_line_have_the_same_request_id(models: tuple[LoadedModel, LoadedModel], tmp_path: Path) -> None:
    log = io.StringIO()
    with serving(models[0], log=log, **ON, **logged(tmp_path)) as (client, _):
        ask(client)
        ask(client, x_request_id="not one !")
        ask_batch(client, PNGS[:3])
        found = lines(log, 3)

    ids = [row["request_id"] for row in rows(tmp_path)]
    assert sorted(ids) == sorted([line["request_id"] for line in found] + [found[2]["request_id"]] * 2)


def test_images_are_in_the_rows_if_they_are_asked_for(models: tuple[LoadedModel, LoadedModel], tmp_path: Path) -> None:
    with serving(models[0], **logged(tmp_path, images=True)) as (client, _):
        ask_batch(client, PNGS[:4])

    assert sorted(row["image"] for row in rows(tmp_path)) == sorted(PNGS[:4])


def test_only_predictions_have_rows(models: tuple[LoadedModel, LoadedModel], tmp_path: Path) -> None:
    with serving(models[0], **logged(tmp_path)) as (client, _):
        ask(client, b"no image")
        ask_batch(client, [PNGS[0], b"no image"])
        client.post("/get_model_info")
        ask(client)

    assert len(rows(tmp_path)) == 1


# --- metrics ----------------------------------------------------------------------------------------------------------


def numbers(client: Client) -> dict[str, float]:
    """The numbers of /metrics that have no labels but their bucket's bound: name (and bound) -> value."""
    found = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            if sample.labels.keys() <= {"le"}:
                found[sample.name + sample.labels.get("le", "")] = sample.value
    return found


def test_batches_and_their_times_are_on_metrics(models: tuple[LoadedModel, LoadedModel]) -> None:
    gate_open = threading.Event()
    held, gate = gated(models[0], lambda: gate_open.wait(20), permits=9)
    with serving(held, max_batch=8) as (client, replica), ThreadPoolExecutor(8) as threads:
        first = threads.submit(ask, client)
        gate.reached()
        rest = [threads.submit(ask_batch, client, PNGS[:6]), *(threads.submit(ask, client) for _ in range(5))]
        assert eventually(lambda: replica.num_queued == 12)
        assert numbers(client)["rayapp_queued_images"] == 12
        threading.Event().wait(0.05)
        gate_open.set()
        assert {version(one.result()) for one in [first, *rest]} == {"1"}
        found = numbers(client)

    assert found["rayapp_queued_images"] == 0
    assert found["rayapp_batch_images_count"] == found["rayapp_model_seconds_count"] == 3  # 1, then 8 and 3
    assert found["rayapp_batch_images_sum"] == 12
    assert [found[f"rayapp_batch_images_bucket{bound}"] for bound in ("1.0", "2.0", "4.0", "8.0")] == [1, 1, 2, 3]
    assert found["rayapp_model_seconds_sum"] >= 0.05
    assert found["rayapp_decode_seconds_count"] == 7  # requests
    assert found["rayapp_decode_seconds_sum"] > 0


def test_requests_are_counted_by_endpoint_and_code(models: tuple[LoadedModel, LoadedModel]) -> None:
    with serving(models[0]) as (client, _):
        for _ in range(3):
            ask(client)
        ask(client, b"no image")
        client.get("/predict_image")  # 405, by the router
        text = client.get("/metrics").text

    families = text_string_to_metric_families(text)
    found = {
        (sample.labels["endpoint"], sample.labels["http_response_code"]): sample.value
        for family in families
        for sample in family.samples
        if sample.name == "bentoml_service_request_total" and sample.value
    }
    assert found == {("/predict_image", "200"): 3, ("/predict_image", "400"): 1}
