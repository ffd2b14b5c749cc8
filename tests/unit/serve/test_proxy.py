"""ContractHeaders: what Serve's proxy does differently."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import Message, Receive, Scope, Send
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import RequestResponseCycle

from rayapp.serve.proxy import CONTROLLER_OPTIONS, ContractHeaders, middlewares


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
    sent: list[tuple[bytes, bytes]] = cycle.sent
    return sent


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

    assert request(Cycle(), "/x", *given) == [(b"date", b"today"), (b"x-a", b"b")]


def test_uvicorn_still_has_what_this_relies_on():
    """If it has not after an upgrade, answers carry `server: uvicorn` first."""
    assert "default_headers" in RequestResponseCycle.__init__.__code__.co_varnames
    assert Config(app).server_header is True


def test_serve_is_told_where_it_is():
    (middleware,) = middlewares()
    path = CONTROLLER_OPTIONS["runtime_env"]["env_vars"]["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"]

    assert middleware.cls is ContractHeaders
    assert path == f"{middlewares.__module__}:{middlewares.__name__}"
