"""What all benchmarks share: options, paths, the start of what is measured, and the end."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import httpx
import pytest

from benchmarks import servers, serving

SERVER = f"""#!{sys.executable}
import http.server, sys
http.server.test(http.server.SimpleHTTPRequestHandler, port=int(sys.argv[sys.argv.index("--port") + 1]))
"""


def test_a_relative_interpreter_is_found_by_a_server_that_starts_in_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """`make bench-serving` ended with "No such file or directory: .venv-bench/bin/bentoml"."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    program = tmp_path / "venv" / "bin" / "bentoml"
    program.write_text(SERVER)
    program.chmod(0o755)
    service = tmp_path / "elsewhere" / "service.py"
    service.parent.mkdir()
    (service.parent / "readyz").write_text(os.fspath(service))
    monkeypatch.chdir(tmp_path)

    options = serving._options().parse_args(["--peers-python", "venv/bin/python", "--bento-service", str(service)])
    command = servers.bentoml(options.peers_python, options.bento_service, tmp_path, workers=1)

    with servers.running(command, tmp_path / "log") as server:
        assert httpx.get(f"{server.url}/readyz").text == os.fspath(service)
