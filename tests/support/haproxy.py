"""HAProxy as Serve starts it: the configuration that Serve writes, and our program in its place."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path
from typing import Any

from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig
from ray.serve.config import HTTPOptions

from rayapp.serve.haproxy import haproxy_script


def written_by_serve(
    folder: Path, host: str = "0.0.0.0", *backends: BackendConfig, port: int = 3000, **more: Any
) -> Path:
    """The configuration of HAProxy as this version of Serve writes it for a host."""
    path = folder / "haproxy.cfg"
    options = HTTPOptions(host=host, port=port)
    config = HAProxyConfig(http_options=options, socket_path=str(folder / "admin.sock"), **more)
    HAProxyApi(config, {one.name: one for one in backends}, config_file_path=str(path))._generate_config_file_internal()
    return path


def program(folder: Path, host: str = "") -> str:
    path = folder / "haproxy with a space"
    path.write_text(haproxy_script(host))
    path.chmod(0o700)
    return str(path)


def until_listening(port: int) -> None:
    """Wait until somebody listens on a port of this machine."""
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        assert time.monotonic() < deadline
        time.sleep(0.05)
