"""Unit tests start nothing. An sqlite store of MLflow for each test that asks for one."""

from __future__ import annotations

import os
import socketserver
import subprocess
from pathlib import Path
from typing import Any, NoReturn

import pytest
import uvicorn

from tests.support.stores import home_at

# What it shows is that a killed process holds no lock.
MAY_START = ("test_record.py::test_a_lock_does_not_outlive_a_killed_process",)


@pytest.fixture(autouse=True)
def nothing_is_started(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails what starts a process (as ray.init does) or a server; such tests belong in tests/integration."""
    if any(name in request.node.nodeid for name in MAY_START):
        return

    start = subprocess.Popen.__init__

    def only_asked(process: subprocess.Popen[Any], args: Any, *more: Any, **options: Any) -> None:
        if args[0] not in ("git", "uname"):  # which say what commit and what machine this is
            refuse()
        start(process, args, *more, **options)

    monkeypatch.setattr(subprocess.Popen, "__init__", only_asked)
    monkeypatch.setattr(os, "fork", refuse)
    monkeypatch.setattr(socketserver.TCPServer, "__init__", refuse)
    monkeypatch.setattr(uvicorn.Server, "__init__", refuse)


def refuse(*_: object, **__: object) -> NoReturn:
    pytest.fail("a unit test starts a process or a server; tests that do are in tests/integration")


@pytest.fixture
def uri(home: Path) -> str:
    """Of a store in the home of the test."""
    return home_at(home).tracking_uri
