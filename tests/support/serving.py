"""Servers over HTTP in this process: around one model, or around a champion and a second one."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import httpx
import numpy as np
import uvicorn
from httpx import Client, Response
from starlette.types import ASGIApp

from rayapp.config.serve import ServeArgs
from rayapp.data.preprocess import UInt8Array
from rayapp.serve.asgi import build_app, prediction
from rayapp.serve.logs import Logs
from rayapp.serve.metrics import Metrics
from rayapp.serve.replica import LoadedModel, Replica
from rayapp.vision.predictor import Predictor
from tests.support.bundles import CLASSES, tiny_version, write_tiny_bundle
from tests.support.images import encoded, picture

PNGS = [encoded(picture(seed)) for seed in range(40)]


def quick_args(**changes: Any) -> ServeArgs:
    """Settings for tests."""
    return ServeArgs(device="cpu", **changes)


@contextlib.contextmanager
def client_of(served: LoadedModel, **changes: Any) -> Iterator[httpx.Client]:
    """A client of a server that answers with served, with settings of its own."""
    args = quick_args(**changes)
    metrics = Metrics()
    replica = Replica(served, args, metrics)
    with listening(build_app(replica, args, metrics)) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client
    replica.close()


@contextlib.contextmanager
def listening(app: ASGIApp) -> Iterator[str]:
    """The URL of a real HTTP server in a thread, for clients that need a socket."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)  # so that a client that is faster than the server's thread waits
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, server_header=False, lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=20)


def model(
    folder: Path, version: int, *, seed: int | None = None, side_px: int = 32, classes: tuple[str, ...] = CLASSES
) -> LoadedModel:
    """A loaded tiny model; version 1 is the champion, others are challengers. Equal seeds make equal weights."""
    bundle = write_tiny_bundle(
        folder / f"{version}-{seed}-{side_px}-{len(classes)}",
        seed=version if seed is None else seed,
        classes=classes,
        side_px=side_px,
    )
    alias = "champion" if version == 1 else "challenger"
    return LoadedModel(
        Predictor.load(bundle, device="cpu"), tiny_version(version, alias=alias), {"version": str(version)}
    )


@contextlib.contextmanager
def serving(
    champion: LoadedModel, second: LoadedModel | None = None, *, log: TextIO | None = None, **changes: Any
) -> Iterator[tuple[Client, Replica]]:
    """A client of a server that answers with two models, and its replica, to exchange them. Lines go to log."""
    args, metrics = quick_args(**changes), Metrics()
    replica, logs = Replica(champion, args, metrics), Logs(args, metrics, replica="one", stream=log)
    replica.swap(champion, second)
    del champion, second  # the tests look at who keeps them
    app = build_app(replica, args, metrics, logs=logs)
    with listening(app) as url, Client(base_url=url, timeout=60) as client:
        yield client, replica
    replica.close()
    logs.close()


class Gate:
    """A predictor before a model: each batch waits for a permit, and what it is told is done first."""

    def __init__(self, served: LoadedModel, before: Callable[[], object] = lambda: None, *, permits: int = 0) -> None:
        self.bundle, self.device = served.predictor.bundle, served.predictor.device
        self._predict, self._before = served.predictor.predict, before
        self._permits = threading.Semaphore(permits)
        self.entered = threading.Semaphore(0)

    def predict(self, images_nhwc: UInt8Array) -> Any:
        self.entered.release()
        assert self._permits.acquire(timeout=30)
        self._before()
        return self._predict(images_nhwc)

    def let(self, batches: int = 1) -> None:
        """Let so many batches through."""
        self._permits.release(batches)

    def reached(self) -> None:
        """Returns when a batch stands before the gate."""
        assert self.entered.acquire(timeout=30)


def gated(
    served: LoadedModel, before: Callable[[], object] = lambda: None, *, permits: int = 0
) -> tuple[LoadedModel, Gate]:
    """A served model behind a gate, and the gate."""
    gate = Gate(served, before, permits=permits)
    return LoadedModel(gate, served.version, served.metadata), gate  # type: ignore[arg-type]


def ask(client: Client, png: bytes = PNGS[0], **headers: str) -> Response:
    """The answer to one image; an underscore in a header's name stands for a hyphen."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post("/predict_image", files={"image": ("a.png", png)}, headers=named)


def ask_batch(client: Client, pngs: Sequence[bytes], **headers: str) -> Response:
    """The answer to several images."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post("/predict_batch", files=[("images", ("a.png", png)) for png in pngs], headers=named)


def version(answer: Response) -> str:
    """Which model answered, as the header says."""
    assert answer.status_code == 200, answer.text
    return answer.headers["x-model-version"]


def expected(served: LoadedModel, png: bytes) -> dict[str, Any]:
    """The answer that a model gives, asked without a server."""
    (row_k,) = served.predictor.predict(np.stack(served.decode([png], 10**8)))
    return prediction(row_k, served.class_names)


def side(client: Client, number: int, **headers: str) -> str:
    return version(ask(client, **{"x_client_id": f"client-{number}"}, **headers))


def pair_of_clients(client: Client) -> tuple[str, str]:
    """A client whom the champion answers, and one whom the canary does."""
    sides = {side(client, number): f"client-{number}" for number in range(20)}
    return sides["1"], sides["2"]
