"""Several hosts on one machine: network namespaces with addresses, names and a /tmp/ray of their own. Linux, root only.

All else is shared, as on a network file system.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import psutil

from tests.support.namespaces import ip, require_namespaces
from tests.support.processes import kill

NETWORK, PORT = "10.78.0", 6379
OUTSIDE = f"{NETWORK}.1"  # this machine, as the hosts see it
RAY = str(Path(sys.executable).with_name("ray"))
# hostname is the host's own (unshare --uts), and so is /tmp/ray (unshare --mount)
INTO = 'hostname "$1"; mkdir -p /tmp/ray; mount --bind "$2" /tmp/ray; shift 2; exec "$@"'
RAY_ID = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False); print(ray.get_runtime_context().get_node_id())"


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

    @property
    def ray_address(self) -> str:
        """Of the cluster whose head it is."""
        return f"{self.address}:{PORT}"

    def begin(self, *words: str, env: Mapping[str, str] | None = None) -> None:
        """Be a cluster's head, without CPUs. words: more of `ray start`."""
        self._ray_start("--head", f"--port={PORT}", "--num-cpus=0", *words, env=env)

    def join(self, head: Host, *, env: Mapping[str, str] | None = None) -> None:
        """Be a node of one CPU of a head's cluster."""
        self._ray_start(f"--address={head.ray_address}", "--num-cpus=1", env=env)

    def _ray_start(self, *words: str, env: Mapping[str, str] | None) -> None:
        """What it starts ends with kill()."""
        options = (f"--node-ip-address={self.address}", "--object-store-memory=80000000", "--disable-usage-stats")
        self.start(RAY, "start", *words, *options, "--block", env=env)

    def output(self, *words: str) -> str:
        """What a program on it prints, until it ends."""
        with tempfile.TemporaryFile("w+") as log:
            self.start(*words, log=log).wait()
            log.seek(0)
            return log.read()

    def cpus(self) -> float:
        """All that the cluster whose head it is has; 0 until there is one."""
        found = re.search(r"/([\d.]+) CPU", self.output(RAY, "status", f"--address={self.ray_address}"))
        return float(found[1]) if found else 0.0

    def ray_id(self, head: Host) -> str:
        """Ray's own name for it, on a head's cluster that it has joined."""
        return self.output(sys.executable, "-c", RAY_ID, head.ray_address).split()[-1]

    def kill(self) -> None:
        """The machine is gone: SIGKILL of all that runs on it."""
        for process in self.processes():
            kill(process)

    def clear(self) -> None:
        """Be a new machine: Ray has never run on it."""
        shutil.rmtree(self._ray)
        self._ray.mkdir()

    def processes(self) -> list[psutil.Process]:
        """All that runs on it."""
        pids = subprocess.run(["ip", "netns", "pids", self._space], capture_output=True, text=True, check=False).stdout
        found = []
        for pid in pids.split():
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(int(pid)))
        return found

    def cut(self) -> None:
        """Pull its cable."""
        ip("link", "set", self._cable, "down")

    def mend(self) -> None:
        """Plug its cable in again."""
        ip("link", "set", self._cable, "up")

    def slow_down(self, seconds: float) -> None:
        """Take three quarters of its time: all that runs on it stands still for 0.3 s, and goes on for 0.1 s."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            processes = self.processes()
            for _ in range(10):
                for signum, pause_s in ((signal.SIGSTOP, 0.3), (signal.SIGCONT, 0.1)):
                    for process in processes:
                        kill(process, signum)
                    time.sleep(pause_s)

    def remove(self) -> None:
        """End it, and leave nothing of it."""
        self.kill()
        # the namespace lives on for minutes where a connection was not closed; its cable must not
        for words in (("link", "del", self._cable), ("netns", "del", self._space)):
            subprocess.run(["ip", *words], capture_output=True, check=False)
        shutil.rmtree(self._files, ignore_errors=True)


@contextlib.contextmanager
def hosts(number: int) -> Iterator[list[Host]]:
    """So many hosts on one cable. Skips where there can be none, or fails for root in CI."""
    require_namespaces()
    bridge = f"rh{os.getpid()}"
    folder = Path(tempfile.mkdtemp(prefix="rh", dir="/tmp"))  # short: a socket's path has at most 107 characters
    found = [Host(n, folder) for n in range(1, number + 1)]
    try:
        ip("link", "add", bridge, "type", "bridge")
        ip("address", "add", f"{OUTSIDE}/24", "dev", bridge)
        ip("link", "set", bridge, "up")
        for host in found:
            host.connect(bridge, number)
        yield found
    finally:
        for host in found:
            host.remove()
        subprocess.run(["ip", "link", "del", bridge], capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)
