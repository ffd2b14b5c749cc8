"""`make bench-flips`: the alias is moved 20 times under a constant load; no request may fail or mix two versions.

Versions of known answers lie in a real MLflow server. Each answer must be that of the version its X-Model-Version
names. One flip is to a corrupt bundle, one happens while MLflow is stopped, one while it is frozen (SIGSTOP).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import conditions, load, processes, servers
from benchmarks.load import Answer, Client, Question
from benchmarks.paths import path
from benchmarks.peers.export import export
from benchmarks.peers.network import build_model
from benchmarks.servers import Site
from benchmarks.serving import expected, picture
from rayapp.errors import RayAppError
from rayapp.registry.names import ModelVersion
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


class MlflowServer:
    """`mlflow server` on a database, which can be stopped, frozen and started again on its port."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.database = f"sqlite:///{folder / 'mlflow.db'}"
        self.artifacts = folder / "served-artifacts"
        self.port = servers.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = servers.Command(
            words=[
                sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port),
                "--workers", "1", "--backend-store-uri", self.database, "--artifacts-destination", str(self.artifacts),
            ],
            ready="GET /health",
        )  # fmt: skip
        self._log = log
        self._stack = contextlib.ExitStack()
        self._server: servers.Server | None = None

    def start(self) -> None:
        """Return once it answers."""
        self._server = self._stack.enter_context(servers.running(self._command, self._log, port=self.port))

    def stop(self) -> None:
        """End it."""
        self._stack.close()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """It accepts connections and answers nothing inside the with block."""
        assert self._server is not None
        family = self._server.processes()
        for process in family:
            process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for process in family:
                process.send_signal(signal.SIGCONT)


def main(argv: Sequence[str] | None = None) -> int:
    """0 when no request failed and every good version was everywhere within LIMIT_S, else 1."""
    parser = argparse.ArgumentParser(prog="make bench-flips", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--flips", type=int, default=20, help="moves of the alias, at least 4 [20]")
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second [200]")
    parser.add_argument("--replicas", type=int, default=2, help="replicas of rayapp serve [2]")
    parser.add_argument("--bundles", type=path, help="folder for the good versions, kept and used again [none]")
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
    return 0 if result["fine"] else 1


def measure(options: argparse.Namespace, scratch: Path, console: Console) -> dict[str, Any]:
    """All that was measured, as one JSON object; tables go to the console."""
    where = {
        "machine": conditions.machine(), "versions": conditions.versions(),
        "load": f"{options.rate:g} requests/s, {options.replicas} replicas, {NUM_VERSIONS} good versions",
    }  # fmt: skip
    conditions.show(console, where)
    mlflow = MlflowServer(scratch, options.logs / "flips-mlflow.log")
    mlflow.start()
    try:
        site = Site.at(scratch / "home", tracking_uri=mlflow.url)
        bundles = options.bundles or scratch / "bundles"
        versions, questions = _register(site, bundles)
        corrupt = _corrupt(site, mlflow, bundles / "0", scratch)
        site.promote(versions[0])
        command = servers.rayapp(site, scratch, options.serve_args.split(), num_replicas=options.replicas)
        with servers.running(command, options.logs / "flips-rayapp.log") as server:
            run = _Run(server, Client(server.url), Site.at(scratch / "home", tracking_uri=mlflow.database), mlflow)
            memory = asyncio.run(run.all(options, versions, corrupt, questions))
    finally:
        mlflow.stop()
    outcomes = [outcome(flip, run.client.answers) for flip in run.flips]
    totals = load.failures(run.client.answers)
    _show(console, outcomes, totals, memory)
    return {
        "conditions": where, "flips": [asdict(one) for one in outcomes], "requests": len(run.client.answers),
        "problems": dict(totals), "replicas_mib": memory,
        "fine": all(one.fine for one in outcomes) and not totals,
    }  # fmt: skip


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

    def __post_init__(self) -> None:
        self.flips: list[Flip] = []
        self._peak_mib = 0.0

    async def all(
        self, options: argparse.Namespace, good: Sequence[ModelVersion], corrupt: ModelVersion, asked: list[Question]
    ) -> dict[str, float]:
        """Make all flips under load; what the replicas' memory (MiB, together) was before, at most, and after."""
        before = self._memory()
        async with self.client:
            watch = asyncio.create_task(self._watch_memory())
            await load.during(
                self._make_flips(options.flips, good, corrupt), partial(_steady, self.client, asked, options.rate)
            )
            watch.cancel()
        return {"before": round(before), "peak": round(self._peak_mib), "after": round(self._memory())}

    async def _make_flips(self, count: int, good: Sequence[ModelVersion], corrupt: ModelVersion) -> None:
        await asyncio.sleep(3)
        kinds = kinds_of(count)
        for number, kind in enumerate(kinds):
            wanted = corrupt if kind == "corrupt" else good[(number + 1) % len(good)]
            if self.flips and str(wanted.version) == self._served():
                wanted = good[(number + 2) % len(good)]
            await self._flip(kind, wanted)
            await asyncio.sleep(1)

    async def _flip(self, kind: str, wanted: ModelVersion) -> None:
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
        self.flips.append(Flip(kind, number, started, time.monotonic()))

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
            self._peak_mib = max(self._peak_mib, self._memory())
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


def _show(console: Console, outcomes: Sequence[Outcome], totals: Counter[str], memory: Mapping[str, float]) -> None:
    table = Table("flip", "to version", "s until everywhere", "both served (s)", "requests", "failed", "mixed", "")
    for number, one in enumerate(outcomes, 1):
        seconds = "refused" if one.seconds is None and one.kind == "corrupt" else _seconds(one.seconds)
        table.add_row(
            f"{number} {FIRST_WORD[one.kind]}", one.version, seconds, f"{one.overlap_s:.2f}", str(one.requests),
            str(one.failed), str(one.mixed), "" if one.fine else "BAD",
        )  # fmt: skip
    console.print(table)
    said = ", ".join(f"{problem}: {count}" for problem, count in totals.items()) or "none"
    console.print(f"failed or mixed requests in all: {said}", highlight=False)
    console.print(
        f"memory of the replicas together: {memory['before']:g} MiB before, {memory['peak']:g} at most,"
        f" {memory['after']:g} after",
        highlight=False,
    )


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    sys.exit(main())
