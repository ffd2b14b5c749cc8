"""Canary: a second model answers some of the clients, always the same ones, and each answer says which model it was."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from httpx import Client

from rayapp.serve.replica import LoadedModel, Replica
from tests.support.images import encoded, picture
from tests.support.serving import PNGS, ask, ask_batch, expected, gated, model, pair_of_clients, serving, side, version
from tests.support.wait import eventually

HALF = {"fraction": 0.5}


def same(body: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two answers are one, but for the noise that other images in the batch make."""
    one, two = body["probabilities"], other["probabilities"]
    return list(one) == list(two) and all(abs(one[name] - two[name]) < 1e-6 for name in one)


# --- who meets the canary ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, LoadedModel, LoadedModel]:
    """The champion, a canary, and another canary."""
    folder = tmp_path_factory.mktemp("models")
    return model(folder, 1), model(folder, 2), model(folder, 3)


@pytest.fixture(scope="module")
def client(models: tuple[LoadedModel, LoadedModel, LoadedModel]) -> Iterator[Client]:
    with serving(models[0], models[1], canary=HALF) as (client, _):
        yield client


def pair_of_images(client: Client) -> tuple[bytes, bytes]:
    """The same of images."""
    sides = {version(ask(client, png)): png for png in PNGS}
    return sides["1"], sides["2"]


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_fraction_of_the_clients_is_answered_by_the_canary(
    models: tuple[LoadedModel, LoadedModel, LoadedModel], fraction: float
) -> None:
    champion, canary, _ = models
    with serving(champion, canary, canary={"fraction": fraction}) as (client, replica):
        asked = [side(client, number) for number in range(200)]
        chosen = [replica.route(f"client-{number}".encode()).label for number in range(20_000)]

    assert asked == chosen[:200]  # HTTP adds nothing to the choice
    assert abs(chosen.count("2") / 20_000 - fraction) < 0.015  # four standard deviations


def test_client_always_gets_the_same_model_whatever_it_sends(
    models: tuple[LoadedModel, LoadedModel, LoadedModel], client: Client
) -> None:
    champion, canary, _ = models
    with serving(champion, canary, canary=HALF) as (other_replica, _):
        for number in range(12):
            headers = {"x_client_id": f"client-{number}"}
            answers = [ask(client, png, **headers) for png in PNGS[:4]]
            answers += [ask_batch(client, PNGS[:3], **headers), ask(other_replica, **headers)]
            assert len({version(answer) for answer in answers}) == 1


def test_answer_and_headers_are_those_of_the_model_that_answered(
    models: tuple[LoadedModel, LoadedModel, LoadedModel], client: Client
) -> None:
    seen = set()
    for png in PNGS[:12]:
        answer = ask(client, png)
        served = models[int(version(answer)) - 1]
        assert answer.headers["x-model-digest"] == served.digest
        assert same(answer.json(), expected(served, png))
        seen.add(served.label)

    assert seen == {"1", "2"}
    assert not same(expected(models[0], PNGS[0]), expected(models[1], PNGS[0]))


def test_images_decide_where_nothing_tells_clients_apart(client: Client) -> None:
    sides = [version(ask(client, png)) for png in PNGS]

    assert 8 <= sides.count("2") <= 32
    assert [version(ask(client, png)) for png in PNGS[:5]] == sides[:5]


def test_authorization_decides_before_the_image(client: Client) -> None:
    for number in range(6):
        headers = {"authorization": f"Bearer {number}"}
        assert len({version(ask(client, png, **headers)) for png in PNGS[:8]}) == 1
    assert len({version(ask(client, authorization=f"Bearer {number}")) for number in range(20)}) == 2


def test_client_id_decides_before_authorization(client: Client) -> None:
    on_champion, on_canary = pair_of_clients(client)

    for number in range(6):
        assert version(ask(client, x_client_id=on_champion, authorization=f"Bearer {number}")) == "1"
        assert version(ask(client, x_client_id=on_canary, authorization=f"Bearer {number}")) == "2"


def test_header_of_the_settings_decides_and_no_other(models: tuple[LoadedModel, LoadedModel, LoadedModel]) -> None:
    with serving(models[0], models[1], canary={**HALF, "key_header": "X-Tenant"}) as (client, _):
        assert len({version(ask(client, x_tenant=f"client-{number}")) for number in range(20)}) == 2
        assert len({version(ask(client, png, X_TENANT="client-7")) for png in PNGS[:8]}) == 1
        assert len({side(client, number) for number in range(20)}) == 1  # the image is always the same


def test_another_canary_meets_other_clients(models: tuple[LoadedModel, LoadedModel, LoadedModel]) -> None:
    """Else the same unlucky clients would try every new model."""
    champion, second, third = models
    with serving(champion, second, canary={"fraction": 0.2}) as (client, replica):
        met_second = {number for number in range(150) if side(client, number) == "2"}
        replica.swap(champion, third)
        met_third = {number for number in range(150) if side(client, number) == "3"}

    assert len(met_second) > 15
    assert len(met_third) > 15
    assert len(met_second & met_third) < len(met_second) / 2  # a fifth of them, by chance


# --- who does not -----------------------------------------------------------------------------------------------------


def test_without_a_fraction_the_champion_answers_everyone(models: tuple[LoadedModel, LoadedModel, LoadedModel]) -> None:
    with serving(models[0], models[1]) as (client, replica):
        assert replica.second is models[1]  # there for shadow
        assert {side(client, number) for number in range(30)} == {"1"}


def test_with_all_of_them_the_canary_answers_everyone(models: tuple[LoadedModel, LoadedModel, LoadedModel]) -> None:
    with serving(models[0], models[1], canary={"fraction": 1.0}) as (client, _):
        assert {side(client, number) for number in range(30)} == {"2"}


def test_without_a_second_model_the_champion_answers_everyone(
    models: tuple[LoadedModel, LoadedModel, LoadedModel],
) -> None:
    with serving(models[0], canary={"fraction": 1.0}) as (client, replica):
        assert {side(client, number) for number in range(10)} == {"1"}
        replica.swap(models[0], models[1])
        assert {side(client, number) for number in range(10)} == {"2"}
        replica.swap(models[0])
        assert {side(client, number) for number in range(10)} == {"1"}


def test_model_info_is_that_of_the_champion(
    client: Client, models: tuple[LoadedModel, LoadedModel, LoadedModel]
) -> None:
    for number in range(10):
        answer = client.post("/get_model_info", headers={"x-client-id": f"client-{number}"})
        assert version(answer) == "1"
        assert answer.json()["model_metadata"]["bundle_digest"] == models[0].digest


# --- batches, and models that differ ----------------------------------------------------------------------------------


def test_one_model_answers_a_whole_batch(client: Client, models: tuple[LoadedModel, LoadedModel, LoadedModel]) -> None:
    first_decides = {"1": pair_of_images(client)[0], "2": pair_of_images(client)[1]}

    for wanted, png in first_decides.items():
        batch = [png, *PNGS[:6]]
        answer = ask_batch(client, batch)
        assert version(answer) == wanted
        served = models[int(wanted) - 1]
        assert all(same(body, expected(served, png)) for body, png in zip(answer.json(), batch, strict=True))


def test_canary_may_have_other_classes_and_another_image_size(tmp_path: Path) -> None:
    champion = model(tmp_path, 1)
    canary = model(tmp_path, 2, side_px=48, classes=("yes", "no", "perhaps"))
    pngs = [encoded(picture(seed, height=70, width=90)) for seed in range(12)]
    with serving(champion, canary, canary=HALF) as (client, _), ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda png: ask(client, png), pngs * 3))  # both at once, in one batcher
        batch = ask_batch(client, pngs, x_client_id=pair_of_clients(client)[1])

    assert {version(answer) for answer in answers} == {"1", "2"}
    for answer, png in zip(answers, pngs * 3, strict=True):
        assert same(answer.json(), expected(champion if version(answer) == "1" else canary, png))
    assert [list(body["probabilities"]) for body in batch.json()] == [["yes", "no", "perhaps"]] * 12


def test_request_in_flight_is_finished_by_the_canary_that_it_met(
    models: tuple[LoadedModel, LoadedModel, LoadedModel],
) -> None:
    held, gate = gated(models[1])
    with serving(models[0], held, canary={"fraction": 1.0}) as (client, replica), ThreadPoolExecutor(1) as threads:
        asked = threads.submit(ask, client)
        gate.reached()
        replica.swap(models[0])
        gate.let()
        assert version(asked.result()) == "2"
        assert same(asked.result().json(), expected(models[1], PNGS[0]))
        assert version(ask(client)) == "1"


def test_exchanges_between_and_during_requests_mix_nothing(
    models: tuple[LoadedModel, LoadedModel, LoadedModel],
) -> None:
    done = threading.Event()

    def swap(replica: Replica) -> int:
        turns = 0
        while not done.is_set():
            first, second = models[turns % 3], models[(turns + 1) % 3]
            replica.swap(first, second if turns % 4 else None)
            turns += 1
            time.sleep(0.001)
        return turns

    with serving(*models[:2], canary=HALF) as (client, replica), ThreadPoolExecutor(8) as threads:
        exchanging = threads.submit(swap, replica)
        singles = list(threads.map(lambda at: ask(client, PNGS[at % 40]), range(120)))
        batches = list(threads.map(lambda at: ask_batch(client, PNGS[at : at + 5]), range(30)))
        done.set()

    assert exchanging.result() > 20
    assert {version(answer) for answer in singles} == {"1", "2", "3"}
    for at, answer in enumerate(singles):
        assert same(answer.json(), expected(models[int(version(answer)) - 1], PNGS[at % 40]))
    for at, answer in enumerate(batches):
        served = models[int(version(answer)) - 1]
        assert answer.headers["x-model-digest"] == served.digest
        for body, png in zip(answer.json(), PNGS[at : at + 5], strict=True):
            assert same(body, expected(served, png))


def test_predictions_are_counted_by_the_model_that_answered(
    models: tuple[LoadedModel, LoadedModel, LoadedModel],
) -> None:
    with serving(models[0], models[1], canary=HALF) as (client, _):
        sides = [version(ask(client, png)) for png in PNGS[:10]] + [version(ask_batch(client, PNGS[:7]))] * 7
        for served in models[:2]:
            label = f'{{model_digest="{served.digest}",model_version="{served.label}"}}'
            line = f"rayapp_predictions_total{label} {float(sides.count(served.label))}\n"
            assert eventually(lambda line=line: line in client.get("/metrics").text)  # type: ignore[misc]
