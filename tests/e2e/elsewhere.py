"""Another machine, as far as a server can tell: a network namespace with an address of its own. Linux, root only."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

from tests.support.namespaces import ip, require_namespaces

HERE, THERE = "10.213.77.1", "10.213.77.2"
ASK = """
import http.client, sys
connection = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=60)
try:
    connection.request("GET", sys.argv[3])
    print(connection.getresponse().status)
except OSError as error:
    print(type(error).__name__)
"""


class Elsewhere:
    """A machine beside this one, which reaches this one at HERE."""

    def __init__(self, name: str) -> None:
        self._name = name

    def get(self, port: int, path: str = "/", host: str = HERE) -> str:
        """The status of what this machine answers, or the name of the error ("ConnectionRefusedError")."""
        words = ["ip", "netns", "exec", self._name, sys.executable, "-c", ASK, host, str(port), path]
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=120).stdout.strip()


@contextlib.contextmanager
def elsewhere() -> Iterator[Elsewhere]:
    """The namespace, and a cable to it. Skips where there can be none, or fails for root in CI."""
    require_namespaces()
    name = f"rayapp-{os.getpid()}"
    here, there = f"ra{os.getpid()}", f"rb{os.getpid()}"
    try:
        ip("netns", "add", name)
        ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", name)
        ip("address", "add", f"{HERE}/30", "dev", here)
        ip("link", "set", here, "up")
        ip("-n", name, "address", "add", f"{THERE}/30", "dev", there)
        ip("-n", name, "link", "set", there, "up")
        yield Elsewhere(name)
    finally:
        for words in (("link", "del", here), ("netns", "del", name)):
            subprocess.run(["ip", *words], capture_output=True, check=False)
