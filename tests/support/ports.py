"""Ports of this machine for the servers of tests, each given to one test at a time."""

from __future__ import annotations

import random
import socket

# Above the ports of Ray's workers (10002 to 19999), below those that Linux gives to connections (32768 and more): what
# connects to somebody meanwhile does not take a port between our look and the server's start.
RANGE = range(20_000, 32_768)
_marks: list[socket.socket] = []
_chance = random.SystemRandom()  # pytest-randomly seeds the other one alike in every process


def free_port() -> int:
    """A port on which nobody listens, and which no other test gets while this process lives.

    The mark of a port that is given is a UDP socket of the same number: servers of the tests listen on TCP alone.
    """
    for port in _chance.sample(RANGE, len(RANGE)):
        mark = socket.socket(type=socket.SOCK_DGRAM)
        try:
            mark.bind(("127.0.0.1", port))
            with socket.socket() as probe:
                probe.bind(("", port))
        except OSError:
            mark.close()
            continue
        _marks.append(mark)
        return port
    raise AssertionError(f"no port of {RANGE.start} to {RANGE.stop - 1} is free")


def free_ports(count: int) -> list[int]:
    """Different ports on which nobody listens."""
    return [free_port() for _ in range(count)]
