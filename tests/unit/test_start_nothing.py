"""That unit tests start nothing is kept: what does fails."""

from __future__ import annotations

import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.support.serving import listening

refused = pytest.raises(pytest.fail.Exception, match="starts a process or a server")


def test_a_process_fails_a_unit_test() -> None:
    with refused:
        subprocess.run([sys.executable, "--version"], check=True)
    with refused:
        os.fork()


def test_a_server_fails_a_unit_test() -> None:
    with refused:
        ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    with refused:
        listening(None).__enter__()
