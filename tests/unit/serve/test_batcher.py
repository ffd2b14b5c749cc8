"""Batcher: what goes through the model together, and what never does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import pytest

from rayapp.data.preprocess import UInt8Array
from rayapp.serve.batcher import Batcher


class Recorder:
    """A predictor that notes its batches; the probabilities are the first pixel's value and its complement."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go_on = threading.Event()
        self.go_on.set()

    def predict(self, images_nhwc: UInt8Array) -> Any:
        self.go_on.wait(20)
        values_n = images_nhwc[:, 0, 0, 0].astype(np.float32)
        self.batches.append(values_n.astype(int).tolist())
        return np.stack([values_n, 1 - values_n], axis=1)


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
    """docs/faults.md, 20: an exchange must not mix versions."""
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


# --- requests that go -------------------------------------------------------------------------------------------------


def test_work_of_a_request_that_has_gone_is_dropped():
    recorder = Recorder()

    async def run() -> list[int]:
        together = batcher(max_batch=2)
        recorder.go_on.clear()
        first = asyncio.create_task(together.submit(recorder, images(0)))
        await asyncio.sleep(0.05)
        gone = asyncio.create_task(together.submit(recorder, images(1, 2, 3)))
        stays = asyncio.create_task(together.submit(recorder, images(4)))
        await asyncio.sleep(0.05)
        gone.cancel()
        await asyncio.wait([gone])
        recorder.go_on.set()
        assert values(await first) == [0]
        return values(await stays)

    assert asyncio.run(run()) == [4]
    assert recorder.batches == [[0], [4]]


def test_request_that_goes_while_the_model_has_it_takes_nobody_with_it():
    recorder = Recorder()

    async def run() -> list[int]:
        together = batcher(max_batch=2)
        recorder.go_on.clear()
        first = asyncio.create_task(together.submit(recorder, images(0)))
        await asyncio.sleep(0.05)
        gone = asyncio.create_task(together.submit(recorder, images(1)))
        stays = asyncio.create_task(together.submit(recorder, images(2, 3)))  # its first image is beside the one
        await asyncio.sleep(0.05)
        recorder.go_on.set()
        await first
        recorder.go_on.clear()
        await asyncio.sleep(0.05)
        gone.cancel()
        recorder.go_on.set()
        return values(await stays)

    assert asyncio.run(run()) == [2, 3]
    assert sorted(chain(*recorder.batches)) == [0, 1, 2, 3]


def test_deadline_ends_a_wait_and_the_next_request_is_answered():
    recorder = Recorder()

    async def run() -> list[int]:
        together = batcher()
        recorder.go_on.clear()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await together.submit(recorder, images(1))
        assert not together.idle  # the thread cannot be stopped
        recorder.go_on.set()
        return values(await together.submit(recorder, images(2)))

    assert asyncio.run(run()) == [2]


def test_images_that_are_expected_no_more_are_not_waited_for():
    recorder = Recorder()

    async def decode(together: Batcher) -> None:
        with together.expecting(1):
            await asyncio.sleep(20)

    async def run() -> None:
        together = batcher(max_wait_s=30)
        bad = asyncio.create_task(decode(together))
        await asyncio.sleep(0)
        good = asyncio.create_task(together.submit(recorder, images(1)))
        await asyncio.sleep(0.05)
        assert not good.done()
        bad.cancel()
        await asyncio.wait_for(good, 15)

    asyncio.run(run())

    assert recorder.batches == [[1]]


# --- around the model -------------------------------------------------------------------------------------------------


def test_model_is_idle_before_and_after_its_work():
    recorder = Recorder()

    async def run() -> list[bool]:
        together = batcher()
        before = together.idle
        recorder.go_on.clear()
        request = asyncio.create_task(together.submit(recorder, images(1)))
        await asyncio.sleep(0.05)
        meanwhile = together.idle
        recorder.go_on.set()
        await request
        await asyncio.sleep(0.05)
        return [before, meanwhile, together.idle]

    assert asyncio.run(run()) == [True, False, True]


def test_loop_goes_on_while_the_model_works():
    recorder, turns = Recorder(), []

    async def run() -> None:
        together = batcher()
        recorder.go_on.clear()
        request = asyncio.create_task(together.submit(recorder, images(1)))
        for turn in range(5):
            await asyncio.sleep(0.01)
            turns.append(turn)
        recorder.go_on.set()
        await request

    asyncio.run(run())

    assert turns == [0, 1, 2, 3, 4]


def test_each_batch_is_told_with_its_size_and_seconds_also_where_the_model_fails():
    ran: list[tuple[int, float]] = []

    class Failing(Recorder):
        def predict(self, images_nhwc: UInt8Array) -> Any:
            super().predict(images_nhwc)
            raise RuntimeError("no")

    async def run() -> None:
        together = Batcher(max_batch=4, max_wait_s=0, ran=lambda size, seconds: ran.append((size, seconds)))
        await together.submit(Recorder(), images(1, 2, 3, 4, 5))
        with pytest.raises(RuntimeError):
            await together.submit(Failing(), images(6))

    asyncio.run(run())

    assert [size for size, _ in ran] == [4, 1, 1]
    assert all(seconds > 0 for _, seconds in ran)


def test_images_that_do_not_fit_together_fail_alone():
    """The model's loop must live on: what waits behind them would never be answered."""
    recorder = Recorder()
    odd = [np.zeros((2, 2, 3), dtype=np.uint8), np.zeros((4, 4, 3), dtype=np.uint8)]

    async def run() -> list[int]:
        together = batcher()
        with pytest.raises(ValueError, match="same shape"):
            await asyncio.wait_for(together.submit(recorder, odd), 15)
        return values(await asyncio.wait_for(together.submit(recorder, images(1)), 15))

    assert asyncio.run(run()) == [1]


def test_requests_of_many_sizes_are_answered_each_with_its_own():
    recorder, rng = Recorder(), np.random.default_rng(0)
    groups = [tuple(int(value) for value in rng.integers(1, 255, size)) for size in rng.integers(1, 12, 60)]

    async def ask(together: Batcher, at: int) -> list[int]:
        await asyncio.sleep(at % 7 / 1000)
        return values(await together.submit(recorder, images(*groups[at])))

    async def run() -> list[list[int]]:
        together = batcher(max_batch=8, max_wait_s=0.001)
        return await asyncio.gather(*(ask(together, at) for at in range(len(groups))))

    assert [tuple(answer) for answer in asyncio.run(run())] == groups
    assert max(map(len, recorder.batches)) == 8
    assert sum(map(len, recorder.batches)) == sum(map(len, groups))
