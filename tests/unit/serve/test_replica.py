"""Replica: one model answers many requests at once, can be exchanged, and never has more to do than is allowed."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayapp.data.preprocess import UInt8Array
from rayapp.errors import ImageError, RequestError
from rayapp.serve.metrics import Metrics
from rayapp.serve.replica import LoadedModel, Replica
from tests.support.bundles import tiny_served
from tests.support.images import encoded, picture
from tests.support.serving import quick_args


def test_request_in_flight_keeps_its_model_when_another_is_exchanged(tmp_path: Path):
    async def run() -> tuple[Any, Any]:
        one, two = tiny_served(tmp_path / "a", version=1), tiny_served(tmp_path / "b", version=2)
        replica, file = Replica(one, quick_args(), Metrics()), encoded(picture())
        taken = replica.served
        replica.swap(two)
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


class Held:
    """A model that does not answer before it is let go on."""

    def __init__(self, served: LoadedModel) -> None:
        self.bundle, self.device = served.predictor.bundle, served.predictor.device
        self._predict = served.predictor.predict
        self.go_on = threading.Event()

    def predict(self, images_nhwc: UInt8Array) -> Any:
        self.go_on.wait(20)
        return self._predict(images_nhwc)


def held(folder: Path) -> tuple[LoadedModel, Held]:
    """A served model that does not answer yet."""
    tiny = tiny_served(folder)
    model = Held(tiny)
    return replace(tiny, predictor=model), model  # type: ignore[arg-type]


def test_full_queue_refuses_with_503_until_there_is_room(tmp_path: Path):
    served, model = held(tmp_path)
    file = encoded(picture())

    async def run() -> RequestError:
        replica = Replica(served, quick_args(max_queue=2), Metrics())
        waiting = asyncio.create_task(replica.predict(served, [file]))
        await asyncio.sleep(0.05)
        large = asyncio.create_task(replica.predict(served, [file] * 5))  # one waits, so any may come: none starves
        await asyncio.sleep(0.05)
        with pytest.raises(RequestError) as caught:
            await replica.predict(served, [file])
        assert replica.num_queued == 6
        model.go_on.set()
        assert len((await waiting).rows) + len((await large).rows) == 6
        assert len((await replica.predict(served, [file])).rows) == 1
        replica.close()
        return caught.value

    error = asyncio.run(run())

    assert error.status == 503
    assert "6 images wait already (limit 2)" in str(error)


def test_queue_is_empty_again_after_a_deadline(tmp_path: Path):
    served, model = held(tmp_path)
    small, large = encoded(picture()), encoded(picture(height=500, width=500))

    async def run() -> None:
        replica = Replica(served, quick_args(), Metrics())
        for file in (small, large):  # decoded on the loop, and in a thread
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await replica.predict(served, [file] * 3)
            assert replica.num_queued == 0
        model.go_on.set()
        assert len((await replica.predict(served, [small])).rows) == 1
        assert replica.num_queued == 0
        replica.close()

    asyncio.run(run())


def test_error_in_a_batch_says_which_image(tmp_path: Path):
    served = tiny_served(tmp_path)

    with pytest.raises(ImageError, match=r"^image 2 of 2: "):
        served.decode([encoded(picture()), b""], 10**6)
    with pytest.raises(ImageError, match=r"^the image"):
        served.decode([b""], 10**6)
