"""`make bench-chaos`: kill -9 of a replica, of HAProxy, of its manager and of Serve's controller, under load.

32 clients post as fast as they are answered, which shows the speed, and others at a constant rate, whose failures tell
how long it was down for those who do not wait. No client sends a request twice.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks import conditions, load, processes, servers
from benchmarks.load import Answer, Client, Question
from benchmarks.paths import path
from benchmarks.peers.export import export
from benchmarks.peers.network import build_model
from benchmarks.serving import picture
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


def main(argv: Sequence[str] | None = None) -> int:
    """0 when every kill was measured; how many requests it cost is for the reader to judge."""
    parser = argparse.ArgumentParser(prog="make bench-chaos", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--replicas", type=int, default=2, help="replicas of rayapp serve [2]")
    parser.add_argument("--watch", type=float, default=45.0, help="seconds that each kill is watched [45]")
    parser.add_argument("--victims", nargs="+", choices=VICTIMS, default=list(VICTIMS), help="what is killed [all]")
    parser.add_argument("--bundle", type=path, help="a bundle to serve [one with random weights]")
    parser.add_argument("--serve-args", default="", metavar="'--app.x Y'", help="more settings for rayapp serve")
    parser.add_argument("--logs", type=path, default="bench-logs", help="folder of the servers' output")
    options = parser.parse_args(argv)
    servers.end_on_sigterm()
    console = Console(width=None if sys.stdout.isatty() else 140)
    try:
        with tempfile.TemporaryDirectory(prefix="rb-", dir="/tmp") as scratch:  # Ray's sockets need short paths
            result = measure(options, Path(scratch), console)
    except RayAppError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result))
    return 0


def measure(options: argparse.Namespace, scratch: Path, console: Console) -> dict[str, Any]:
    """All that was measured, as one JSON object; tables go to the console."""
    where = {
        "machine": conditions.machine(), "versions": conditions.versions(),
        "load": f"{NUM_CLIENTS} clients and {RATE:g} requests/s, {options.replicas} replicas behind HAProxy",
    }  # fmt: skip
    conditions.show(console, where)
    site = servers.Site.at(scratch / "home")
    site.promote(site.register(options.bundle or export(build_model(), scratch / "bundle").folder))
    command = servers.rayapp(site, scratch, options.serve_args.split(), num_replicas=options.replicas)
    with servers.running(command, options.logs / "chaos.log") as server:
        fast, steady = Client(server.url), Client(server.url)
        kills = asyncio.run(_kill_all(server, fast, steady, options))
    damages = [damage(kill, fast.answers, steady.answers) for kill in kills]
    _show(console, damages)
    return {"conditions": where, "kills": [asdict(one) for one in damages]}


async def _kill_all(server: servers.Server, fast: Client, steady: Client, options: argparse.Namespace) -> list[Kill]:
    asked = [load.question([picture(seed)]) for seed in range(16)]
    kills: list[Kill] = []

    async def kill() -> None:
        await asyncio.sleep(3)
        for victim in options.victims:
            await asyncio.sleep(BEFORE_S)
            process = _find(server, VICTIMS[victim])
            at_s = time.monotonic()
            process.kill()
            await asyncio.sleep(options.watch)
            kills.append(Kill(victim, at_s, time.monotonic()))

    async with fast, steady:
        await load.during(kill(), partial(_fast, fast, asked), partial(_steady, steady, asked))
    return kills


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


def _show(console: Console, damages: Sequence[Damage]) -> None:
    table = Table(
        "kill -9 of", "requests", f"failed of {NUM_CLIENTS} clients", f"failed at {RATE:g}/s", "longest gap (s)",
        "full speed after (s)", "problems",
    )  # fmt: skip
    for one in damages:
        table.add_row(
            one.victim, f"{one.requests:,}", str(one.failed_fast), str(one.failed_steady), f"{one.longest_gap_s:.2f}",
            "not in the time watched" if one.full_speed_s is None else f"{one.full_speed_s:.1f}",
            ", ".join(f"{problem} {count}" for problem, count in one.problems.items()) or "none",
        )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
