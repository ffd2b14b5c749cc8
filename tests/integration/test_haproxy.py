"""The script that stands before HAProxy's program, as a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from rayapp.serve.haproxy import (
    private_haproxy,
)


def test_haproxys_own_pages_are_moved_to_loopback(tmp_path: Path):
    environment = private_haproxy(tmp_path)
    config = tmp_path / "haproxy.cfg"
    parts = ["defaults", "    mode http", "frontend p", "    bind :9101", "listen stats", "  bind *:8404"]
    config.write_text("\n".join([*parts, "frontend f", "    bind 0.0.0.0:3000", ""]))

    binary = environment["RAY_SERVE_HAPROXY_BINARY_PATH"]
    version = subprocess.run([binary, "-v"], capture_output=True, text=True, check=True).stdout
    subprocess.run([binary, "-c", "-f", str(config)], capture_output=True, check=False)

    assert "HAProxy version" in version
    assert "defaults\n    option http-buffer-request\n    mode http\n" in config.read_text()
    binds = [line.split()[1] for line in config.read_text().splitlines() if "bind" in line]
    assert binds == ["127.0.0.1:9101", "127.0.0.1:8404", "0.0.0.0:3000"]
    assert len({value for name, value in environment.items() if name.endswith("_PORT")}) == 3


def test_images_get_the_same_script(tmp_path: Path):
    printed = subprocess.run([sys.executable, "-m", "rayapp.serve.haproxy"], capture_output=True, text=True, check=True)

    assert printed.stdout == Path(private_haproxy(tmp_path)["RAY_SERVE_HAPROXY_BINARY_PATH"]).read_text()
