"""What the tests look at beside their own objects: processes that come and go, ports that others could take."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import psutil
import pytest

from tests.support import ports, processes


@pytest.fixture
def ended() -> psutil.Process:
    """A process that was there when somebody listed the processes."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as started:
        listed = psutil.Process(started.pid)
        listed.cmdline()
    return listed


def test_a_process_that_ends_between_two_looks_is_no_error(ended: psutil.Process):
    assert processes.command(ended) == ""
    assert processes.children(ended) == []
    assert processes.listened_on(ended) == set()
    assert processes.has_ended(ended)
    assert not processes.kill(ended)
    assert processes.contents(Path(f"/proc/{ended.pid}/cmdline")) == b""
    assert processes.written_by(Path(f"/proc/{ended.pid}")) == set()


def test_a_listener_that_ends_between_two_looks_is_no_error(ended: psutil.Process, monkeypatch: pytest.MonkeyPatch):
    connection = namedtuple("connection", "status laddr pid")
    address_of = namedtuple("address_of", "ip port")
    address = address_of("127.0.0.1", 3000)
    there = [connection(psutil.CONN_LISTEN, address, pid) for pid in (ended.pid, os.getpid())]
    monkeypatch.setattr(psutil, "net_connections", lambda kind: there)

    assert processes.listeners(3000) == {psutil.Process().name()}
    assert processes.listeners(3001) == set()


def test_processes_that_run_are_seen():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert processes.listeners(port) == {psutil.Process().name()}
        assert ("127.0.0.1", port) in processes.listened_on(psutil.Process())
    with subprocess.Popen([sys.executable, "-c", "input()  # a mark"], stdin=subprocess.PIPE) as started:
        assert [child.pid for child in processes.children(psutil.Process(), "# a mark")] == [started.pid]
        assert len(processes.running("# a mark", patience_s=0)) == 1
        assert processes.kill(psutil.Process(started.pid))


def test_no_port_is_given_twice_or_while_somebody_listens(monkeypatch: pytest.MonkeyPatch):
    given = ports.free_port()
    monkeypatch.setattr(ports, "RANGE", range(given, given + 1))
    with pytest.raises(AssertionError, match=f"no port of {given} to {given} is free"):
        ports.free_port()

    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(ports, "RANGE", range(taken.getsockname()[1], taken.getsockname()[1] + 1))
        with pytest.raises(AssertionError, match="is free"):
            ports.free_port()
