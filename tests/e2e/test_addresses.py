"""Where `rayapp serve` can be reached: asked from another machine, as a kubelet's probe and a load balancer ask."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.elsewhere import HERE, Elsewhere, elsewhere
from tests.e2e.pages import Shell
from tests.support.haproxy import program, until_listening, written_by_serve
from tests.support.ports import free_ports
from tests.support.processes import children, listened_on
from tests.support.site import Site

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's"),
]
REFUSED = "ConnectionRefusedError"


@pytest.fixture
def other() -> Iterator[Elsewhere]:
    with elsewhere() as found:
        yield found


class Server(Shell):
    """A terminal whose server is asked at an address of its own."""

    address = "127.0.0.1"

    @property
    def url(self) -> str:
        """The address of its server."""
        return f"http://{self.address}:{self.port}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path, home=Site.at(tmp_path / "site").home.folder)
    try:
        yield server
    finally:
        server.close()


def listening(server: Server, name: str) -> set[tuple[str, int]]:
    """Address and port of all that the server's processes listen on whose command lines have the name."""
    assert server.server
    named = children(psutil.Process(server.server.pid), name)
    return {place for process in named for place in listened_on(process)}


@pytest.mark.parametrize("host", ["0.0.0.0", HERE])
def test_the_service_answers_elsewhere_and_what_is_behind_it_does_not(server: Server, other: Elsewhere, host: str):
    """It said that it served on 0.0.0.0 while it listened on loopback alone: no pod of a RayService got ready."""
    server.address = HERE if host == HERE else "127.0.0.1"

    server.serve("--host", host, "--app.device", "cpu")

    assert other.get(server.port, "/readyz") == "200"
    haproxy = listening(server, "/haproxy.cfg")
    assert {port for ip, port in haproxy if ip != "127.0.0.1"} == {server.port}
    loopback = {port for ip, port in haproxy | listening(server, "ray::Serve") if ip == "127.0.0.1"}
    assert len(loopback) >= 3  # HAProxy's statistics and metrics, a replica
    assert {port: other.get(port) for port in loopback} == dict.fromkeys(loopback, REFUSED)


def test_in_a_pod_the_service_answers_elsewhere_and_haproxys_own_pages_do_not(other: Elsewhere, tmp_path: Path):
    """The images' program, with what Serve writes for serve_configs/: a kubelet asks from elsewhere."""
    port, stats, metrics = free_ports(3)
    path = written_by_serve(tmp_path, "0.0.0.0", port=port, stats_port=stats, metrics_port=metrics)

    with subprocess.Popen([program(tmp_path), "-db", "-f", path]) as haproxy:
        try:
            until_listening(port)
            assert other.get(port, "/-/routes") == "503"  # HAProxy's own answer: it knows no application yet
            assert [other.get(one) for one in (stats, metrics)] == [REFUSED, REFUSED]
        finally:
            haproxy.kill()
