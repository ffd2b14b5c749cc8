"""`make bench-hosts`: what each verb loses and repeats when a host of its cluster dies, is cut off, is slow or joins.

The hosts are network namespaces of this machine, with names, addresses and a Ray of their own: a head without CPUs, two
hosts of one CPU, and a spare one. Needs root and iproute2; the death of the head needs redis-server too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from rich.table import Table

from benchmarks import conditions, frame, load
from benchmarks.host_cluster import EVENTS, START_S, Cluster, redis_server
from benchmarks.host_work import NUM_IMAGES, BatchPrediction, Sweep, Training, Work
from benchmarks.load import Answer, Client, Question
from benchmarks.peers.export import export
from benchmarks.peers.network import build_model
from benchmarks.pictures import picture
from benchmarks.servers import ROOT, Site, tail
from rayapp.errors import RayAppError
from tests.support.hosts import Host, hosts
from tests.support.wait import eventually

WORKS: dict[str, Callable[..., Work]] = {
    "train": Training,
    "train elastic": partial(Training, workers="1..2"),
    "tune": Sweep,
    "batch-predict": BatchPrediction,
}
SERVE = "serve"
NAMES = {method.__name__.replace("_", "-"): name for name, method in EVENTS.items()}
NUM_CLIENTS, SERVE_PORT = 8, 3000
ONE_TRY = aiohttp.ClientTimeout(total=5, sock_connect=1)  # how long a client waits for one host
BEFORE_S, AFTER_S, END_S, LOOK_S = 15.0, 60.0, 900.0, 0.5  # watched before; serving after; the rest at most


@dataclass(frozen=True)
class Outcome:
    """What an event did to a verb. done, lost and repeated are counted in unit.

    cut_off: requests whose open connection broke. problems: other failed requests. full_speed_s: None where the speed
    did not come back while it was watched. failed: why it did not come to its end; then there are no figures.
    """

    verb: str
    event: str
    unit: str = ""
    done: int = 0
    lost: int = 0
    repeated: int = 0
    cut_off: int = 0
    problems: dict[str, int] = field(default_factory=dict)
    longest_gap_s: float = 0.0
    full_speed_s: float | None = None
    failed: str = ""


Bench = frame.Bench[Outcome]


def main(argv: Sequence[str] | None = None) -> int:
    """0 where nothing was lost and no finished work repeated, else 1; 130 when interrupted."""
    return frame.bench_main(parser(), measure, conclude, argv)


def parser() -> frame.Parser:
    """The command line."""
    parser = frame.Parser("hosts", __doc__)
    verbs = [*WORKS, SERVE]
    parser.add_argument("--verbs", nargs="+", choices=verbs, default=verbs, help="what is disturbed [all]")
    parser.add_argument("--events", nargs="+", choices=NAMES, default=list(NAMES), help="by what [all]")
    return parser


def measure(bench: Bench) -> None:
    """Each verb with each event, each on a cluster of its own."""
    options = bench.options
    _require(redis="kill-head" in options.events)
    cells = [(verb, NAMES[event]) for verb in options.verbs for event in options.events]
    bench.begin({"versions": conditions.versions()}, num_rows=len(cells), seconds=150 * len(cells))
    bundle = export(build_model(), bench.scratch / "bundle").folder
    images = _images(bench.scratch / "images")
    for number, (verb, event) in enumerate(cells):
        folder = bench.scratch / f"{number}"
        site = Site.at(folder)
        site.promote(site.register(bundle))
        try:
            outcome = _cell(options.logs, verb, event, folder, images)
        except RayAppError as error:  # costs the rest alone
            outcome = Outcome(verb, event, failed=str(error))
        bench.add(outcome, _line(outcome))


def _cell(logs: Path, verb: str, event: str, folder: Path, images: Path) -> Outcome:
    with hosts(4) as found, redis_server(folder, wanted=EVENTS[event] is Cluster.kill_head) as redis:
        cluster = Cluster(found, folder, redis)
        cluster.start()
        log = logs / f"hosts-{verb}-{EVENTS[event].__name__}.log".replace(" ", "-")
        log.parent.mkdir(parents=True, exist_ok=True)
        if verb == SERVE:
            return frame.run_async(_served(cluster, event, log, folder))
        return _worked(cluster, verb, event, WORKS[verb](folder, images, log))


def _require(*, redis: bool) -> None:
    if os.geteuid() != 0 or not shutil.which("ip"):
        raise RayAppError("hosts are network namespaces: run this as root, with iproute2 installed")
    if redis and not shutil.which("redis-server"):
        raise RayAppError(
            "kill-head needs redis-server: install it (apt install redis-server), or leave it out of --events"
        )


def _images(folder: Path) -> Path:
    """Parquet files of so many pictures, of which few differ."""
    folder.mkdir()
    few = [picture(seed) for seed in range(16)]
    rows = [{"bytes": few[n % 16], "path": f"{n}.png"} for n in range(NUM_IMAGES)]
    pq.write_table(pa.table({"image": rows}), folder / "images.parquet", row_group_size=1024)
    return folder


# --- verbs that end ---------------------------------------------------------------------------------------------------


def _worked(cluster: Cluster, verb: str, event: str, work: Work) -> Outcome:
    """A verb is under way, the event happens, and it goes to its end: by itself, or as a job that is tried again."""
    environment = cluster.variables | {"RAY_ADDRESS": cluster.head.ray_address}
    with work.said.open("w") as log:
        driver = cluster.head.start(*work.command(), env=environment, log=log)
        _watch(work, driver, lambda: work.done > 0, START_S)
        began_s = time.monotonic()
        _watch(work, driver, lambda: time.monotonic() > began_s + BEFORE_S, START_S)
        if driver.poll() is not None:
            raise RayAppError(f"{verb} was done before anything happened: give it more work")
        work.before_event()
        event_s = time.monotonic()
        happening = threading.Thread(target=EVENTS[event], args=(cluster,), daemon=True)
        happening.start()
        if EVENTS[event] is Cluster.kill_head:
            happening.join()
            driver = cluster.head.start(*work.command(again=True), env=environment, log=log)
        _watch(work, driver, lambda: driver.poll() is not None, END_S)
        happening.join()
    if driver.returncode:
        raise RayAppError(f"{verb}, {event}: ended with code {driver.returncode}; {work.said}: {tail(work.said)}")
    end_s = work.samples[-1][0]
    ticks = _as_answers(work.samples)
    return Outcome(
        verb, event, work.unit, done=work.done, lost=work.lost(), repeated=work.repeated(), cut_off=0,
        problems={}, longest_gap_s=load.longest_gap_s(ticks, start_s=event_s, end_s=end_s),
        full_speed_s=load.seconds_to_full_speed(
            ticks, event_s=event_s, end_s=end_s, before_s=BEFORE_S, window_s=work.window_s
        ),
    )  # fmt: skip


def _watch(work: Work, driver: subprocess.Popen[bytes], happened: Callable[[], bool], longest_s: float) -> None:
    """Take samples until something has happened. Raises RayAppError where the driver fails first, or does not end."""
    until_s = time.monotonic() + longest_s
    while not happened():
        work.look(time.monotonic())
        if driver.poll() or time.monotonic() > until_s:
            why = f"ended with code {driver.returncode}" if driver.poll() else f"took more than {longest_s:g} s"
            raise RayAppError(f"{work.said}: the command {why}: {tail(work.said)}")
        time.sleep(LOOK_S)


def _as_answers(samples: Sequence[tuple[float, int]]) -> list[Answer]:
    """A good answer for each unit, at the time when it was first seen."""
    found: list[Answer] = []
    for at_s, done in samples:
        found += [Answer(at_s, at_s, "", "")] * max(0, done - len(found))
    return found


# --- serving ----------------------------------------------------------------------------------------------------------


class Balanced:
    """Clients as behind a load balancer: each request goes to the next host that takes it."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._clients = [Client(url, ONE_TRY) for url in urls]
        self._open = contextlib.AsyncExitStack()
        self.answers: list[Answer] = []

    async def __aenter__(self) -> Balanced:
        for client in self._clients:
            await self._open.enter_async_context(client)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    async def ask(self, asked: Sequence[Question], until: asyncio.Event) -> None:
        """Post from so many clients, each of which waits for its answer, until the event is set."""
        await asyncio.gather(*(self._one(number, asked, until) for number in range(NUM_CLIENTS)))

    async def _one(self, number: int, asked: Sequence[Question], until: asyncio.Event) -> None:
        while not until.is_set():
            number += 1
            sent_s = time.monotonic()
            for turn in range(len(self._clients)):
                client = self._clients[(number + turn) % len(self._clients)]
                answer = await client.post(asked[number % len(asked)])
                if not _not_taken(answer):
                    break
            self.answers.append(Answer(sent_s, answer.done_s, answer.version, answer.problem))
            if not answer.good:
                await asyncio.sleep(load.RETRY_PAUSE_S)


def _not_taken(answer: Answer) -> bool:
    """Whether nobody listened, nothing came back to the first packet, or the host said that it is not ready."""
    return answer.problem in ("ClientConnectorError", "ConnectionTimeoutError", "status 503")


CUT_OFF = ("ServerDisconnectedError", "ClientOSError", "ConnectionResetError", "TimeoutError", "SocketTimeoutError")


async def _served(cluster: Cluster, event: str, log: Path, folder: Path) -> Outcome:
    """Two replicas on two hosts, a proxy on every host, and clients that know them all."""
    _deploy(cluster, log, folder)
    asked = [load.question([picture(seed)]) for seed in range(16)]
    async with Balanced([_url(host) for host in cluster.serving]) as balanced:
        event_s = 0.0

        async def happen() -> None:
            nonlocal event_s
            await asyncio.sleep(BEFORE_S)
            event_s = time.monotonic()
            await asyncio.to_thread(EVENTS[event], cluster)
            await asyncio.sleep(AFTER_S)

        await load.during(happen(), partial(balanced.ask, asked))
    end_s, failed = time.monotonic(), load.failures(balanced.answers)
    cut_off = sum(count for problem, count in failed.items() if problem in CUT_OFF)
    return Outcome(
        SERVE, event, "requests", done=len(balanced.answers), lost=failed.total() - cut_off, repeated=0,
        cut_off=cut_off, problems={problem: count for problem, count in failed.items() if problem not in CUT_OFF},
        longest_gap_s=load.longest_gap_s(balanced.answers, start_s=event_s, end_s=end_s),
        full_speed_s=load.seconds_to_full_speed(balanced.answers, event_s=event_s, end_s=end_s, before_s=BEFORE_S - 5),
    )  # fmt: skip


def _deploy(cluster: Cluster, log: Path, folder: Path) -> None:
    """`serve deploy` of serve_configs/local.yaml for two hosts; returns once all proxies answer."""
    config = yaml.safe_load((ROOT / "serve_configs/local.yaml").read_text())
    config |= {"proxy_location": "EveryNode"}
    config["http_options"] |= {"host": "0.0.0.0", "port": SERVE_PORT}  # noqa: S104 - of hosts that only we reach
    config["applications"][0]["deployments"][0] |= {"num_replicas": 2, "max_replicas_per_node": 1}
    file = folder / "serve.yaml"
    file.write_text(yaml.safe_dump(config))
    environment = cluster.variables | {"RAY_DASHBOARD_ADDRESS": "http://127.0.0.1:8265"}
    deploy = str(Path(sys.executable).with_name("serve"))

    def deployed() -> bool:
        with log.open("w") as said:
            return cluster.head.start(deploy, "deploy", str(file), env=environment, log=said).wait() == 0

    if not eventually(deployed, patience_s=START_S, pause_s=2):  # the dashboard comes a moment after the head
        raise RayAppError(f"serve deploy failed; {log}: {tail(log)}")
    if not eventually(lambda: all(map(_is_ready, cluster.serving)), patience_s=START_S, pause_s=1):
        raise RayAppError(f"not every proxy answered in {START_S:g} s; {log}: {tail(log)}")


def _url(host: Host) -> str:
    """Of its proxy."""
    return f"http://{host.address}:{SERVE_PORT}"


def _is_ready(host: Host) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{_url(host)}/readyz", timeout=5, trust_env=False).status_code == 200
    return False


# --- what came of it --------------------------------------------------------------------------------------------------


def conclude(bench: Bench) -> dict[str, Any]:
    """A row a verb and event."""
    table = Table("verb", "event", "done", "lost", "repeated", "cut off", "longest gap (s)", "full speed after (s)", "")
    for one in bench.rows:
        table.add_row(one.verb, one.event, *(("FAILED",) if one.failed else _figures(one)))
    bench.console.print(table)
    again = [one for one in bench.rows if one.repeated and one.unit != Training.unit]  # a step is no finished work
    passed = not again and not any(one.failed or one.lost for one in bench.rows)
    return {"outcomes": [asdict(one) for one in bench.rows], "passed": passed}


def _figures(one: Outcome) -> tuple[str, ...]:
    return (
        f"{one.done:,} {one.unit}", str(one.lost), str(one.repeated), str(one.cut_off), f"{one.longest_gap_s:.1f}",
        "not seen" if one.full_speed_s is None else f"{one.full_speed_s:.1f}",
        ", ".join(f"{problem} {count}" for problem, count in one.problems.items()),
    )  # fmt: skip


def _line(one: Outcome) -> str:
    if one.failed:
        return f"{one.verb:<13} {one.event:<34} FAILED: {one.failed}"
    speed = "full speed not seen" if one.full_speed_s is None else f"full speed after {one.full_speed_s:.1f} s"
    return (
        f"{one.verb:<13} {one.event:<34} {one.done:,} {one.unit}: {one.lost} lost, {one.repeated} repeated,"
        f" {one.cut_off} cut off, {speed}"
    )


if __name__ == "__main__":
    sys.exit(main())
