"""haproxy_wrapper: the configuration that Serve really writes, and what becomes of it."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from rayapp.serve.haproxy import haproxy_script
from rayapp.serve.haproxy_wrapper import Unexpected, changed
from tests.support.haproxy import program, until_listening, written_by_serve
from tests.support.ports import free_ports

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="HAProxy comes with Ray on Linux only")


def binds(config: str) -> list[str]:
    return re.findall(r"(?m)^ *bind (.*)$", config)


@pytest.mark.parametrize(
    ("told", "given", "listens"),
    [
        ("0.0.0.0", "", "*:3000"),  # in a pod: the kubelet's probe and the load balancer come from elsewhere
        ("127.0.0.1", "", "127.0.0.1:3000"),
        ("10.1.2.3", "", "10.1.2.3:3000"),
        ("127.0.0.1", "0.0.0.0", "0.0.0.0:3000"),  # `rayapp serve --host 0.0.0.0`: all else stays on loopback
        ("127.0.0.1", "10.1.2.3", "10.1.2.3:3000"),
        ("127.0.0.1", "::", ":::3000 v4v6"),
        ("127.0.0.1", "localhost", "localhost:3000"),
    ],
)
def test_the_service_listens_where_it_is_told_and_haproxys_own_pages_on_loopback(
    tmp_path: Path, told: str, given: str, listens: str
):
    """The service was once moved to loopback with HAProxy's own pages: no pod that asked for 0.0.0.0 got ready."""
    path = written_by_serve(tmp_path, told)

    checked = subprocess.run([program(tmp_path, given), "-c", "-f", path], capture_output=True, text=True, check=False)

    assert checked.returncode == 0, checked.stderr
    assert binds(path.read_text()) == ["127.0.0.1:9101", listens, "127.0.0.1:8404"]


def test_requests_are_asked_again_even_if_their_head_came_alone(tmp_path: Path):
    config = changed(written_by_serve(tmp_path).read_text())

    assert "\ndefaults\n    option http-buffer-request\n" in config


def test_a_proxy_that_was_not_told_of_the_application_yet_has_to_be_asked_again(tmp_path: Path):
    """263 requests were answered 404, which no client asks again, by a host whose cable had been out."""
    port, pages = free_ports(2)
    path = written_by_serve(tmp_path, "127.0.0.1", port=port, stats_port=pages, metrics_enabled=False)
    haproxy = subprocess.Popen([program(tmp_path), "-db", "-f", path])
    try:
        until_listening(port)
        answer = httpx.post(f"http://127.0.0.1:{port}/predict_image", files={"image": b"any"}, trust_env=False)
    finally:
        haproxy.kill()
        haproxy.wait()

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json() == {"error": "the service starts; ask again"}


@pytest.mark.parametrize(
    ("line", "instead", "told"),
    [
        ("  bind *:8404", "  bind *:8404\n  bind *:8405", "'listen stats' has not one line"),
        ("frontend prometheus", "frontend metrics", "0 sections 'frontend prometheus'"),
        ("    bind :9101", "    bind unix@/tmp/x", "'frontend prometheus' has not one line"),
        ("listen stats", "listen more\n  bind *:1\nlisten stats", "listens in 'listen more'"),
        ("defaults\n", "defaults all\n", "0 sections 'defaults'"),
        ("backend default_backend\n", "backend none\n", "0 sections 'backend default_backend'"),
        ("return status 404", "return status 400", "'backend default_backend' has not one line"),
        ("    timeout client 3600s", "", "'defaults' has not one line 'timeout client"),
    ],
)
def test_another_version_of_serve_is_refused_with_a_sentence(tmp_path: Path, line: str, instead: str, told: str):
    """What is no longer where it is looked for would else stay as Serve writes it: open to everybody."""
    path = written_by_serve(tmp_path)
    config = path.read_text()
    assert line in config, "Serve writes another configuration: look at all that haproxy_wrapper changes"
    path.write_text(config.replace(line, instead))

    with pytest.raises(Unexpected, match=re.escape(told)):
        changed(path.read_text())
    done = subprocess.run([program(tmp_path), "-f", path], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert done.stderr.startswith("rayapp does not start HAProxy: the configuration")
    assert "--haproxy false" in done.stderr


def test_it_is_haproxy_to_whom_asks_for_nothing_else(tmp_path: Path):
    version = subprocess.run([program(tmp_path), "-v"], capture_output=True, text=True, check=True).stdout

    assert "HAProxy version" in version


def test_images_get_the_same_program():
    printed = subprocess.run([sys.executable, "-m", "rayapp.serve.haproxy"], capture_output=True, text=True, check=True)

    assert printed.stdout == haproxy_script()


def test_haproxy_ends_when_the_process_that_started_it_is_killed(tmp_path: Path):
    """It outlived a killed server, held its port and answered 500, and the next server was refused the address."""
    port, stats, metrics = free_ports(3)
    path = written_by_serve(tmp_path, "127.0.0.1", port=port, stats_port=stats, metrics_port=metrics)
    parent = "import subprocess, sys; subprocess.run(sys.argv[1:])"

    with subprocess.Popen([sys.executable, "-c", parent, program(tmp_path), "-db", "-f", path]) as process:
        until_listening(port)
        (haproxy,) = psutil.Process(process.pid).children()
        process.kill()

    assert haproxy.name() == "haproxy"
    psutil.wait_procs([haproxy], timeout=60)
    assert not haproxy.is_running()
    with socket.create_server(("127.0.0.1", port)):
        """The next one can listen."""
