"""`make bench-serving`: rayapp serve against BentoML, LitServe and the bare model, the same weights behind all.

One server at a time answers wrk; a round takes every server once, and the rounds follow each other (A B C, A B C, ...),
so that a slow minute of the machine hits all. A run with a failed request is invalid. Nothing asserts a time.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import bare, conditions, frame, processes, profiling, servers, wrk
from benchmarks.pictures import check_answers, expected, picture
from benchmarks.report import Column, Finding, Report, Row, Versus
from benchmarks.wrk import Load
from rayapp.errors import RayAppError
from rayapp.vision.bundle import Bundle

RAYAPP, BENTO, LIT, BARE, PARTS = "rayapp", "bentoml", "litserve", "bare", "parts"
# How the names of a group's configurations begin.
OURS, NAMES = "rayapp, ", {BENTO: "BentoML", LIT: "LitServe"}
ONE, EIGHT, MANY, BATCHES = Load(1), Load(8), Load(32), Load(4, batch=8)
LOADS = (ONE, EIGHT, MANY, BATCHES)
SINGLES = (ONE, EIGHT, MANY)  # LitServe has one endpoint, and gathers its batches itself
# Each part of the design against the design without it: what it is worth. One replica.
WITHOUT = {
    "with all parts": "",
    "without HAProxy": "--haproxy false",
    "without batches": "--app.max_batch 1",
    "without waiting": "--app.max_wait_ms 0",
    "with 2 threads": "--app.num_threads 2",
}
COLUMNS = {
    "images/s": Column(",.0f"), "p50 ms": Column(), "p99 ms": Column(), "µs an image and process": Column(",.0f"),
}  # fmt: skip
# How many times better than a peer's best configuration rayapp has to be.
TARGETS = (
    ("images/s", MANY, BENTO, 10.0), ("p99 ms", MANY, BENTO, 10.0), ("p50 ms", ONE, BENTO, 2.0),
    ("images/s", BATCHES, BENTO, 8.0), ("images/s", MANY, LIT, 2.5),
)  # fmt: skip
QUICK = {"rounds": 1, "seconds": 1, "processes": [1]}
WARM_UP_S, BARE_S, PROFILE_S = 2, 1.0, 6
START_S = 20  # about what a server's start and end take
NUM_CHECKED = 8  # images whose answers are compared

Bench = frame.Bench[Row]


@dataclass(frozen=True)
class Contender:
    """A configuration of a server."""

    group: str
    name: str
    command: servers.Command
    loads: tuple[Load, ...] = LOADS


@dataclass(frozen=True)
class Model:
    """What stands behind all servers. answers: images, and class -> probability by the bundle itself."""

    bundle: Path
    image: Path
    answers: list[tuple[bytes, dict[str, float]]]


def main(argv: Sequence[str] | None = None) -> int:
    """0 when every run was valid, 1 when one was not, or nothing could be measured; 130 when interrupted."""
    return frame.bench_main(parser(), measure, conclude, argv)


def measure(bench: Bench) -> None:
    """All rounds."""
    options = bench.options
    versions: dict[str, Any] = {"versions": {**conditions.versions(), "wrk": wrk.version()}}
    if {BENTO, LIT} & set(options.only):
        versions["peers"] = conditions.peer_versions(_peers_python(options))
    model = _model(bench)
    contenders = _contenders(bench, model)
    works = bare.WORKS if BARE in options.only else ()
    runs = sum(len(contender.loads) for contender in contenders)
    size, digest = model.image.stat().st_size, Bundle.open(model.bundle).digest[:19]
    where = versions | {
        "model": f"mobilenet_v3_small, {digest}, a 32x32 PNG of {size} bytes",
        "runs": f"{options.rounds} rounds of {options.seconds} s after {WARM_UP_S} s of warm-up, wrk with 1 thread",
    }
    seconds = len(contenders) * START_S + runs * (options.seconds + WARM_UP_S) + len(works) * 5
    bench.begin(where, num_rows=options.rounds * (runs + len(works)), seconds=options.rounds * seconds)
    for number in range(options.rounds):
        for contender in contenders:
            _take(bench, model, contender, number)
        for work in works:
            _add(bench, _bare(work, model, number))
    if options.profile:
        bench.more["where_the_time_goes"] = _profile(bench, model, contenders)


def conclude(bench: Bench) -> dict[str, Any]:
    """The tables, and what stands beside the targets. Speed alone fails nothing."""
    report = Report(COLUMNS, bench.rows)
    report.show(bench.console, note=_cpu, heading="CPU ms a request")
    return report.conclude(bench.console, findings(report), judge=not bench.options.quick, speed_fails=False)


def findings(report: Report) -> list[Finding]:
    """Against the peers' best at each figure. Ours is one for all: the one with the most images/s at 32 clients."""
    measured = report.names(OURS, str(MANY))
    if not measured:
        return []
    ours, found = report.best(measured, "images/s", str(MANY)) or measured[0], []
    for figure, load, peer, factor in TARGETS:
        names, least = report.names(NAMES[peer]), figure != "images/s"
        found += report.ratio(Versus(f"{figure}, {load}", figure, ours, names, factor, least, str(load)))
    for work in (bare.MODEL, bare.ALL):
        names, case = report.names(f"{work}, batch"), bare.CASE
        versus = Versus(
            "images/s at 32 clients over HTTP, part", "images/s", ours, names, case=str(MANY), their_case=case
        )
        found += report.ratio(versus)
    return found


def cpu_ms(runs: Sequence[Row]) -> dict[str, float]:
    """CPU milliseconds a request by role, over all valid runs, the largest first."""
    valid = [row.details for row in runs if not row.failed and "requests" in row.details]
    total = sum(details["requests"] for details in valid)
    roles = {role for details in valid for role in details["cpu_s"]}
    spent = {role: 1000 * sum(d["cpu_s"].get(role, 0.0) for d in valid) / total for role in roles}
    return {role: ms for role, ms in sorted(spent.items(), key=lambda item: -item[1]) if ms >= 0.005}


def _cpu(runs: Sequence[Row]) -> str:
    return ", ".join(f"{role} {ms:.2f}" for role, ms in cpu_ms(runs).items())


# --- what is compared -------------------------------------------------------------------------------------------------


def _contenders(bench: Bench, model: Model) -> list[Contender]:
    options, scratch = bench.options, bench.scratch
    site = servers.Site.at(scratch / "home")
    site.promote(site.register(model.bundle))
    more = options.serve_args.split()
    found = []
    for n in options.processes:
        command = servers.rayapp(site, scratch, more, num_replicas=n)
        found.append(Contender(RAYAPP, f"{OURS}{_plural(n, 'replica')}", command))
    for name, words in WITHOUT.items():
        found.append(Contender(PARTS, f"rayapp {name}", servers.rayapp(site, scratch, [*more, *words.split()])))
    for n in options.processes:
        command = servers.bentoml(options.peers_python, options.bento_service, scratch, workers=n)
        found.append(Contender(BENTO, f"{NAMES[BENTO]}, {_plural(n, 'worker')}", command))
    for n in options.processes:
        command = servers.litserve(options.peers_python, model.bundle, workers=n)
        found.append(Contender(LIT, f"{NAMES[LIT]}, {_plural(n, 'worker')}", command, SINGLES))
    return [contender for contender in found if contender.group in options.only]


def _model(bench: Bench) -> Model:
    bundle = bench.options.bundle or _export(bench.options, bench.scratch / "bundle")
    images = [picture(seed) for seed in range(NUM_CHECKED)]
    image = bench.scratch / "image.png"
    image.write_bytes(images[0])
    return Model(bundle, image, list(zip(images, expected(bundle, images), strict=True)))


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _peers_python(options: argparse.Namespace) -> Path:
    python: Path = options.peers_python
    if not python.exists():
        raise RayAppError(f"{python} is not there; make it with: make .venv-bench/.installed, or give --peers-python")
    return python


def _export(options: argparse.Namespace, folder: Path) -> Path:
    """The bundle of the BentoML service's model, made in the peers' environment: only there is bentoml."""
    command = [str(_peers_python(options)), "-m", "benchmarks.peers.export"]
    command += ["--service", str(options.bento_service), "--bundle", str(folder)]
    done = subprocess.run(command, cwd=servers.ROOT, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise RayAppError(f"the model of {options.bento_service} cannot be exported: {done.stderr.strip()[-600:]}")
    return folder


# --- measuring --------------------------------------------------------------------------------------------------------


def _add(bench: Bench, row: Row) -> None:
    bench.add(row, Report(COLUMNS, bench.rows).line(row))


def _take(bench: Bench, model: Model, contender: Contender, number: int) -> None:
    """A round of one contender."""
    with servers.running(contender.command, _log(bench, contender)) as server:
        if number == 0:
            check_answers(contender.name, server, model.answers)
        for load in contender.loads:
            _add(bench, _measure(bench, model, contender.name, server, load, number))


def _measure(bench: Bench, model: Model, name: str, server: servers.Server, load: Load, number: int) -> Row:
    wrk.run(server.url, load, image=model.image, seconds=WARM_UP_S)
    family, strangers = server.processes(), processes.Strangers()
    before = processes.cpu_s(family)
    run = wrk.run(server.url, load, image=model.image, seconds=bench.options.seconds)
    used = processes.difference(processes.cpu_s(family), before)
    return row_of(name, load, run, used, number=number, others_cpu=strangers.part(sum(used.values())))


def row_of(
    name: str, load: Load, run: wrk.Run, used_s: dict[str, float], *, number: int = 0, others_cpu: float = 0.0
) -> Row:
    """A run of wrk as a row; used_s: CPU seconds of the server's processes, by role. A run with an error is none."""
    failed = f"{run.errors} requests failed" if run.errors else "" if run.requests else "no request was answered"
    figures = {"images/s": run.rate * load.images, "p50 ms": run.p50_ms, "p99 ms": run.p99_ms}
    details = {"requests": run.requests, "cpu_s": {**used_s, "client": run.client_cpu_s}}
    return Row(name, number, figures, others_cpu, str(load), failed, details)


def _bare(work: bare.Work, model: Model, number: int) -> Row:
    strangers = processes.Strangers()
    rate = bare.measure(work, bundle=model.bundle, image=model.image, seconds=BARE_S)
    figures = {"images/s": rate, "µs an image and process": 1e6 * work.num_processes / rate}
    return Row(str(work), number, figures, strangers.part(), bare.CASE)


def _profile(bench: Bench, model: Model, contenders: Sequence[Contender]) -> dict[str, Any]:
    """CPU µs a request by role and by layer of the replicas, of the configuration of rayapp with most images/s."""
    ours = [contender for contender in contenders if contender.group == RAYAPP]
    if not ours:
        raise RayAppError("--profile needs rayapp among --only: it is what is profiled")
    best = Report(COLUMNS, bench.rows).best([c.name for c in ours], "images/s", str(MANY)) or ours[-1].name
    contender = next(c for c in ours if c.name == best)
    spent = cpu_ms([row for row in bench.rows if (row.name, row.case) == (best, str(MANY))])
    with servers.running(contender.command, _log(bench, contender)) as server, ThreadPoolExecutor(1) as pool:
        wrk.run(server.url, MANY, image=model.image, seconds=WARM_UP_S)
        under_load = pool.submit(wrk.run, server.url, MANY, image=model.image, seconds=3 * PROFILE_S + 5)
        pids = [process.pid for process in processes.in_role(server.processes(), processes.REPLICAS)]
        found = profiling.record(pids, bench.options.profile, PROFILE_S)
        under_load.result()
    profiling.show(bench.console, found, spent, processes.REPLICAS)
    return {"server": best, "cpu_ms_a_request": spent, "shares_of_replica": found.shares()}


def _log(bench: Bench, contender: Contender) -> Path:
    folder: Path = bench.options.logs
    return folder / f"{contender.name.replace(',', '').replace(' ', '-')}.log"


def parser() -> frame.Parser:
    """The command line."""
    parser = frame.Parser("serving", __doc__, quick=QUICK)
    groups = (RAYAPP, BENTO, LIT, BARE, PARTS)
    parser.add_argument(
        "--only", nargs="+", choices=groups, default=groups[:-1],
        help="what to measure [all but parts, which is rayapp without one part of its design after the other]",
    )  # fmt: skip
    parser.add_argument(
        "--processes", type=frame.count, nargs="+", default=(1, 2), help="replicas, or workers, of each server [1 2]"
    )
    parser.add_argument("--rounds", type=frame.count, default=3, help="times each server is started and measured [3]")
    parser.add_argument("--seconds", type=frame.count, default=5, help="length of a run [5]")
    parser.add_argument(
        "--peers-python", type=frame.path, default=servers.ROOT / ".venv-bench" / "bin" / "python",
        help="Python with bentoml and litserve [.venv-bench's]",
    )  # fmt: skip
    parser.add_argument(
        "--bento-service", type=frame.path, default=Path(__file__).with_name("peers") / "bento_service.py",
        help="file of the BentoML service, with build_model() [benchmarks/peers/bento_service.py]",
    )  # fmt: skip
    bundle = "an exported bundle of its model, instead of exporting it again"
    parser.add_argument("--bundle", type=frame.path, help=bundle)
    parser.add_argument("--serve-args", default="", metavar="'--app.x Y'", help="more settings for rayapp serve")
    parser.add_argument("--profile", type=frame.path, metavar="FOLDER", help="profile the replicas too, into a folder")
    return parser


if __name__ == "__main__":
    sys.exit(main())
