"""Shadow: answered requests are copied to the challenger, which nobody waits for, and /shadow says how it compares."""

from __future__ import annotations

import gc
import hashlib
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from httpx import Client, Response
from prometheus_client.parser import text_string_to_metric_families

from rayapp.serve import shadow
from rayapp.serve.metrics import Metrics
from rayapp.serve.replica import LoadedModel, Replica
from tests.support.bundles import CLASSES
from tests.support.images import encoded, picture
from tests.support.serving import PNGS, Gate, ask, ask_batch, gated, model, serving, version
from tests.support.wait import eventually

ALL = {"fraction": 1.0}
Models = tuple[LoadedModel, LoadedModel]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    return model(folder, 1), model(folder, 2)


def report(client: Client, num_images: int) -> dict[str, Any]:
    """What /shadow says once so many images were compared, dropped or failed."""
    found: dict[str, Any] = {}

    def settled() -> bool:
        found.update(client.get("/shadow").raise_for_status().json())
        compared = sum(pair["images"] for pair in found["pairs"])
        return bool(compared + found["dropped_images"] + found["failed_images"] >= num_images)

    assert eventually(settled), found
    return found


def only_pair(client: Client, num_images: int) -> dict[str, Any]:
    """The one pair of /shadow once so many images were compared; nothing was dropped."""
    found = report(client, num_images)
    assert (found["dropped_images"], found["failed_images"]) == (0, 0)
    (pair,) = found["pairs"]
    assert pair["images"] == num_images
    return dict(pair)


def samples(client: Client) -> dict[tuple[str, ...], float]:
    """The numbers of /metrics about copies: name and values of the labels, in order of the labels' names."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    found = [sample for family in families for sample in family.samples if sample.name.startswith("rayapp_shadow_")]
    return {(s.name, *(value for _, value in sorted(s.labels.items()))): s.value for s in found}


def rows(served: LoadedModel, pngs: Sequence[bytes]) -> np.ndarray:
    """(N, K): what a model says of images, asked without a server."""
    return served.predictor.predict(np.stack(served.decode(pngs, 10**8)))


def comparison(one: LoadedModel, other: LoadedModel, pngs: Sequence[bytes]) -> tuple[float, float]:
    """Agreement (0-1) and mean confidence shift as they should be."""
    ours_nk, theirs_nk = rows(one, pngs), rows(other, pngs)
    ours = [one.class_names[at] for at in ours_nk.argmax(1)]
    theirs = [other.class_names[at] for at in theirs_nk.argmax(1)]
    agreement = sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(pngs)
    return agreement, float((theirs_nk.max(1) - ours_nk.max(1)).mean())


# --- what is compared -------------------------------------------------------------------------------------------------


def test_the_same_model_under_another_version_agrees_on_everything(tmp_path: Path) -> None:
    champion, twin = model(tmp_path, 1), model(tmp_path, 2, seed=1)
    with serving(champion, twin, shadow=ALL) as (client, _):
        for png in PNGS[:10]:
            ask(client, png)
        ask_batch(client, PNGS[:7])
        pair = only_pair(client, 17)

    assert (pair["champion_version"], pair["challenger_version"]) == ("1", "2")
    assert pair["agreement"] == 1
    assert abs(pair["mean_confidence_shift"]) < 1e-6
    assert 0 < pair["mean_seconds"] < 30


def test_different_models_are_compared_image_by_image(models: Models) -> None:
    agreement, shift = comparison(*models, PNGS)
    with serving(*models, shadow=ALL) as (client, _):
        for png in PNGS[:20]:
            ask(client, png)
        ask_batch(client, PNGS[20:])
        pair = only_pair(client, 40)

    assert 0 < agreement < 1
    assert pair["agreement"] == pytest.approx(agreement)
    assert pair["mean_confidence_shift"] == pytest.approx(shift, abs=1e-6)
    assert abs(shift) > 1e-4


def test_metrics_tell_the_same_by_pair_of_versions(models: Models) -> None:
    agreement, shift = comparison(*models, PNGS[:12])
    with serving(*models, shadow=ALL) as (client, _):
        ask_batch(client, PNGS[:9])
        for png in PNGS[9:12]:
            ask(client, png)
        only_pair(client, 12)
        found = samples(client)

    by_agreement = {key[1]: value for key, value in found.items() if key[0] == "rayapp_shadow_images_total"}
    assert by_agreement == {"true": pytest.approx(12 * agreement), "false": pytest.approx(12 * (1 - agreement))}
    assert found["rayapp_shadow_confidence_shift_sum", "2", "1"] == pytest.approx(12 * shift, abs=1e-5)
    assert found["rayapp_shadow_confidence_shift_count", "2", "1"] == 12
    assert found["rayapp_shadow_seconds_count", "2", "1"] == 4  # requests
    assert found["rayapp_shadow_seconds_sum", "2", "1"] > 0


def test_classes_agree_by_their_names_not_by_their_places(tmp_path: Path) -> None:
    champion = model(tmp_path, 1)
    same_columns = model(tmp_path, 2, seed=1, classes=CLASSES[::-1])  # of ten names none keeps its place
    with serving(champion, same_columns, shadow=ALL) as (client, _):
        ask_batch(client, PNGS[:8])
        pair = only_pair(client, 8)

    assert pair["agreement"] == 0
    assert abs(pair["mean_confidence_shift"]) < 1e-6


def test_challenger_of_another_image_size_gets_the_images_as_it_wants_them(tmp_path: Path) -> None:
    champion, challenger = model(tmp_path, 1), model(tmp_path, 2, side_px=48)
    pngs = [encoded(picture(seed, height=80 + seed, width=100)) for seed in range(12)]
    agreement, shift = comparison(champion, challenger, pngs)
    with serving(champion, challenger, shadow=ALL) as (client, _):
        ask_batch(client, pngs)
        pair = only_pair(client, 12)

    assert pair["agreement"] == pytest.approx(agreement)
    assert pair["mean_confidence_shift"] == pytest.approx(shift, abs=1e-6)


def test_what_the_canary_answered_is_not_compared_with_itself(models: Models) -> None:
    with serving(*models, shadow=ALL, canary={"fraction": 0.5}) as (client, _):
        sides = [version(ask(client, x_client_id=f"client-{number}")) for number in range(30)]
        pair = only_pair(client, sides.count("1"))
        ask_batch(client, PNGS[:5], x_client_id=f"client-{sides.index('2')}")
        ask(client, x_client_id=f"client-{sides.index('1')}")
        after = only_pair(client, sides.count("1") + 1)

    assert 0 < sides.count("2") < 30
    assert (pair["champion_version"], pair["challenger_version"]) == ("1", "2")
    assert after["champion_version"] == "1"


def test_only_answered_predictions_are_copied(models: Models) -> None:
    challenger, gate = gated(models[1], permits=100)
    with serving(models[0], challenger, shadow=ALL) as (client, _):
        assert client.post("/predict_image", files={"image": b"no image"}).status_code == 400
        assert client.post("/predict_batch", files=[("images", PNGS[0]), ("images", b"")]).status_code == 400
        assert client.post("/get_model_info").status_code == 200
        ask(client)
        only_pair(client, 1)
        assert gate.entered.acquire(blocking=False)
        assert not gate.entered.acquire(blocking=False)


def test_report_is_about_all_replicas_together() -> None:
    replicas = {"a": Metrics(), "b": Metrics(), "c": Metrics()}
    for name, agreeing, differing in (("a", 3, 1), ("b", 1, 5)):
        told = replicas[name].shadow
        told.images.labels("1", "2", "true").inc(agreeing)
        told.images.labels("1", "2", "false").inc(differing)
        for _ in range(agreeing + differing):
            told.shift.labels("1", "2").observe(-0.25)
        told.seconds.labels("1", "2").observe(agreeing)
        told.dropped.inc(differing)
    replicas["b"].shadow.images.labels("1", "3", "true").inc()
    replicas["b"].shadow.seconds.labels("1", "3").observe(0.5)
    replicas["b"].shadow.shift.labels("1", "3").observe(0.1)
    replicas["c"].shadow.failed.inc(7)

    found = shadow.report({name: metrics.families() for name, metrics in replicas.items()})

    one, other = found["pairs"]
    assert one == {
        "champion_version": "1", "challenger_version": "2", "images": 10, "agreement": 0.4,
        "mean_confidence_shift": -0.25, "mean_seconds": 2.0,
    }  # fmt: skip
    assert (other["challenger_version"], other["images"], other["agreement"]) == ("3", 1, 1.0)
    assert (found["dropped_images"], found["failed_images"]) == (6, 7)


# --- how many ---------------------------------------------------------------------------------------------------------


def test_part_of_the_requests_is_copied(models: Models) -> None:
    with serving(*models, shadow={"fraction": 0.5}) as (client, _):
        for _ in range(200):
            ask(client)
        last = -1

        def settled() -> bool:
            nonlocal last
            before, last = last, sum(pair["images"] for pair in client.get("/shadow").json()["pairs"])
            threading.Event().wait(0.2)
            return last == before

        assert eventually(settled)

    assert 60 <= last <= 140  # more than five standard deviations


@pytest.mark.parametrize("canary", [0.0, 1e-9])
def test_nothing_is_copied_without_a_fraction(models: Models, canary: float) -> None:
    challenger, gate = gated(models[1])
    with serving(models[0], challenger, canary={"fraction": canary}) as (client, _):
        for png in PNGS[:10]:
            ask(client, png)
        threading.Event().wait(0.1)
        assert client.get("/shadow").json() == {"pairs": [], "dropped_images": 0, "failed_images": 0}
    assert not gate.entered.acquire(blocking=False)


def test_nothing_is_copied_or_dropped_without_a_challenger(models: Models) -> None:
    with serving(models[0], shadow=ALL) as (client, replica):
        for png in PNGS[:5]:
            ask(client, png)
        assert client.get("/shadow").json() == {"pairs": [], "dropped_images": 0, "failed_images": 0}
        replica.swap(*models)
        ask(client)
        only_pair(client, 1)


# --- nobody waits for it ----------------------------------------------------------------------------------------------


def test_the_answer_is_there_before_the_challenger_is_asked(models: Models) -> None:
    challenger, gate = gated(models[1])
    with serving(models[0], challenger, shadow=ALL) as (client, _):
        assert version(ask(client)) == "1"  # though the challenger answers nobody yet
        gate.reached()
        assert client.get("/shadow").json()["pairs"] == []
        gate.let()
        only_pair(client, 1)


@dataclass(frozen=True)
class Busy:
    """A server that has answered some requests, each a copy that waits, while one more keeps the model busy."""

    client: Client
    replica: Replica
    gate: Gate  # before the champion
    last: Future[Response]  # that one more
    worked: list[str]  # which model took each batch

    def finish(self) -> None:
        """Let the last request through."""
        self.gate.let()
        assert version(self.last.result()) == "1"


@pytest.fixture
def busy_after(models: Models, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Busy]]:
    """Makes a server that is busy after so many requests. Copies wait as long as they have to."""
    monkeypatch.setattr(shadow, "MAX_AGE_S", 30.0)
    worked: list[str] = []
    champion, gate = gated(models[0], lambda: worked.append("champion"))
    challenger, _ = gated(models[1], lambda: worked.append("challenger"), permits=1000)
    with ThreadPoolExecutor(8) as threads, serving(champion, challenger, shadow=ALL, max_batch=1) as (client, replica):

        def busy(num_requests: int) -> Busy:
            asked = [threads.submit(ask, client, PNGS[at]) for at in range(num_requests + 1)]
            assert eventually(lambda: replica.num_queued == num_requests + 1)
            gate.let(num_requests)
            assert eventually(lambda: sum(one.done() for one in asked) == num_requests)
            (last,) = (one for one in asked if not one.done())
            return Busy(client, replica, gate, last, worked)

        yield busy
        gate.let(1000)


def test_copies_wait_while_the_champion_has_work(busy_after: Callable[[int], Busy]) -> None:
    busy = busy_after(4)
    threading.Event().wait(0.1)
    assert busy.worked == ["champion"] * 4  # and a fifth is under way
    assert report(busy.client, 0)["pairs"] == []
    with ThreadPoolExecutor(1) as threads:
        later = threads.submit(ask, busy.client)  # goes before the copies, which were there first
        assert eventually(lambda: busy.replica.num_queued == 2)
        busy.gate.let()
        busy.finish()
        assert version(later.result()) == "1"

    only_pair(busy.client, 6)
    assert busy.worked == ["champion"] * 6 + ["challenger"] * 6


def test_copies_that_wait_too_long_are_dropped_and_counted(
    busy_after: Callable[[int], Busy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow, "MAX_AGE_S", 0.05)
    busy = busy_after(3)

    found = report(busy.client, 3)

    assert (found["dropped_images"], found["pairs"]) == (3, [])
    assert "challenger" not in busy.worked
    busy.finish()
    assert report(busy.client, 4)["pairs"][0]["images"] == 1  # the model is idle again


def test_no_more_copies_wait_than_there_is_room_for(
    busy_after: Callable[[int], Busy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow, "MAX_WAITING", 2)
    busy = busy_after(5)

    assert report(busy.client, 3)["dropped_images"] == 3
    busy.finish()
    assert report(busy.client, 6)["pairs"][0]["images"] >= 2


def test_copies_for_a_challenger_that_has_gone_are_dropped(busy_after: Callable[[int], Busy], models: Models) -> None:
    busy = busy_after(3)
    busy.replica.swap(models[0])
    busy.finish()

    assert report(busy.client, 3) == {"pairs": [], "dropped_images": 3, "failed_images": 0}
    assert "challenger" not in busy.worked


def test_copies_that_are_too_large_together_are_dropped(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow, "MAX_BYTES", 5 * len(PNGS[0]))
    with serving(*models, shadow=ALL) as (client, _):
        ask_batch(client, PNGS[:6])
        assert report(client, 6)["dropped_images"] == 6


def test_copies_that_were_compared_make_room_for_others(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow, "MAX_BYTES", 5 * len(PNGS[0]))
    with serving(*models, shadow=ALL) as (client, _):
        for at in range(8):
            ask(client, PNGS[at])
            only_pair(client, at + 1)


# --- what goes wrong --------------------------------------------------------------------------------------------------


def failing(served: LoadedModel) -> LoadedModel:
    def fail() -> None:
        raise RuntimeError("the challenger's weights are odd")

    return gated(served, fail, permits=1000)[0]


def test_challenger_that_fails_is_counted_and_no_client_sees_it(
    models: Models, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(models[0], failing(models[1]), shadow=ALL) as (client, replica):
        answers = [ask(client, png) for png in PNGS[:4]] + [ask_batch(client, PNGS[:3])]
        assert [version(answer) for answer in answers] == ["1"] * 5
        found = report(client, 7)
        replica.swap(*models)
        ask(client)
        after = report(client, 8)

    assert found == {"pairs": [], "dropped_images": 0, "failed_images": 7}
    assert after["failed_images"] == 7
    assert after["pairs"][0]["images"] == 1
    assert "version=2" in caplog.text
    assert "weights are odd" in caplog.text


@pytest.mark.parametrize("fails", [False, True], ids=["works", "fails"])
def test_models_that_were_exchanged_are_let_go_of(tmp_path: Path, fails: bool) -> None:
    """At most two models are in memory: no copy, task or thread may hold on to an old one."""
    champion, challenger = model(tmp_path, 1), model(tmp_path, 2)
    challenger = failing(challenger) if fails else challenger
    old = weakref.ref(champion), weakref.ref(challenger)
    with serving(champion, challenger, shadow=ALL) as (client, replica):
        ask_batch(client, PNGS[:5])
        report(client, 5)
        replica.swap(model(tmp_path, 3))
        del champion, challenger
        assert version(ask(client)) == "3"

        def gone() -> bool:
            gc.collect()
            return old[0]() is None and old[1]() is None

        assert eventually(gone)


def test_report_wants_a_key_where_keys_are_on(models: Models, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(hashlib.sha256(b"secret").hexdigest() + "\n", encoding="utf-8")
    with serving(*models, shadow=ALL, api_keys=keys) as (client, _):
        assert client.get("/shadow").status_code == 401
        assert client.get("/shadow", headers={"authorization": "Bearer wrong"}).status_code == 403
        right = {"authorization": "Bearer secret"}
        assert version(ask(client, **right)) == "1"
        assert client.get("/shadow", headers=right).json().keys() == {"pairs", "dropped_images", "failed_images"}
