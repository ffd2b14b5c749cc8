"""`make bench-mutations`: thousands of damaged requests to a server; each has to be answered as the contract says.

    make bench-mutations                                              # a server of its own, with a tiny model
    make bench-mutations ARGS='--url http://127.0.0.1:3000 --count 5000 --seed 0 --pid 1234'
    make bench-mutations ARGS='--seed 0 --only 1234'                  # one of them again, with its bytes

After each comes a good request, whose answer must not change. All are sent --rounds times: the memory of a server that
keeps nothing is the same after the first round and after the last (the first fills what malloc keeps, for images of up
to 100 megapixels are among them). The last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks import conditions, frame
from rayapp.errors import RayAppError
from tests.contract.mutations import good, numbered
from tests.contract.wire import Answer, complaint, same, send
from tests.support.bundles import tiny_served
from tests.support.serving import client_of

Address = tuple[str, int]
SHOWN_BYTES = 3_000  # of a request that failed
REQUEST_S = 0.03  # of one, and of the good one after it, about


def main(argv: Sequence[str] | None = None) -> int:
    """0 where every answer was right, 1 where one was not; 130 when interrupted."""
    options = parser().parse_args(argv)
    if options.only is None:
        return frame.bench_main(parser(), measure, conclude, argv)
    with _server(options) as (address, _):
        return _again(address, options.seed, options.only)


def parser() -> frame.Parser:
    """The command line."""
    parser = frame.Parser("mutations", __doc__, quick={"count": 200, "rounds": 1})
    parser.add_argument("--url", help="server [one of its own, with a tiny model]")
    parser.add_argument("--pid", type=int, action="append", default=[], help="process to weigh; may be repeated")
    parser.add_argument("--count", type=frame.count, default=5000, help="requests a round [5000]")
    parser.add_argument("--rounds", type=frame.count, default=3, help="how often all are sent [3]")
    parser.add_argument("--seed", type=int, default=0, help="which requests [0]")
    parser.add_argument("--only", type=int, help="send one request of the seed and show it")
    return parser


# --- the requests -----------------------------------------------------------------------------------------------------


@dataclass
class Round:
    """What came of all requests, once. statuses: how many answers by what was damaged, and by their status."""

    statuses: dict[str, dict[str, int]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")
    seconds: float = 0.0
    rss_mib: float = 0.0


Bench = frame.Bench[Round]


def measure(bench: Bench) -> None:
    """All rounds."""
    options = bench.options
    where = {"versions": conditions.versions(), "requests": f"{options.count} a round, seed {options.seed}"}
    bench.begin(where, num_rows=options.rounds, seconds=20 + options.rounds * options.count * REQUEST_S)
    with _server(options) as (address, pids):
        usual = send(address, good())
        if usual is None or usual.status != 200:
            raise RayAppError(f"a good request is answered {usual}; is the server ready?")
        bench.more |= {"seed": options.seed, "rss_mib_before": _rss_mib(pids)}
        for _ in range(options.rounds):
            one = _round(address, usual, options)
            one.rss_mib = _rss_mib(pids)
            weight = f", the server takes {one.rss_mib:.0f} MiB" if pids else ""
            bench.add(one, f"{options.count} requests in {one.seconds:.0f} s, {len(one.faults)} faults{weight}")


def conclude(bench: Bench) -> dict[str, Any]:
    """The statuses of the first round, the growth of memory and the faults."""
    rounds, console = bench.rows, bench.console
    _show(console, rounds[0])
    growth = rounds[-1].rss_mib / rounds[0].rss_mib - 1 if rounds[0].rss_mib else None
    if growth is not None:
        console.print(f"memory from the first round to the last: {growth:+.1%}")
    faults = list(dict.fromkeys(fault for one in rounds for fault in one.faults))
    for fault in faults:
        console.print(fault, highlight=False, markup=False)
    return {
        "passed": not faults, "requests": bench.options.count * len(rounds), "faults": faults,
        "rss_mib": [round(one.rss_mib, 1) for one in rounds], "growth": growth,
    }  # fmt: skip


def _round(address: Address, usual: Answer, options: argparse.Namespace) -> Round:
    done, seen = Round(), Counter[tuple[str, str]]()
    started = time.perf_counter()
    for index in range(options.count):
        case = numbered(options.seed, index)
        began = time.perf_counter()
        answer = send(address, case)
        done.slowest = max(done.slowest, (time.perf_counter() - began, f"{index} {case.name}"))
        seen[case.layer, str(answer.status) if answer else "none"] += 1
        if fault := complaint(case, answer) or _change(usual, send(address, good())):
            done.faults.append(f"--seed {options.seed} --only {index} ({case.name}): {fault}")
    for (layer, status), num in sorted(seen.items()):
        done.statuses.setdefault(layer, {})[status] = num
    done.seconds = time.perf_counter() - started
    return done


def _rss_mib(pids: Sequence[int]) -> float:
    """What the processes hold in memory together (MiB); 0 where none is known."""
    return sum(psutil.Process(pid).memory_info().rss for pid in pids) / 2**20


def _change(usual: Answer, after: Answer | None) -> str | None:
    if after is None or after.status != 200:
        return f"the good request after it is answered {after}"
    return None if same(usual.body, after.body) else f"the good request after it has another answer: {after.body!r}"


def _again(address: Address, seed: int, index: int) -> int:
    case = numbered(seed, index)
    answer = send(address, case)
    fault = complaint(case, answer)
    shown = case.data if len(case.data) <= SHOWN_BYTES else case.data[:SHOWN_BYTES] + b"..."
    print(f"{case.name}\n{shown!r}\n{answer}\n{fault or 'as it should be'}")
    return 1 if fault else 0


def _show(console: Console, one: Round) -> None:
    statuses = sorted({status for found in one.statuses.values() for status in found})
    table = Table("damaged", *statuses, title="answers, by what was damaged (none: to a part of a request)")
    for layer, found in one.statuses.items():
        table.add_row(layer, *(str(found.get(status, "")) for status in statuses))
    console.print(table)
    console.print(f"slowest: {one.slowest[0]:.2f} s, {one.slowest[1]}", highlight=False, markup=False)


# --- a server of its own ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _server(options: argparse.Namespace) -> Iterator[tuple[Address, list[int]]]:
    """Where the server listens, and its processes as far as they are known."""
    if options.url:
        url = urlsplit(options.url)
        yield (url.hostname or "127.0.0.1", url.port or 80), options.pid
        return
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    try:
        yield ours.recv(), [process.pid or 0]
    finally:
        process.terminate()
        process.join(20)


def _serve(parent: Connection) -> None:
    with tempfile.TemporaryDirectory() as folder, client_of(tiny_served(Path(folder))) as client:
        parent.send((client.base_url.host, client.base_url.port))
        threading.Event().wait()


if __name__ == "__main__":
    sys.exit(main())
