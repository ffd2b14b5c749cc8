"""`make bench-chaos`: kill -9 of a replica, of HAProxy, of its manager and of Serve's controller, under load.

32 clients post as fast as they are answered, which shows the speed, and others at a constant rate, whose failures tell
how long it was down for those who do not wait. No client sends a request twice.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import psutil
from rich.table import Table

from benchmarks import conditions, frame, load, processes, servers
from benchmarks.load import Answer, Client, Question
from benchmarks.peers.export import export
from benchmarks.peers.network import build_model
from benchmarks.pictures import picture
from rayapp.errors import RayAppError

NUM_CLIENTS, RATE = 32, 50.0
BEFORE_S = 6.0  # of undisturbed load before each kill, against which the speed is judged
VICTIMS = {"replica": processes.REPLICAS, "HAProxy": processes.HAPROXY, "manager": processes.MANAGER}
VICTIMS |= {"controller": processes.CONTROLLER}


@dataclass(frozen=True)
class Kill:
    """A process was killed; the answers until end_s belong to it."""

    victim: str
    at_s: float
    end_s: float


@dataclass(frozen=True)
class Damage:
    """What a kill did to the clients. full_speed_s is None where the speed did not come back in the time watched."""

    victim: str
    requests: int
    failed_fast: int  # of the clients that wait for their answer
    failed_steady: int  # of those at a constant rate
    problems: dict[str, int]
    longest_gap_s: float
    full_speed_s: float | None


Bench = frame.Bench[Damage]


def main(argv: Sequence[str] | None = None) -> int:
    """0 when every kill was measured; how many requests it cost is for the reader to judge. 130 when interrupted."""
    return frame.bench_main(parser(), measure, conclude, argv)


def parser() -> frame.Parser:
    """The command line."""
    parser = frame.Parser("chaos", __doc__)
    servers.add_options(parser)
    parser.add_argument("--watch", type=float, default=45.0, help="seconds that each kill is watched [45]")
    parser.add_argument("--victims", nargs="+", choices=VICTIMS, default=list(VICTIMS), help="what is killed [all]")
    parser.add_argument("--bundle", type=frame.path, help="a bundle to serve [one with random weights]")
    return parser


def measure(bench: Bench) -> None:
    """All kills."""
    options = bench.options
    where = {
        "versions": conditions.versions(),
        "load": f"{NUM_CLIENTS} clients and {RATE:g} requests/s, {options.replicas} replicas behind HAProxy",
    }
    num_kills = len(options.victims)
    bench.begin(where, num_rows=num_kills, seconds=60 + num_kills * (BEFORE_S + options.watch))
    site = servers.Site.at(bench.scratch / "home")
    site.promote(site.register(options.bundle or export(build_model(), bench.scratch / "bundle").folder))
    with servers.champion(bench, site, "chaos.log") as server:
        frame.run_async(_kill_all(server, bench))


async def _kill_all(server: servers.Server, bench: Bench) -> None:
    asked = [load.question([picture(seed)]) for seed in range(16)]
    fast, steady = Client(server.url), Client(server.url)

    async def kill() -> None:
        await asyncio.sleep(3)
        for victim in bench.options.victims:
            await asyncio.sleep(BEFORE_S)
            process = _find(server, VICTIMS[victim])
            at_s = time.monotonic()
            process.kill()
            await asyncio.sleep(bench.options.watch)
            found = damage(Kill(victim, at_s, time.monotonic()), fast.answers, steady.answers)
            failed = found.failed_fast + found.failed_steady
            bench.add(found, f"kill -9 of {victim:<12} {failed} of {found.requests:,} requests failed")

    async with fast, steady:
        await load.during(kill(), partial(_fast, fast, asked), partial(_steady, steady, asked))


async def _fast(client: Client, asked: Sequence[Question], until: asyncio.Event) -> None:
    await load.closed_loop(client, asked, clients=NUM_CLIENTS, until=until)


async def _steady(client: Client, asked: Sequence[Question], until: asyncio.Event) -> None:
    await load.open_loop(client, asked, rate=RATE, until=until)


def _find(server: servers.Server, role: str) -> psutil.Process:
    found = processes.in_role(server.processes(), role)
    if not found:
        raise RayAppError(f"no process is there for '{role}'; is rayapp serve running with HAProxy?")
    return found[0]


def damage(kill: Kill, fast: Sequence[Answer], steady: Sequence[Answer]) -> Damage:
    """What the answers that came between a kill and the end of its watch say."""
    own_fast, own_steady = (
        [a for a in answers if kill.at_s <= a.done_s <= kill.end_s] for answers in (fast, steady)
    )  # fmt: skip
    failed_fast, failed_steady = load.failures(own_fast), load.failures(own_steady)
    return Damage(
        victim=kill.victim,
        requests=len(own_fast) + len(own_steady),
        failed_fast=failed_fast.total(),
        failed_steady=failed_steady.total(),
        problems=dict(failed_fast + failed_steady),
        longest_gap_s=load.longest_gap_s(own_fast, start_s=kill.at_s, end_s=kill.end_s),
        full_speed_s=load.seconds_to_full_speed(fast, event_s=kill.at_s, end_s=kill.end_s),
    )


def conclude(bench: Bench) -> dict[str, Any]:
    """A row a kill."""
    table = Table(
        "kill -9 of", "requests", f"failed of {NUM_CLIENTS} clients", f"failed at {RATE:g}/s", "longest gap (s)",
        "full speed after (s)", "problems",
    )  # fmt: skip
    for one in bench.rows:
        table.add_row(
            one.victim, f"{one.requests:,}", str(one.failed_fast), str(one.failed_steady), f"{one.longest_gap_s:.2f}",
            "not in the time watched" if one.full_speed_s is None else f"{one.full_speed_s:.1f}",
            ", ".join(f"{problem} {count}" for problem, count in one.problems.items()) or "none",
        )  # fmt: skip
    bench.console.print(table)
    return {"kills": [asdict(one) for one in bench.rows], "passed": True}


if __name__ == "__main__":
    sys.exit(main())
