"""What one client, or a thousand, cannot do to a replica: fill its memory, hold its loop, leave work behind."""

from __future__ import annotations

import asyncio
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.types import ASGIApp, Message

from rayapp.config.commands import ServeSettings
from rayapp.config.parse import load
from rayapp.data.preprocess import PreprocessSpec
from rayapp.errors import ConfigError, ImageError, RequestError
from rayapp.serve.asgi import build_app
from rayapp.serve.messages import FREE_BYTES, MemoryBudget
from rayapp.serve.metrics import Metrics
from rayapp.serve.replica import Prediction, Replica
from rayapp.serve.shadow import MAX_BYTES, Shadow
from tests.support.bundles import tiny_served
from tests.support.images import encoded, picture
from tests.support.serving import quick_args


def scope(path: str = "/predict_image") -> dict[str, Any]:
    return {"type": "http", "method": "POST", "path": path, "headers": [], "client": None}


async def nothing_comes() -> Message:
    await asyncio.sleep(60)
    raise AssertionError


async def dropped(message: Message) -> None:
    """A client that does not listen."""


def test_bodies_in_memory_are_bounded_and_their_room_is_given_back():
    room = MemoryBudget(100)

    room.take(60)
    with pytest.raises(RequestError, match="60 bytes wait already") as caught:
        room.take(41)
    room.give_back(60)
    room.take(100)

    assert caught.value.status == 503


def test_requests_that_are_still_being_sent_take_room(tmp_path: Path):
    """Slow senders hold what they have sent: a limit for each request alone would be a limit for none."""
    args = quick_args(max_waiting_bytes=2**20, max_body_bytes=2**20)
    small = FREE_BYTES
    metrics = Metrics()
    replica = Replica(tiny_served(tmp_path), args, metrics)
    app = build_app(replica, args, metrics)
    statuses: list[int] = []

    async def ask(app: ASGIApp, chunks: list[bytes]) -> None:
        async def receive() -> Message:
            if not chunks:
                return await nothing_comes()
            return {"type": "http.request", "body": chunks.pop(), "more_body": True}

        async def send(message: Message) -> None:
            statuses.append(message.get("status", 0))

        await app(scope(), receive, send)

    async def run() -> None:
        slow = asyncio.create_task(ask(app, [b"x" * 700_000]))
        await asyncio.sleep(0.05)
        await ask(app, [b"x" * 700_000])
        assert statuses[0] == 503
        statuses.clear()
        third = asyncio.create_task(ask(app, [b"x" * small]))
        await asyncio.sleep(0.05)
        assert not statuses  # a small request never waits behind large ones
        third.cancel()
        await asyncio.wait([third])
        slow.cancel()
        await asyncio.wait([slow])
        statuses.clear()
        second = asyncio.create_task(ask(app, [b"x" * 700_000]))
        await asyncio.sleep(0.05)
        assert not statuses  # there is room again
        second.cancel()
        await asyncio.wait([second])

    asyncio.run(run())


def test_request_that_is_cancelled_is_no_longer_in_progress(tmp_path: Path):
    metrics = Metrics()
    app = build_app(Replica(tiny_served(tmp_path), quick_args(), metrics), quick_args(), metrics)

    async def run() -> None:
        request = asyncio.ensure_future(app(scope(), nothing_comes, dropped))
        await asyncio.sleep(0.05)
        request.cancel()
        await asyncio.wait([request])

    asyncio.run(run())

    running = [
        line for line in metrics.render().decode().splitlines() if line.startswith("bentoml_service_request_in_")
    ]
    assert running
    assert all(line.endswith(" 0.0") for line in running)


def test_decoding_stops_when_nobody_waits_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    served, decoded = tiny_served(tmp_path), []
    file = encoded(picture(height=400, width=400))  # not small: it is decoded in a thread
    from_image = PreprocessSpec.from_image
    go_on = threading.Event()
    loop: Any = None
    began: Any = None

    def slow(spec: PreprocessSpec, image: Any) -> Any:
        decoded.append(image.size)
        loop.call_soon_threadsafe(began.set)
        go_on.wait(20)
        return from_image(spec, image)

    async def run() -> None:
        nonlocal loop, began
        loop, began = asyncio.get_running_loop(), asyncio.Event()
        replica = Replica(served, quick_args(), Metrics())
        request = asyncio.create_task(replica.predict(served, [file] * 20))
        await began.wait()
        request.cancel()
        await asyncio.wait([request])
        go_on.set()
        await replica.predict(served, [file])  # after those that wait, if they still do
        assert replica.num_queued == 0
        replica.close()

    monkeypatch.setattr(PreprocessSpec, "from_image", slow)
    asyncio.run(run())

    assert len(decoded) == 2


def test_copies_for_the_challenger_are_bounded_in_number_and_bytes(tmp_path: Path):
    served = tiny_served(tmp_path)
    large = [np.zeros((512, 512, 3), dtype=np.uint8)] * 64
    rows = [np.full(10, 0.1, dtype=np.float32)] * 64

    async def run() -> str:
        args, metrics = quick_args(shadow={"fraction": 1.0}), Metrics()
        replica = Replica(served, args, metrics)
        replica.swap(served, tiny_served(tmp_path / "second", version=2))
        shadow = Shadow(replica, args, metrics)
        for _ in range(100):
            shadow.offer(Prediction(served, large, rows, 0.0), [b"x"] * 64)
        replica.close()
        return metrics.render().decode()

    most = quick_args().max_batch  # a longer copy would keep the model from the champion's next request
    said = re.search(r"^rayapp_shadow_dropped_images_total (\S+)$", asyncio.run(run()), re.MULTILINE)
    assert said is not None
    num_held = 100 * most - float(said[1])

    assert 0 < num_held * large[0].nbytes <= MAX_BYTES
    assert num_held % most == 0


@pytest.mark.parametrize("kind", ["ICO"])
def test_format_that_is_decoded_before_its_size_is_known_is_refused(kind: str):
    with pytest.raises(ImageError):
        PreprocessSpec(height_px=8, width_px=8).decode(encoded(picture(height=16, width=16), kind))


def test_plain_ppm_is_refused_and_binary_ppm_is_read():
    """Pillow reads its numbers in Python: 64 MB would take 13 s."""
    spec = PreprocessSpec(height_px=2, width_px=2)

    assert spec.decode(b"P6 2 2 255 " + bytes(12)).shape == (2, 2, 3)
    with pytest.raises(ImageError, match="plain PPM"):
        spec.decode(b"P3\n1 1\n255\n1 2 3\n")


def test_room_smaller_than_a_request_is_refused_at_once():
    with pytest.raises(ConfigError, match="max_waiting_bytes 2048 is less than max_body_bytes"):
        load(ServeSettings, ["--app.max_waiting_bytes", "2048"], prog="rayapp serve")
