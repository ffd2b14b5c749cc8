"""ContractHeaders: what Serve's proxy does differently."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import ray.serve
from starlette.types import Message, Receive, Scope, Send
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import RequestResponseCycle

from rayapp.serve.haproxy import (
    AnswerForLostReplica,
    ContractHeaders,
    controller_env,
    private_haproxy,
    proxy_middlewares,
    replica_env,
    replica_middlewares,
)


class Cycle:
    """As uvicorn's object for one request: `send` is its method and puts default_headers before the answer's."""

    def __init__(self) -> None:
        self.default_headers = [(b"date", b"today"), (b"server", b"uvicorn")]
        self.sent: list[tuple[bytes, bytes]] = []

    async def send(self, message: Message) -> None:
        self.sent = [*self.default_headers, *message["headers"]]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    answer = [(b"server", b"ours")] if scope["path"] == "/health" else []
    await send({"type": "http.response.start", "status": 200, "headers": [*answer, *scope["headers"]]})


def request(cycle: Any, path: str, *headers: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    scope = {"type": "http", "path": path, "headers": list(headers)}

    async def receive() -> Message:
        raise AssertionError

    asyncio.run(ContractHeaders(app)(scope, receive, cycle.send))
    return [(name, value) for name, value in cycle.sent if name != b"x-request-id"]


def test_server_header_is_the_applications_alone():
    assert request(Cycle(), "/health") == [(b"date", b"today"), (b"server", b"ours")]
    assert request(Cycle(), "/nowhere") == [(b"date", b"today")]


def test_shared_list_of_uvicorn_is_not_changed():
    cycle = Cycle()
    shared = cycle.default_headers

    request(cycle, "/health")

    assert (b"server", b"uvicorn") in shared


def test_clients_cannot_set_serves_limits():
    given = [(b"x-request-timeout-seconds", b"0.001"), (b"x-request-disconnect-disabled", b"?1"), (b"x-a", b"b")]
    given.append((b"serve_multiplexed_model_id", b"\xff"))

    assert request(Cycle(), "/x", *given) == [(b"date", b"today"), (b"x-a", b"b")]


def test_a_request_that_its_replica_left_unanswered_is_answered_503():
    """uvicorn made a 500 of it, and clients do not ask again after that."""

    async def ended(scope: Scope, receive: Receive, send: Send) -> None:
        pass

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(AnswerForLostReplica(ended)({"type": "http"}, None, send))  # type: ignore[arg-type]
    asyncio.run(AnswerForLostReplica(ended)({"type": "lifespan"}, None, send))  # type: ignore[arg-type]

    start, body = sent
    assert start["status"] == 503
    assert (b"retry-after", b"1") in start["headers"]
    assert "send it again" in json.loads(body["body"])["error"]


def test_uvicorn_still_has_what_this_relies_on():
    """If it has not after an upgrade, answers carry `server: uvicorn` first."""
    assert "default_headers" in RequestResponseCycle.__init__.__code__.co_varnames
    assert Config(app).server_header is True


def test_every_request_has_one_id_its_own_or_a_new_one():
    async def run(*headers: tuple[bytes, bytes]) -> list[bytes]:
        cycle: Any = Cycle()
        await ContractHeaders(app)({"type": "http", "path": "/x", "headers": list(headers)}, None, cycle.send)  # type: ignore[arg-type]
        return [value for name, value in cycle.sent if name == b"x-request-id"]

    assert asyncio.run(run((b"x-request-id", b"mine"))) == [b"mine"]
    (replaced,) = asyncio.run(run((b"x-request-id", b"\xff")))  # Serve answers 500 to what is not UTF-8
    assert len(replaced) == 32
    (first,), (second,) = asyncio.run(run()), asyncio.run(run())
    assert first != second
    assert len(first) == 32


@pytest.mark.parametrize(
    ("environment", "make"),
    [(controller_env(haproxy=False), proxy_middlewares), (replica_env(haproxy=True), replica_middlewares)],
)
def test_serve_is_told_where_it_is(environment: dict[str, str], make: Any):
    *_, middleware = make()
    path = environment["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"]

    assert middleware.cls is ContractHeaders
    assert path == f"{make.__module__}:{make.__name__}"


def test_serve_knows_every_variable_that_it_is_given(tmp_path: Path):
    """Serve ignores those it does not know: after an upgrade they would do nothing, silently."""
    source = "".join(path.read_text() for path in Path(ray.serve.__file__).parent.glob("_private/constants.py"))
    given = controller_env(haproxy=True) | replica_env(haproxy=True) | private_haproxy(tmp_path, "127.0.0.1")

    assert {name for name in given if name not in source} == set()
