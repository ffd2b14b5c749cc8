"""How long a request may take to arrive: HAProxy with the configuration that it gets from Serve and from us."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from ray.serve._private.haproxy import BackendConfig, ServerConfig

from tests.support.haproxy import program, until_listening, written_by_serve
from tests.support.ports import free_ports

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="HAProxy comes with Ray on Linux only")

LIMIT_S = 3


class _Replica(BaseHTTPRequestHandler):
    """What stands behind HAProxy: it reads a body whole, and says how long it was."""

    def do_GET(self) -> None:
        self._say("well")

    def do_POST(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # HAProxy leaves where the client has stopped
            self._say(f"{len(self.rfile.read(int(self.headers['Content-Length'])))} bytes")

    def _say(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """Of a running HAProxy with Serve's configuration, which gives a request LIMIT_S to arrive."""
    folder = tmp_path_factory.mktemp("h")
    port, stats, metrics = free_ports(3)
    behind = ThreadingHTTPServer(("127.0.0.1", 0), _Replica)
    threading.Thread(target=behind.serve_forever, daemon=True).start()
    server = ServerConfig(name="replica", host="127.0.0.1", port=behind.server_port)
    backend = BackendConfig(name="app", path_prefix="/", servers=[server], app_name="app")
    ports = {"stats_port": stats, "metrics_port": metrics}
    path = written_by_serve(folder, "127.0.0.1", backend, port=port, timeout_client_s=LIMIT_S, **ports)
    with subprocess.Popen([program(folder), "-db", "-f", path]) as haproxy:
        until_listening(port)
        yield "127.0.0.1", port
        haproxy.kill()
    behind.shutdown()


def answer(connection: socket.socket) -> bytes:
    """All that comes until the connection is closed."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


HEAD = b"POST /predict_image HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (HEAD % 5000 + b"x" * 55, b"HTTP/1.1 408 "),
        (HEAD[:30], b"HTTP/1.1 408 "),
        (HEAD % 200_000 + b"x" * 100_000, b""),  # more than the buffer, so that a replica has it, and says 504 before
        (b"", b""),
    ],
    ids=["a part of a body", "a part of a head", "a part of a long body", "nothing"],
)
def test_client_that_stops_sending_is_not_held(address: tuple[str, int], sent: bytes, told: bytes):
    """Serve's own limit was an hour of silence."""
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(sent)

        assert answer(connection).startswith(told)


def test_408_has_the_contracts_shape(address: tuple[str, int]):
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(HEAD % 5000)
        head, _, body = answer(connection).partition(b"\r\n\r\n")

    assert b"content-type: application/json" in head
    assert json.loads(body)["error"].startswith(f"the request did not arrive within {LIMIT_S} seconds; ")


def test_client_that_sends_a_byte_now_and_then_is_not_held(address: tuple[str, int]):
    """Each byte would begin another hour of silence: the limit is for all of the head, and the first of the body."""
    with socket.create_connection(address, timeout=60) as connection, contextlib.suppress(ConnectionError):
        connection.settimeout(0.5)
        for byte in HEAD % 5000 + b"x" * 5000:
            with contextlib.suppress(TimeoutError):
                if told := connection.recv(65536):
                    break
            connection.sendall(bytes([byte]))

    assert told.startswith(b"HTTP/1.1 408 ")


def test_upload_that_keeps_sending_may_take_longer(address: tuple[str, int]):
    chunk, num_chunks = b"x" * 100_000, 6
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(HEAD % (len(chunk) * num_chunks))
        for _ in range(num_chunks):
            connection.sendall(chunk)
            time.sleep(LIMIT_S / 4)
        told = connection.recv(65536)

    assert told.endswith(b"600000 bytes")
