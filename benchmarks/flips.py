"""`make bench-flips`: the alias is moved 20 times under a constant load; no request may fail or mix two versions.

Versions of known answers lie in a real MLflow server. Each answer must be that of the version its X-Model-Version
names. One flip is to a corrupt bundle, one happens while MLflow is stopped, one while it is frozen (SIGSTOP).
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks import conditions, frame, load, processes, servers
from benchmarks.load import Answer, Client, Question
from benchmarks.mlflow_server import MlflowServer
from benchmarks.peers.export import export
from benchmarks.peers.network import build_model
from benchmarks.pictures import expected, picture
from benchmarks.servers import Site
from rayapp.registry.uris import ModelVersion
from rayapp.vision.bundle import GRAPH

NUM_VERSIONS, NUM_IMAGES = 3, 16
TOLERANCE = 1e-4  # of a probability; two versions differ by far more, which is checked
LIMIT_S = 10.0  # with MLflow there, a good version has to be everywhere after so long
PATIENCE_S = 30.0  # then it is given up
QUIET = 100  # so many answers of the new version in a row end the wait for it
HOLD_S = 6.0  # how long a flip that must change nothing is watched
FIRST_WORD = {"good": "flip", "corrupt": "corrupt bundle", "stopped": "MLflow stopped", "frozen": "MLflow frozen"}


@dataclass(frozen=True)
class Flip:
    """One move of the alias: when it counts as done, and what the answers of its time say."""

    kind: str
    version: str
    start_s: float
    end_s: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What one flip did to the clients.

    seconds count from the move of the alias, or from MLflow's return; None where nothing changed. overlap_s is how long
    both versions served.
    """

    kind: str
    version: str
    seconds: float | None
    overlap_s: float
    requests: int
    failed: int
    mixed: int

    @property
    def fine(self) -> bool:
        """Whether no request suffered, a good version came (in time, where MLflow was there), a corrupt one never."""
        limit_s = LIMIT_S if self.kind == "good" else PATIENCE_S
        arrived = self.seconds is not None and self.seconds <= limit_s
        return not self.failed and not self.mixed and arrived == (self.kind != "corrupt")


Bench = frame.Bench[Outcome]


def main(argv: Sequence[str] | None = None) -> int:
    """0 when no request failed and every good version was everywhere within LIMIT_S, else 1; 130 when interrupted."""
    return frame.bench_main(parser(), measure, conclude, argv)


def parser() -> frame.Parser:
    """The command line."""
    parser = frame.Parser("flips", __doc__)
    servers.add_options(parser)
    parser.add_argument("--flips", type=frame.count, default=20, help="moves of the alias, at least 4 [20]")
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second [200]")
    parser.add_argument("--bundles", type=frame.path, help="folder for the good versions, kept and used again [none]")
    return parser


def measure(bench: Bench) -> None:
    """All flips."""
    options, scratch = bench.options, bench.scratch
    said = f"{options.rate:g} requests/s, {options.replicas} replicas, {NUM_VERSIONS} good versions"
    where = {"versions": conditions.versions(), "load": said}
    bench.begin(where, num_rows=options.flips, seconds=90 + 9 * options.flips)
    mlflow = MlflowServer(scratch, options.logs / "flips-mlflow.log")
    mlflow.start()
    try:
        site = Site.at(scratch / "home", tracking_uri=mlflow.url)
        bundles = options.bundles or scratch / "bundles"
        versions, questions = _register(site, bundles)
        corrupt = _corrupt(site, mlflow, bundles / "0", scratch)
        site.promote(versions[0])
        with servers.champion(bench, site, "flips-rayapp.log") as server:
            database = Site.at(scratch / "home", tracking_uri=mlflow.database)
            run = _Run(server, Client(server.url), database, mlflow, bench)
            frame.run_async(run.all(versions, corrupt, questions))
    finally:
        mlflow.stop()


# --- versions ---------------------------------------------------------------------------------------------------------


def _register(site: Site, bundles: Path) -> tuple[list[ModelVersion], list[Question]]:
    """Good versions of different weights, and questions that know each version's answers."""
    images = [picture(seed) for seed in range(NUM_IMAGES)]
    versions, answers = [], {}
    for seed in range(NUM_VERSIONS):
        folder = bundles / str(seed)
        if not folder.exists():
            export(build_model(seed), folder)
        versions.append(site.register(folder))
        answers[str(versions[-1].version)] = expected(folder, images)
    return versions, [
        load.question([image], judge=partial(judge, {version: rows[n] for version, rows in answers.items()}))
        for n, image in enumerate(images)
    ]


def judge(right: Mapping[str, Mapping[str, float]], version: str, said: Mapping[str, Any]) -> str:
    """What is wrong with an answer, given the probabilities of each version for its image: "" or "mixed"."""
    wanted, probabilities = right.get(version, {}), said["probabilities"]
    same = wanted.keys() == probabilities.keys() and all(
        abs(probabilities[name] - value) <= TOLERANCE for name, value in wanted.items()
    )
    return "" if same else "mixed"


def _corrupt(site: Site, mlflow: MlflowServer, bundle: Path, scratch: Path) -> ModelVersion:
    """A version whose graph was changed after it was registered."""
    before = set(mlflow.artifacts.rglob(GRAPH))
    copy = scratch / "corrupt"
    shutil.copytree(bundle, copy)
    version = site.register(copy)
    (graph,) = set(mlflow.artifacts.rglob(GRAPH)) - before
    with graph.open("ab") as file:
        file.write(b"corrupt")
    return version


# --- the flips --------------------------------------------------------------------------------------------------------


@dataclass
class _Run:
    """The server under load, and the flips so far. database is the registry without the server in front of it."""

    server: servers.Server
    client: Client
    database: Site
    mlflow: MlflowServer
    bench: Bench
    flips: list[Flip] = field(default_factory=list)
    peak_mib: float = 0.0

    async def all(self, good: Sequence[ModelVersion], corrupt: ModelVersion, asked: list[Question]) -> None:
        """Make all flips under load; the replicas' memory (MiB, together) is noted before, at most, and after."""
        options, more = self.bench.options, self.bench.more
        memory = more["replicas_mib"] = {"before": round(self._memory())}
        async with self.client:
            watch = asyncio.create_task(self._watch_memory())
            try:
                await load.during(
                    self._make_flips(options.flips, good, corrupt), partial(_steady, self.client, asked, options.rate)
                )
            finally:
                watch.cancel()
                # with what was asked in a flip's time and answered after it
                self.bench.rows[:] = [outcome(flip, self.client.answers) for flip in self.flips]
        memory |= {"peak": round(self.peak_mib), "after": round(self._memory())}
        more |= {"requests": len(self.client.answers), "problems": dict(load.failures(self.client.answers))}

    async def _make_flips(self, count: int, good: Sequence[ModelVersion], corrupt: ModelVersion) -> None:
        await asyncio.sleep(3)
        for number, kind in enumerate(kinds_of(count)):
            wanted = corrupt if kind == "corrupt" else good[(number + 1) % len(good)]
            if number and str(wanted.version) == self._served():
                wanted = good[(number + 2) % len(good)]
            self.flips.append(await self._flip(kind, wanted))
            found = outcome(self.flips[-1], self.client.answers)
            text = f"{FIRST_WORD[kind]:<16} to version {found.version}, {_seconds(found)} s until everywhere"
            self.bench.add(found, f"{text}, {found.failed} failed, {found.mixed} mixed")
            await asyncio.sleep(1)

    async def _flip(self, kind: str, wanted: ModelVersion) -> Flip:
        """Move the alias, and wait until it is everywhere, or for HOLD_S where it must not arrive."""
        number, promote = str(wanted.version), partial(self.database.promote, wanted)
        started = time.monotonic()
        if kind == "stopped":
            await asyncio.to_thread(self.mlflow.stop)
            await asyncio.sleep(HOLD_S)
            await asyncio.to_thread(promote)
            await asyncio.to_thread(self.mlflow.start)
            started = time.monotonic()
        elif kind == "frozen":
            with self.mlflow.frozen():
                await asyncio.to_thread(promote)
                await asyncio.sleep(HOLD_S)
            started = time.monotonic()
        else:
            await asyncio.to_thread(promote)
        await asyncio.sleep(HOLD_S) if kind == "corrupt" else await self._settled(number)
        return Flip(kind, number, started, time.monotonic())

    async def _settled(self, version: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            last = self.client.answers[-QUIET:]
            if all(answer.version == version for answer in last):
                return
            await asyncio.sleep(0.05)

    def _served(self) -> str:
        return next((a.version for a in reversed(self.client.answers) if a.good), "")

    def _memory(self) -> float:
        return sum(
            process.memory_info().rss / processes.MIB
            for process in processes.in_role(self.server.processes(), processes.REPLICAS)
        )

    async def _watch_memory(self) -> None:
        while True:
            self.peak_mib = max(self.peak_mib, self._memory())
            await asyncio.sleep(0.5)


async def _steady(client: Client, asked: Sequence[Question], rate: float, until: asyncio.Event) -> None:
    await load.open_loop(client, asked, rate=rate, until=until)


def kinds_of(count: int) -> list[str]:
    """The kind of each flip: good ones, with a corrupt bundle, a stopped and a frozen MLflow spread among them."""
    kinds = ["good"] * count
    for part, kind in ((0.25, "corrupt"), (0.5, "stopped"), (0.75, "frozen")):
        kinds[int(part * count)] = kind
    return kinds


def outcome(flip: Flip, answers: Sequence[Answer]) -> Outcome:
    """What the answers to requests of a flip's time say. Seconds end where the last request of an old version was sent
    and at least 10 of the new one followed in a row."""
    own = sorted((a for a in answers if flip.start_s <= a.sent_s <= flip.end_s), key=lambda a: a.sent_s)
    good = [a for a in own if a.good]
    last_old = next((n for n in range(len(good) - 1, -1, -1) if good[n].version != flip.version), -1)
    new = good[last_old + 1 :]
    first_new = next((a for a in good if a.version == flip.version), None)
    seconds = max(0.0, new[0].done_s - flip.start_s) if len(new) >= 10 else None
    overlap_s = max(0.0, good[last_old].sent_s - first_new.done_s) if first_new and last_old >= 0 else 0.0
    problems: Counter[str] = load.failures(own)
    mixed = problems.pop("mixed", 0)
    return Outcome(flip.kind, flip.version, seconds, overlap_s, len(own), problems.total(), mixed)


def conclude(bench: Bench) -> dict[str, Any]:
    """A row a flip."""
    table = Table("flip", "to version", "s until everywhere", "both served (s)", "requests", "failed", "mixed", "")
    for number, one in enumerate(bench.rows, 1):
        table.add_row(
            f"{number} {FIRST_WORD[one.kind]}", one.version, _seconds(one), f"{one.overlap_s:.2f}", str(one.requests),
            str(one.failed), str(one.mixed), "" if one.fine else "BAD",
        )  # fmt: skip
    bench.console.print(table)
    for name, values in bench.more.items():
        bench.console.print(f"{name.replace('_', ' ')}: {values or 'none'}", highlight=False)
    flips = [asdict(one) for one in bench.rows]
    return {"flips": flips, "passed": all(one.fine for one in bench.rows) and not bench.more.get("problems")}


def _seconds(one: Outcome) -> str:
    if one.seconds is None:
        return "refused" if one.kind == "corrupt" else "never"
    return f"{one.seconds:.2f}"


if __name__ == "__main__":
    sys.exit(main())
