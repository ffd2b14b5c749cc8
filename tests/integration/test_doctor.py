"""The doctor asks servers that answer, and looks at ports that are taken."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import pytest

from rayapp import doctor
from rayapp.config.commands import DoctorSettings
from rayapp.config.env import Home
from tests.support.ports import free_port
from tests.support.servers import answering


@pytest.fixture
def server() -> Iterator[str]:
    """host:port of an HTTP server that answers /health and /api/version, and 500 on anything else."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path in ("/health", "/api/version") else 500)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with answering(Handler) as address:
        yield address


def check(name: str, tracking_uri: str = "sqlite://", port: int | None = None) -> doctor.Check:
    home = Home(folder=Home.from_env().folder, tracking_uri=tracking_uri)
    settings = DoctorSettings(port=port or free_port())
    (found,) = [check for check in doctor.examine(settings, home) if check.name == name]
    return found


def test_a_tracking_server_that_answers(server: str) -> None:
    assert (check("mlflow", f"http://{server}/").status, check("mlflow", f"http://{server}/").advice) == ("ok", "")


def test_server_with_a_fault_of_its_own(server: str) -> None:
    assert "it answers 500" in check("mlflow", f"http://{server}/other").found


def test_port_in_use_is_said() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert check("port", port=port) == doctor.Check(
            "port", "warn", f"{port} is in use", f"stop what listens there, or serve with --port {port + 1}"
        )
    assert check("port", port=port).status == "ok"
