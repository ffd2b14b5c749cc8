"""Replica and Batcher: what goes through the model together, and what never does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayapp.errors import ImageError, RequestError
from rayapp.serve.batcher import Batcher
from rayapp.serve.metrics import Metrics
from rayapp.serve.replica import Replica, Served
from rayapp.vision.preprocess import UInt8Array
from tests.contract.tiny import encoded, picture, quick_args, tiny_served, tiny_version


class Recorder:
    """A predictor that notes its batches; the probabilities are the first pixel's value and its complement."""

    device = "cpu"

    def __init__(self, bundle: Any = None) -> None:
        self.bundle = bundle
        self.batches: list[list[int]] = []
        self.go_on = threading.Event()
        self.go_on.set()

    def predict(self, images_nhwc: UInt8Array) -> Any:
        self.go_on.wait(20)
        values_n = images_nhwc[:, 0, 0, 0].astype(np.float32)
        self.batches.append(values_n.astype(int).tolist())
        return np.stack([values_n, 1 - values_n], axis=1)


def served_by(predictor: Any, version: int = 1) -> Served:
    return Served(predictor, tiny_version(version), {})


def images(*values: int) -> list[UInt8Array]:
    return [np.full((2, 2, 3), value, dtype=np.uint8) for value in values]


def values(rows: Sequence[Any]) -> list[int]:
    return [int(row_k[0]) for row_k in rows]


def batcher(max_batch: int = 4, max_wait_s: float = 0.0) -> Batcher:
    return Batcher(max_batch=max_batch, max_wait_s=max_wait_s)


async def answers_to_waiting(recorder: Recorder, together: Batcher, *groups: tuple[int, ...]) -> list[list[int]]:
    """Answers for groups that arrive while the model works on another image."""
    recorder.go_on.clear()
    first = asyncio.create_task(together.submit(recorder, images(0)))
    await asyncio.sleep(0.05)
    tasks = [asyncio.create_task(together.submit(recorder, images(*group))) for group in groups]
    await asyncio.sleep(0.05)
    recorder.go_on.set()
    answers = await asyncio.gather(first, *tasks)
    return [values(rows) for rows in answers[1:]]


def test_what_arrives_while_the_model_works_goes_together():
    recorder = Recorder()

    answers = asyncio.run(answers_to_waiting(recorder, batcher(), (1,), (2, 3), (4,)))

    assert recorder.batches == [[0], [1, 2, 3, 4]]
    assert answers == [[1], [2, 3], [4]]


def test_no_batch_is_larger_than_allowed_and_none_is_lost():
    recorder = Recorder()

    answers = asyncio.run(answers_to_waiting(recorder, batcher(max_batch=3), tuple(range(1, 8)), (8,)))

    assert recorder.batches == [[0], [1, 2, 3], [4, 5, 6], [7, 8]]
    assert answers == [[1, 2, 3, 4, 5, 6, 7], [8]]


def test_lone_request_does_not_wait_for_others():
    recorder = Recorder()

    async def run() -> float:
        together = batcher(max_wait_s=30)
        started = asyncio.get_running_loop().time()
        with together.expecting(1):
            pass
        await together.submit(recorder, images(1))
        return asyncio.get_running_loop().time() - started

    assert asyncio.run(run()) < 15


def test_idle_model_waits_for_images_that_are_being_decoded():
    recorder = Recorder()

    async def decode_and_submit(together: Batcher, value: int, seconds: float) -> None:
        with together.expecting(1):
            await asyncio.sleep(seconds)
        await together.submit(recorder, images(value))

    async def run() -> None:
        together = batcher(max_wait_s=30)
        await asyncio.gather(*(decode_and_submit(together, value, value / 20) for value in (1, 2, 3)))

    asyncio.run(run())

    assert recorder.batches == [[1, 2, 3]]


def test_wait_for_others_ends():
    recorder = Recorder()

    async def run() -> None:
        together = batcher(max_wait_s=0.05)
        with together.expecting(5):  # they never come
            await asyncio.wait_for(together.submit(recorder, images(1)), 20)

    asyncio.run(run())

    assert recorder.batches == [[1]]


def test_images_of_two_models_never_share_a_batch():
    """FAULTS 20: an exchange must not mix versions."""
    old, new = Recorder(), Recorder()

    async def run() -> list[Any]:
        together, first, second = batcher(), old, new
        old.go_on.clear()
        tasks = [
            asyncio.create_task(together.submit(predictor, images(value)))
            for predictor, value in ((first, 0), (first, 1), (second, 2), (first, 3), (second, 4))
        ]
        await asyncio.sleep(0.05)
        old.go_on.set()
        return await asyncio.gather(*tasks)

    answers = asyncio.run(run())

    assert [values(rows) for rows in answers] == [[0], [1], [2], [3], [4]]
    assert sorted(chain(*old.batches)) == [0, 1, 3]
    assert sorted(chain(*new.batches)) == [2, 4]


def test_models_error_reaches_everyone_of_its_batch_and_nobody_after():
    class Sometimes(Recorder):
        def predict(self, images_nhwc: UInt8Array) -> Any:
            probabilities = super().predict(images_nhwc)
            if images_nhwc.max() == 99:
                raise RuntimeError("no")
            return probabilities

    recorder = Sometimes()

    async def run() -> list[Any]:
        together = batcher()
        recorder.go_on.clear()
        first = asyncio.create_task(together.submit(recorder, images(0)))
        await asyncio.sleep(0.05)
        bad = [asyncio.create_task(together.submit(recorder, images(value))) for value in (99, 1)]
        await asyncio.sleep(0.05)
        recorder.go_on.set()
        answers = await asyncio.gather(first, *bad, return_exceptions=True)
        return [*answers, await together.submit(recorder, images(5))]

    first, bad, beside, later = asyncio.run(run())

    assert values(first) == [0]
    assert isinstance(bad, RuntimeError)
    assert isinstance(beside, RuntimeError)
    assert values(later) == [5]


def test_request_in_flight_keeps_its_model_when_another_is_exchanged(tmp_path: Path):
    async def run() -> tuple[Any, Any]:
        one, two = tiny_served(tmp_path / "a", version=1), tiny_served(tmp_path / "b", version=2)
        replica, file = Replica(one, quick_args(), Metrics()), encoded(picture())
        taken = replica.served
        replica.exchange(two)
        (old,) = (await replica.predict(taken, [file])).rows
        (new,) = (await replica.predict(replica.served, [file])).rows
        replica.close()
        expected = [served.predictor.predict(np.stack(served.decode([file], 10**6)))[0] for served in (one, two)]
        return (old, new), expected

    answers, expected = asyncio.run(run())

    np.testing.assert_allclose(answers, expected, atol=1e-6)
    assert np.abs(answers[0] - answers[1]).max() > 1e-3


def test_queue_is_empty_again_after_errors(tmp_path: Path):
    async def run() -> Replica:
        replica = Replica(tiny_served(tmp_path), quick_args(max_queue=2), Metrics())
        for _ in range(5):
            with pytest.raises(ImageError):
                await replica.predict(replica.served, [b"no image"])
        await replica.predict(replica.served, [encoded(picture())] * 3)
        replica.close()
        return replica

    assert asyncio.run(run()).num_queued == 0


def test_full_queue_refuses_with_503():
    recorder = Recorder()

    async def run() -> RequestError:
        replica = Replica(served_by(recorder), quick_args(max_queue=2), Metrics())
        replica.check_room(100)  # nothing waits, so anything may come
        replica._num_queued = 2
        with pytest.raises(RequestError) as caught:
            replica.check_room(1)
        return caught.value

    error = asyncio.run(run())

    assert error.status == 503
    assert "limit 2" in str(error)


def test_error_in_a_batch_says_which_image(tmp_path: Path):
    served = tiny_served(tmp_path)

    with pytest.raises(ImageError, match=r"^image 2 of 2: "):
        served.decode([encoded(picture()), b""], 10**6)
    with pytest.raises(ImageError, match=r"^the image"):
        served.decode([b""], 10**6)
