"""How `rayapp serve` ends when its processes die in another order than it would have them: nothing stays behind."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.pages import Shell
from tests.support.processes import children, command, has_ended, kill
from tests.support.site import Site
from tests.support.wait import until

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux", reason="HAProxy comes with Ray on Linux only"),
]
PATIENCE_S = 50  # Ray alone tries for 60 s to reach a cluster that has gone


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path, home=Site.at(tmp_path / "site").home.folder)
    try:
        yield shell
    finally:
        shell.close()


def sigterm_to_the_group(server: psutil.Process) -> None:
    """As `timeout`, a terminal that closes and many supervisors do."""
    os.killpg(server.pid, signal.SIGTERM)


def sigterm_to_each(server: psutil.Process) -> None:
    """As systemd does: to all processes of its control group, whatever groups they have made."""
    for process in [*children(server), server]:
        kill(process, signal.SIGTERM)


def gcs_is_killed(server: psutil.Process) -> None:
    """As by the kernel, where memory runs out."""
    (gcs,) = (child for child in server.children() if child.name() == "gcs_server")
    gcs.kill()


@pytest.mark.parametrize(
    ("end", "code", "told"),
    [
        (sigterm_to_the_group, 0, "stopping"),
        (sigterm_to_each, 0, "stopping"),
        (gcs_is_killed, 1, "Ray's gcs_server (pid "),
    ],
)
def test_nothing_stays_behind(shell: Shell, end: Callable[[psutil.Process], None], code: int, told: str):
    """It hung for 61 s, ended with 1, and left an HAProxy that held the port and answered 500."""
    shell.serve("--app.device", "cpu")
    assert shell.server
    server = psutil.Process(shell.server.pid)
    started = children(server)
    assert any(Path(command(process).partition(" ")[0]).name == "haproxy" for process in started)

    end(server)

    assert shell.server.wait(timeout=PATIENCE_S) == code
    assert told in shell.log.read_text()
    assert "Traceback" not in shell.log.read_text()
    until(lambda: all(map(has_ended, started)), patience_s=PATIENCE_S, otherwise=lambda: f"{started}")
    with socket.create_server(("127.0.0.1", shell.port)):
        """The next server could listen."""
