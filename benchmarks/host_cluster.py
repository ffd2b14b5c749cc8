"""The cluster of `make bench-hosts`, a head without CPUs and three hosts of one CPU each, and what happens to them."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.servers import ROOT
from rayapp.errors import RayAppError
from tests.support.hosts import OUTSIDE, Host
from tests.support.wait import eventually

START_S, REDIS_PORT = 300.0, 6390  # longest start
SPARE_S, CUT_S, SLOW_S, HEAD_S = 10.0, 20.0, 30.0, 5.0  # until the spare host joins; cable out; slow; head is away
HAPROXY = "/tmp/ray/haproxy"  # noqa: S108 - each host has a /tmp/ray of its own


class Cluster:
    """Four hosts with Ray on three of them, and what can happen to these."""

    def __init__(self, found: Sequence[Host], variables: Mapping[str, str], redis: str | None) -> None:
        self.head, self.stays, self.goes, self.spare = found
        self.variables = dict(variables)
        self._of_head = self.variables | ({"RAY_REDIS_ADDRESS": redis} if redis else {})

    def start(self) -> None:
        """Returns once both hosts have joined the head."""
        self._begin()
        for host in (self.stays, self.goes):
            host.join(self.head, env=self.variables)
        if not eventually(lambda: self.head.cpus() == 2, patience_s=START_S, pause_s=1):
            raise RayAppError(f"the hosts did not join their head in {START_S:g} s")

    def _begin(self) -> None:
        self.head.begin("--dashboard-host=127.0.0.1", env=self._of_head)

    def kill_host(self) -> None:
        """A host dies, and another one takes its place."""
        self.goes.kill()
        time.sleep(SPARE_S)
        self.spare.join(self.head, env=self.variables)

    def cut_cable(self) -> None:
        """A host is out of reach for a while."""
        self.goes.cut()
        time.sleep(CUT_S)
        self.goes.mend()

    def kill_head(self) -> None:
        """The head dies with all that runs on it, and comes back with what Redis kept for it."""
        self.head.kill()
        time.sleep(HEAD_S)
        self._begin()
        eventually(lambda: self.head.cpus() > 0, patience_s=START_S, pause_s=1)

    def slow_host(self) -> None:
        """A host has a quarter of its time for a while."""
        self.goes.slow_down(SLOW_S)

    def add_host(self) -> None:
        """The spare host joins."""
        self.spare.join(self.head, env=self.variables)


EVENTS = {
    f"host killed, another after {SPARE_S:g} s": Cluster.kill_host,
    f"cable out for {CUT_S:g} s": Cluster.cut_cable,
    f"head killed, back after {HEAD_S:g} s": Cluster.kill_head,
    f"host slow for {SLOW_S:g} s": Cluster.slow_host,
    "host joins": Cluster.add_host,
}


def variables(home: Path) -> dict[str, str]:
    """Of all that runs on the hosts."""
    return {
        "RAYAPP_HOME": str(home), "MLFLOW_TRACKING_URI": "", "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT), "NO_PROXY": "*", "no_proxy": "*",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{HAPROXY}/haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{HAPROXY}/admin.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": HAPROXY,
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{HAPROXY}/server-state",
    }  # fmt: skip


@contextlib.contextmanager
def redis_server(folder: Path, *, wanted: bool) -> Iterator[str | None]:
    """The address of a Redis beside the hosts."""
    if not wanted:
        yield None
        return
    words = ["redis-server", "--port", str(REDIS_PORT), "--bind", OUTSIDE, "--protected-mode", "no", "--save", ""]
    with (folder / "redis.log").open("wb") as log:
        server = subprocess.Popen([*words, "--dir", str(folder)], stdout=log, stderr=log)  # noqa: S603
    try:
        yield f"{OUTSIDE}:{REDIS_PORT}"
    finally:
        server.kill()
        server.wait()
