"""What other processes make impossible is said before Ray starts."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from rayapp.config.commands import ServeSettings
from rayapp.config.env import Home
from rayapp.errors import ConfigError
from rayapp.serve.app import serve_forever


@pytest.fixture
def nowhere(tmp_path: Path) -> Home:
    """A home whose registry must not be asked."""
    return Home(folder=tmp_path, tracking_uri="http://127.0.0.1:1")


def test_server_of_ours_that_has_the_port_is_named_not_its_haproxy(nowhere: Home, tmp_path: Path):
    """HAProxy alone is started again by its server: it is the server that one has to stop."""
    (tmp_path / "rayapp").symlink_to(sys.executable)
    listen = "import socket, time; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True);"
    haproxy = [sys.executable, "-c", f"{listen} time.sleep(600)"]
    serve = [tmp_path / "rayapp", "-c", f"import subprocess; subprocess.run({haproxy!r})", "serve"]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            port = int(server.stdout.readline())
            with pytest.raises(ConfigError, match=rf"stop rayapp serve \(pid {server.pid}\)"):
                serve_forever(ServeSettings(port=port), nowhere)
        finally:
            for process in psutil.Process(server.pid).children():
                process.kill()


@pytest.fixture
def gone() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def test_a_verb_says_it_before_it_does_anything(gone: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", gone)
    command = [sys.executable, "-m", "rayapp.cli", "train"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: no Ray cluster answers at RAY_ADDRESS={gone}: Connection refused; start one")
    assert not (home / "runs").exists()
