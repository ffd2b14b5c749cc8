"""`make bench-soak`: does the memory of the serving processes grow under half an hour of mixed requests?

A constant rate, a part of what the server was just measured to bear, of images of many sizes and formats, batches and
broken files. Resident memory is read every 10 s; growth is that of the last readings' median over the first ones'.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks import conditions, load, processes, servers
from benchmarks.load import Client, Question
from benchmarks.paths import path
from benchmarks.peers.export import export
from benchmarks.peers.network import build_model
from rayapp.errors import RayAppError

EVERY_S = 10.0
CAPACITY_S = 10.0  # how long the server's capacity is measured
WARM_UP = 0.1  # part of the time whose readings do not count: caches fill, allocators find their size
WINDOW = 0.2  # part of the other readings that make the first, and the last, median
LIMIT = 0.05  # growth that is still none
MODES = {"PNG": ("RGB", "RGBA", "P", "L"), "JPEG": ("RGB", "L", "CMYK"), "BMP": ("RGB",), "GIF": ("P",)}
MODES |= {"WEBP": ("RGB",), "TIFF": ("RGB",)}
SIDES_PX = (17, 32, 224, 640)

Reading = Mapping[str, float]  # MiB by role


def main(argv: Sequence[str] | None = None) -> int:
    """0 when no request failed and no role grew beyond LIMIT, else 1."""
    parser = argparse.ArgumentParser(prog="make bench-soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="length of the load [30]")
    parser.add_argument("--part", type=float, default=0.6, help="part (0-1) of the capacity that is used [0.6]")
    parser.add_argument("--replicas", type=int, default=2, help="replicas of rayapp serve [2]")
    parser.add_argument("--plot", type=path, default="bench-logs/soak.png", help="where the plot goes")
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
    return 0 if result["fine"] else 1


def measure(options: argparse.Namespace, scratch: Path, console: Console) -> dict[str, Any]:
    """All that was measured, as one JSON object; a table goes to the console."""
    where = {
        "machine": conditions.machine(), "versions": conditions.versions(),
        "load": f"{options.minutes:g} minutes at {options.part:.0%} of capacity, {options.replicas} replicas",
    }  # fmt: skip
    conditions.show(console, where)
    site = servers.Site.at(scratch / "home")
    site.promote(site.register(options.bundle or export(build_model(), scratch / "bundle").folder))
    command = servers.rayapp(site, scratch, options.serve_args.split(), num_replicas=options.replicas)
    with servers.running(command, options.logs / "soak.log") as server:
        rate, client, readings = asyncio.run(_soak(server, options, console))
    grown = {role: growth([r.get(role, 0.0) for r in readings]) for role in readings[-1]}
    problems = load.failures(client.answers)
    _show(console, readings, grown)
    said = ", ".join(f"{problem}: {count}" for problem, count in problems.items()) or "none"
    console.print(f"{len(client.answers):,} requests at {rate:.0f}/s, failed: {said}", highlight=False)
    plot(readings, options.plot, every_s=_every_s(options.minutes * 60))
    console.print(f"plot: {options.plot}", highlight=False)
    return {
        "conditions": where, "requests": len(client.answers), "requests_per_s": round(rate, 1),
        "problems": dict(problems), "growth": {role: round(value, 4) for role, value in grown.items()},
        "mib_at_end": {role: round(value) for role, value in readings[-1].items()},
        "fine": not problems and max(grown.values()) <= LIMIT,
    }  # fmt: skip


async def _soak(
    server: servers.Server, options: argparse.Namespace, console: Console
) -> tuple[float, Client, list[Reading]]:
    """The rate, the client with all its answers, and the readings of memory."""
    asked = mixed_questions()
    async with Client(server.url) as trial:
        fast = partial(load.closed_loop, trial, asked, clients=16)
        await load.during(asyncio.sleep(CAPACITY_S), lambda until: fast(until=until))
    capacity = sum(answer.good for answer in trial.answers) / CAPACITY_S
    rate = max(1.0, options.part * capacity)
    console.print(f"capacity for these requests: {capacity:.0f}/s, load: {rate:.0f}/s", highlight=False)
    readings: list[Reading] = []
    async with Client(server.url) as client:
        steady = partial(load.open_loop, client, asked, rate=rate)
        await load.during(_read(server, options.minutes * 60, readings), lambda until: steady(until=until))
    return rate, client, readings


async def _read(server: servers.Server, seconds: float, readings: list[Reading]) -> None:
    """Read the memory again and again, for so many seconds."""
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        await asyncio.sleep(_every_s(seconds))
        readings.append(processes.rss_mib(server.processes()))


def _every_s(seconds: float) -> float:
    """The time between two readings: EVERY_S, but at least ten readings in all."""
    return min(EVERY_S, seconds / 10)


def mixed_questions() -> list[Question]:
    """Single images and batches of all MODES and SIDES_PX, and a few that are no images, to be refused with 400."""
    files = [_file(side_px, form, mode) for form, modes in MODES.items() for mode in modes for side_px in SIDES_PX]
    singles = [load.question([file]) for file in files]
    small = files[:: len(SIDES_PX)] + files[1 :: len(SIDES_PX)]
    batches = [load.question(small[n : n + 8], batch=True) for n in range(0, len(small) - 8, 4)]
    broken = [load.question([files[0][:40]], wants=400), load.question([b"no image"], wants=400)]
    questions = [*singles, *batches, *broken]
    order = np.random.default_rng(0).permutation(len(questions))
    return [questions[n] for n in order]


def _file(side_px: int, form: str, mode: str) -> bytes:
    """A picture with a coarse pattern, as files of that format hold it."""
    cells = np.random.default_rng(side_px).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(cells).resize((side_px, side_px * 3 // 4), Image.Resampling.BICUBIC).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def growth(values: Sequence[float]) -> float:
    """How much more (0.05 = 5 %) the last readings are than the first ones after the warm-up, by their medians."""
    kept = values[int(WARM_UP * len(values)) :]
    window = max(1, int(WINDOW * len(kept)))
    first, last = median(kept[:window]), median(kept[-window:])
    return last / first - 1 if first else 0.0


def _show(console: Console, readings: Sequence[Reading], grown: Mapping[str, float]) -> None:
    kept = readings[int(WARM_UP * len(readings)) :]
    window = max(1, int(WINDOW * len(kept)))
    table = Table("processes", "first MiB", "last MiB", "growth", "", title=f"memory, {len(readings)} readings")
    for role, value in grown.items():
        first, last = (median(r.get(role, 0.0) for r in part) for part in (kept[:window], kept[-window:]))
        table.add_row(role, f"{first:.0f}", f"{last:.0f}", f"{value:+.1%}", "" if value <= LIMIT else "GROWS")
    console.print(table)


def plot(readings: Sequence[Reading], path: Path, *, every_s: float) -> None:
    """Draw the memory of each role over time into a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    minutes = [(n + 1) * every_s / 60 for n in range(len(readings))]
    for role in readings[-1]:
        axes.plot(minutes, [r.get(role, 0.0) for r in readings], label=role)
    axes.set(xlabel="minutes", ylabel="resident memory (MiB)", ylim=(0, None))
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())
