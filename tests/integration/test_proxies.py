"""Loopback is never asked through a proxy; of other hosts it is said that one was."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rayapp import doctor
from rayapp.errors import RegistryUnavailable, RequestError
from rayapp.predict import ask_server
from rayapp.proxies import http_client, is_loopback, proxy_of, through
from rayapp.registry.models import Registry


@pytest.fixture(autouse=True)
def dead_proxy(monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a proxy that is not there, which the environment names for everything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://me:s3cret@{address}")  # pragma: allowlist secret
    return address


@pytest.fixture
def server() -> Iterator[str]:
    """The port of an HTTP server on loopback that answers every POST with an empty list."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"[]")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield str(http.server_port)
        http.shutdown()


def test_a_server_on_this_machine_is_asked_directly(server: str) -> None:
    for host in ("127.0.0.1", "localhost"):
        assert ask_server(f"http://{host}:{server}", [b"image"]) == []
        with http_client(f"http://{host}:{server}") as client:
            assert client.post(f"http://{host}:{server}/", content=b"").status_code == 200


def test_what_is_loopback() -> None:
    here = ("http://127.0.0.1:3000", "http://127.8.0.1", "http://[::1]:3000", "https://localhost", "http://a.localhost")
    assert all(is_loopback(url) and not through(url) for url in here)
    assert not any(is_loopback(url) for url in ("http://10.0.0.1", "http://localhost.example", "http://example"))


def test_of_another_host_the_error_says_that_a_proxy_was_asked(dead_proxy: str) -> None:
    """Else it reads as if the server did not run. The proxy's password is not shown."""
    with pytest.raises(RequestError) as caught:
        ask_server("http://vision.example:3000", [b"image"])
    said = str(caught.value)
    assert f"does not answer through the proxy http://***@{dead_proxy}" in said
    assert "NO_PROXY" in said
    assert "rayapp serve" not in said
    assert proxy_of("http://vision.example:3000") == f"http://***@{dead_proxy}"
    with pytest.raises(RegistryUnavailable, match=r"does not answer through the proxy http://\*\*\*@"):
        Registry("http://mlflow.example:5000").versions()


def test_mlflow_on_loopback_is_refused_with_the_variable_that_helps(dead_proxy: str, home: Path) -> None:
    """MLflow's own client goes by the environment and tries for minutes."""
    uri = "http://127.0.0.1:5000"
    with pytest.raises(RegistryUnavailable, match=r"would be asked through the proxy .* export NO_PROXY=127.0.0.1"):
        Registry(uri).versions()
    check = doctor._mlflow(uri)
    assert (check.status, "export NO_PROXY=127.0.0.1" in check.found) == ("fail", True)
