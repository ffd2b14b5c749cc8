"""The cluster of `make bench-hosts`, a head without CPUs and three hosts of one CPU each, and what happens to them."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.servers import ROOT
from rayapp.errors import RayAppError
from rayapp.serve.haproxy import private_haproxy
from tests.support.hosts import OUTSIDE, Host
from tests.support.wait import eventually

START_S, REDIS_PORT = 300.0, 6390  # longest start
SPARE_S, CUT_S, SLOW_S, HEAD_S = 10.0, 20.0, 30.0, 5.0  # until the spare host joins; cable out; slow; head is away


class Cluster:
    """Four hosts with Ray on three of them, and what can happen to these."""

    def __init__(self, found: Sequence[Host], home: Path, redis: str | None) -> None:
        self.head, self.stays, self.goes, self.spare = found
        self._home, self._redis = home, {"RAY_REDIS_ADDRESS": redis} if redis else {}

    @property
    def variables(self) -> dict[str, str]:
        """Of all that runs on the hosts."""
        return {
            "RAYAPP_HOME": str(self._home), "MLFLOW_TRACKING_URI": "", "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT),
            "NO_PROXY": "*", "no_proxy": "*",
        }  # fmt: skip

    @property
    def serving(self) -> tuple[Host, ...]:
        """Those that have a proxy from the start."""
        return self.head, self.stays, self.goes

    def start(self) -> None:
        """Returns once both hosts have joined the head."""
        self._begin()
        self._join(self.stays)
        self._join(self.goes)
        if not eventually(lambda: self.head.cpus() == 2, patience_s=START_S, pause_s=1):
            raise RayAppError(f"the hosts did not join their head in {START_S:g} s")

    def _begin(self) -> None:
        self.head.begin("--dashboard-host=127.0.0.1", env=self._with_haproxy(self.head) | self._redis)

    def _join(self, host: Host) -> None:
        host.join(self.head, env=self._with_haproxy(host))

    def _with_haproxy(self, host: Host) -> dict[str, str]:
        """The variables of a host's Ray: hosts share their disk, so each has to have files of its own for HAProxy."""
        folder = self._home / host.name
        folder.mkdir(exist_ok=True)
        return self.variables | private_haproxy(folder, "0.0.0.0")  # noqa: S104 - only we reach the hosts

    def kill_host(self) -> None:
        """A host dies, and another one takes its place."""
        self.goes.kill()
        time.sleep(SPARE_S)
        self._join(self.spare)

    def cut_cable(self) -> None:
        """A host is out of reach for a while."""
        self.goes.cut()
        time.sleep(CUT_S)
        self.goes.mend()

    def kill_head(self) -> None:
        """The head dies with all that runs on it, and another machine takes its place, with what Redis kept for it."""
        self.head.kill()
        self.head.clear()
        time.sleep(HEAD_S)
        self._begin()
        eventually(lambda: self.head.cpus() > 0, patience_s=START_S, pause_s=1)

    def slow_host(self) -> None:
        """A host has a quarter of its time for a while."""
        self.goes.slow_down(SLOW_S)

    def add_host(self) -> None:
        """The spare host joins."""
        self._join(self.spare)


EVENTS = {
    f"host killed, another after {SPARE_S:g} s": Cluster.kill_host,
    f"cable out for {CUT_S:g} s": Cluster.cut_cable,
    f"head killed, back after {HEAD_S:g} s": Cluster.kill_head,
    f"host slow for {SLOW_S:g} s": Cluster.slow_host,
    "host joins": Cluster.add_host,
}


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
