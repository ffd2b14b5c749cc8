"""`make bench-serving`: rayapp serve against BentoML, LitServe and the bare model, the same weights behind all.

One server at a time answers wrk; a round takes every server once, and the rounds follow each other (A B C, A B C, ...),
so that a slow minute of the machine hits all. A run with a failed request is invalid. Nothing asserts a time.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from rich.console import Console

from benchmarks import bare, conditions, processes, profiling, report, servers, wrk
from benchmarks.paths import path
from benchmarks.report import BATCHES, BENTO, EIGHT, LIT, MANY, ONE, RAYAPP, Measured
from benchmarks.wrk import Load
from rayapp.errors import RayAppError
from rayapp.vision.bundle import Bundle
from rayapp.vision.predictor import Predictor

BARE, PARTS = "bare", "parts"
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
WARM_UP_S, BARE_S, PROFILE_S = 2, 1.0, 6
TOLERANCE = 1e-3  # largest difference of a probability between two servers
NUM_CHECKED = 8  # images whose answers are compared


@dataclass(frozen=True)
class Contender:
    """A configuration of a server."""

    group: str
    name: str
    command: servers.Command
    loads: tuple[Load, ...] = LOADS


@dataclass
class Bench:
    """What all measurements share, and what they have found so far."""

    options: argparse.Namespace
    scratch: Path
    console: Console
    bundle: Path
    image: Path
    answers: list[tuple[bytes, dict[str, float]]]  # images, and class -> probability by the bundle itself
    measured: list[Measured] = field(default_factory=list)
    bare: dict[bare.Work, list[float]] = field(default_factory=dict)


def main(argv: Sequence[str] | None = None) -> int:
    """0 when every run was valid, 1 when one was not, or nothing could be measured."""
    options = _options().parse_args(argv)
    servers.end_on_sigterm()
    console = Console(width=None if sys.stdout.isatty() else 160)
    try:
        with tempfile.TemporaryDirectory(prefix="rb-", dir="/tmp") as scratch:  # Ray's sockets need short paths
            result = compare(options, Path(scratch), console)
    except RayAppError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result))
    return 0 if result["valid"] else 1


def compare(options: argparse.Namespace, scratch: Path, console: Console) -> dict[str, Any]:
    """All that was measured, as one JSON object; tables go to the console."""
    where: dict[str, Any] = {"machine": conditions.machine()}
    where["versions"] = {**conditions.versions(), "wrk": wrk.version()}
    if {BENTO, LIT} & set(options.only):
        where["peers"] = conditions.peer_versions(_peers_python(options))
    bundle = options.bundle or _export(options, scratch / "bundle")
    images = [picture(seed) for seed in range(NUM_CHECKED)]
    image = scratch / "image.png"
    image.write_bytes(images[0])
    where["model"] = f"mobilenet_v3_small, {Bundle.open(bundle).digest[:19]}, a 32x32 PNG of {len(images[0])} bytes"
    where["runs"] = f"{options.rounds} rounds of {options.seconds} s after {WARM_UP_S} s of warm-up, wrk with 1 thread"
    conditions.show(console, where)
    bench = Bench(options, scratch, console, bundle, image, list(zip(images, expected(bundle, images), strict=True)))
    contenders = _contenders(bench)
    for number in range(options.rounds):
        _take_round(bench, contenders, number)
    found = report.ratios(bench.measured)
    report.show(console, bench.measured)
    if bench.bare:
        report.show_bare(console, bench.bare, bench.measured)
    report.show_ratios(console, found)
    result = {"conditions": where, **report.as_json(bench.measured, bench.bare, found)}
    if options.profile:
        result["where_the_time_goes"] = _profile(bench, contenders)
    return result


# --- what is compared -------------------------------------------------------------------------------------------------


def _contenders(bench: Bench) -> list[Contender]:
    options, scratch = bench.options, bench.scratch
    site = servers.Site.at(scratch / "home")
    site.promote(site.register(bench.bundle))
    more = options.serve_args.split()
    found = []
    for n in options.processes:
        command = servers.rayapp(site, scratch, more, num_replicas=n)
        found.append(Contender(RAYAPP, f"rayapp, {_plural(n, 'replica')}", command))
    for name, words in WITHOUT.items():
        found.append(Contender(PARTS, f"rayapp {name}", servers.rayapp(site, scratch, [*more, *words.split()])))
    for n in options.processes:
        command = servers.bentoml(options.peers_python, options.bento_service.resolve(), scratch, workers=n)
        found.append(Contender(BENTO, f"BentoML, {_plural(n, 'worker')}", command))
    for n in options.processes:
        command = servers.litserve(options.peers_python, bench.bundle, workers=n)
        found.append(Contender(LIT, f"LitServe, {_plural(n, 'worker')}", command, SINGLES))
    return [contender for contender in found if contender.group in options.only]


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
    command += ["--service", str(options.bento_service.resolve()), "--bundle", str(folder)]
    done = subprocess.run(command, cwd=servers.ROOT, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise RayAppError(f"the model of {options.bento_service} cannot be exported: {done.stderr.strip()[-600:]}")
    return folder


def picture(seed: int) -> bytes:
    """A 32x32 PNG of a coarse pattern with a little noise: about 2 kB, as small photos have."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((32, 32))
    noise = rng.integers(-8, 9, (32, 32, 3))
    pixels = np.clip(np.asarray(coarse, dtype=np.int16) + noise, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def expected(bundle: Path, images: Sequence[bytes]) -> list[dict[str, float]]:
    """Class -> probability of each image, by the bundle itself."""
    predictor = Predictor.load(Bundle.open(bundle), device="cpu")
    manifest = predictor.bundle.manifest
    rows_nk = predictor.predict(np.stack([manifest.preprocess.decode(image) for image in images]))
    return [dict(zip(manifest.class_names, map(float, row_k), strict=True)) for row_k in rows_nk]


# --- measuring --------------------------------------------------------------------------------------------------------


def _take_round(bench: Bench, contenders: Sequence[Contender], number: int) -> None:
    """Measure everything once."""
    for contender in contenders:
        with servers.running(contender.command, _log(bench, contender)) as server:
            if number == 0:
                _check_answers(contender, server, bench)
            for load in contender.loads:
                bench.measured.append(_measure(bench, contender, server, load, number))
                bench.console.print(report.line(bench.measured[-1]), highlight=False, soft_wrap=True)
    for work in bare.WORKS if BARE in bench.options.only else ():
        rate = bare.measure(work, bundle=bench.bundle, image=bench.image, seconds=BARE_S)
        bench.bare.setdefault(work, []).append(rate)
        bench.console.print(f"round {number + 1}  {work!s:<52} {rate:6.0f} images/s", highlight=False)


def _check_answers(contender: Contender, server: servers.Server, bench: Bench) -> None:
    """Raises RayAppError where a server does not say what the bundle says: then it is not the same model."""
    for image, wanted in bench.answers:
        answer = httpx.post(f"{server.url}/predict_image", files={"image": ("a.png", image, "image/png")}, timeout=30)
        said = answer.raise_for_status().json()
        off = max(abs(said["probabilities"][name] - value) for name, value in wanted.items())
        if off > TOLERANCE or said["predicted_class"] != max(wanted, key=wanted.__getitem__):
            raise RayAppError(
                f"{contender.name} answers {said['predicted_class']} with probabilities that differ by {off:.2g} from"
                f" the bundle's (allowed: {TOLERANCE}); give --bundle the export of --bento-service's model"
            )


def _measure(bench: Bench, contender: Contender, server: servers.Server, load: Load, number: int) -> Measured:
    wrk.run(server.url, load, image=bench.image, seconds=WARM_UP_S)
    family = server.processes()
    before, machine_before = processes.cpu_s(family), processes.machine_cpu_s()
    run = wrk.run(server.url, load, image=bench.image, seconds=bench.options.seconds)
    used = processes.difference(processes.cpu_s(family), before)
    strangers_s = processes.machine_cpu_s() - machine_before - sum(used.values()) - run.client_cpu_s
    others_cpu = max(0.0, strangers_s / run.seconds / processes.NUM_CORES)
    return Measured(contender.group, contender.name, number, load, run, used, others_cpu)


def _profile(bench: Bench, contenders: Sequence[Contender]) -> dict[str, Any]:
    """CPU µs a request by role and by layer of the replicas, of the configuration of rayapp with most requests/s."""
    ours = report.best([m for m in bench.measured if m.group == RAYAPP and m.load == MANY], "rate")
    if ours is None:
        raise RayAppError("--profile needs rayapp among --only: it is what is profiled")
    contender = next(c for c in contenders if c.name == ours)
    runs = [m for m in bench.measured if m.name == ours and m.load == MANY]
    client_ms = 1000 * sum(m.run.client_cpu_s for m in runs) / sum(m.run.requests for m in runs)
    cpu_ms = {"wrk": client_ms, **report.server_cpu_ms(runs)}
    seconds = PROFILE_S
    with servers.running(contender.command, _log(bench, contender)) as server:
        wrk.run(server.url, MANY, image=bench.image, seconds=WARM_UP_S)
        under_load = threading.Thread(
            target=wrk.run, args=(server.url, MANY), kwargs={"image": bench.image, "seconds": 3 * seconds + 5}
        )
        under_load.start()
        pids = [process.pid for process in processes.in_role(server.processes(), processes.REPLICAS)]
        found = profiling.record(pids, bench.options.profile, seconds)
        under_load.join()
    profiling.show(bench.console, found, cpu_ms, processes.REPLICAS)
    return {"server": ours, "cpu_ms_a_request": cpu_ms, "shares_of_replica": found.shares()}


def _log(bench: Bench, contender: Contender) -> Path:
    folder: Path = bench.options.logs
    return folder / f"{contender.name.replace(',', '').replace(' ', '-')}.log"


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make bench-serving", description=(__doc__ or "").splitlines()[0])
    groups = (RAYAPP, BENTO, LIT, BARE, PARTS)
    parser.add_argument(
        "--only", nargs="+", choices=groups, default=groups[:-1],
        help="what to measure [all but parts, which is rayapp without one part of its design after the other]",
    )  # fmt: skip
    parser.add_argument(
        "--processes", type=int, nargs="+", default=(1, 2), help="replicas, or workers, of each server [1 2]"
    )
    parser.add_argument("--rounds", type=int, default=3, help="times each server is started and measured [3]")
    parser.add_argument("--seconds", type=int, default=5, help="length of a run [5]")
    parser.add_argument(
        "--peers-python", type=path, default=servers.ROOT / ".venv-bench" / "bin" / "python",
        help="Python with bentoml and litserve [.venv-bench's]",
    )  # fmt: skip
    parser.add_argument(
        "--bento-service", type=path, default=Path(__file__).with_name("peers") / "bento_service.py",
        help="file of the BentoML service, with build_model() [benchmarks/peers/bento_service.py]",
    )  # fmt: skip
    parser.add_argument("--bundle", type=path, help="an exported bundle of its model, instead of exporting it again")
    parser.add_argument("--serve-args", default="", metavar="'--app.x Y'", help="more settings for rayapp serve")
    parser.add_argument("--logs", type=path, default="bench-logs", help="folder of the servers' output")
    parser.add_argument("--profile", type=path, metavar="FOLDER", help="profile the replicas too, into a folder")
    return parser


if __name__ == "__main__":
    sys.exit(main())
