"""Several hosts on one machine: network namespaces with addresses, names and a /tmp/ray of their own. Linux, root only.

All else is shared, as on a network file system.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import psutil

from tests.support.namespaces import ip, require_namespaces
from tests.support.processes import kill
from tests.support.wait import until

NETWORK, PORT = "10.78.0", 6379
RAY = str(Path(sys.executable).with_name("ray"))
# hostname is the host's own (unshare --uts), and so is /tmp/ray (unshare --mount)
INTO = 'hostname "$1"; mkdir -p /tmp/ray; mount --bind "$2" /tmp/ray; shift 2; exec "$@"'


class Host:
    """A machine of its own, as far as what runs on it can tell."""

    def __init__(self, number: int, folder: Path) -> None:
        self.name, self.address = f"node{number}", f"{NETWORK}.1{number}"
        self._space, self._cable = f"rayapp-{os.getpid()}-{number}", f"rh{os.getpid()}n{number}"
        self._ray = folder / self.name
        self._ray.mkdir()

    def connect(self, bridge: str, others: int) -> None:
        """Lay its cable. Its own name stands for 127.0.1.1, as Debian and Ubuntu have it."""
        ip("netns", "add", self._space)
        ip("link", "add", self._cable, "type", "veth", "peer", "name", "eth0", "netns", self._space)
        ip("link", "set", self._cable, "master", bridge, "up")
        for words in (("address", "add", f"{self.address}/24", "dev", "eth0"), ("link", "set", "eth0", "up")):
            ip("-n", self._space, *words)
        ip("-n", self._space, "link", "set", "lo", "up")
        names = {f"node{n}": f"{NETWORK}.1{n}" for n in range(1, others + 1)} | {self.name: "127.0.1.1"}
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in names.items())]
        self._files.mkdir(parents=True)
        (self._files / "hosts").write_text("\n".join(lines) + "\n")

    @property
    def _files(self) -> Path:
        """What `ip netns exec` lays over /etc."""
        return Path("/etc/netns") / self._space

    def start(
        self, *words: str, env: Mapping[str, str] | None = None, log: IO[str] | int = subprocess.DEVNULL
    ) -> subprocess.Popen[bytes]:
        """Start a program on it."""
        into = ["ip", "netns", "exec", self._space, "unshare", "--mount", "--uts", "--propagation", "private"]
        command = [*into, "sh", "-c", INTO, "sh", self.name, str(self._ray), *words]
        return subprocess.Popen(command, env=os.environ | (env or {}), stdout=log, stderr=log)

    def join(self, *words: str) -> None:
        """`ray start` with its own address; what it starts ends with kill()."""
        options = (f"--node-ip-address={self.address}", "--object-store-memory=80000000", "--disable-usage-stats")
        self.start(RAY, "start", *words, *options, "--block")

    def cpus(self) -> float:
        """All that the cluster whose head it is has; 0 until there is one."""
        with tempfile.TemporaryFile("w+") as log:
            self.start(RAY, "status", f"--address={self.address}:{PORT}", log=log).wait()
            log.seek(0)
            found = re.search(r"/([\d.]+) CPU", log.read())
        return float(found[1]) if found else 0.0

    def kill(self) -> None:
        """The machine is gone: SIGKILL of all that runs on it."""
        pids = subprocess.run(["ip", "netns", "pids", self._space], capture_output=True, text=True, check=False).stdout
        for pid in pids.split():
            with contextlib.suppress(psutil.NoSuchProcess):
                kill(psutil.Process(int(pid)))

    def remove(self) -> None:
        """End it, and leave nothing of it."""
        self.kill()
        subprocess.run(["ip", "netns", "del", self._space], capture_output=True, check=False)
        shutil.rmtree(self._files, ignore_errors=True)


@contextlib.contextmanager
def ray_hosts(workers: int) -> Iterator[tuple[Host, list[Host]]]:
    """A head without CPUs, and so many hosts with one each that have joined it."""
    with hosts(workers + 1) as (head, *others):
        head.join("--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false")
        for host in others:
            host.join(f"--address={head.address}:{PORT}", "--num-cpus=1")
        until(lambda: head.cpus() == workers, patience_s=120, otherwise=lambda: "the hosts do not join")
        yield head, others


@contextlib.contextmanager
def hosts(number: int) -> Iterator[list[Host]]:
    """So many hosts on one cable. Skips where there can be none, or fails for root in CI."""
    require_namespaces()
    bridge = f"rh{os.getpid()}"
    folder = Path(tempfile.mkdtemp(prefix="rh", dir="/tmp"))  # short: a socket's path has at most 107 characters
    found = [Host(n, folder) for n in range(1, number + 1)]
    try:
        ip("link", "add", bridge, "type", "bridge")
        ip("link", "set", bridge, "up")
        for host in found:
            host.connect(bridge, number)
        yield found
    finally:
        for host in found:
            host.remove()
        subprocess.run(["ip", "link", "del", bridge], capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)
