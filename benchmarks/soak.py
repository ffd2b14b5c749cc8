"""`make bench-soak`: does the memory of the serving processes grow under half an hour of mixed requests?

A constant rate, a part of what the server was just measured to bear, of images of many sizes and formats, batches and
broken files. Resident memory is read every 10 s; growth is that of the last readings' median over the first ones'.
"""

from __future__ import annotations

import asyncio
import io
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image
from rich.table import Table

from benchmarks import conditions, frame, load, processes, servers
from benchmarks.load import Client, Question
from benchmarks.peers.export import export
from benchmarks.peers.network import build_model

EVERY_S = 10.0
CAPACITY_S = 10.0  # how long the server's capacity is measured
WARM_UP = 0.1  # part of the time whose readings do not count: caches fill, allocators find their size
WINDOW = 0.2  # part of the other readings that make the first, and the last, median
LIMIT = 0.05  # growth that is still none
MODES = {"PNG": ("RGB", "RGBA", "P", "L"), "JPEG": ("RGB", "L", "CMYK"), "BMP": ("RGB",), "GIF": ("P",)}
MODES |= {"WEBP": ("RGB",), "TIFF": ("RGB",)}
SIDES_PX = (17, 32, 224, 640)


@dataclass(frozen=True)
class Reading:
    """The memory (MiB) by role at a time, and how many requests were answered until then, with what problems."""

    mib: dict[str, float]
    requests: int
    problems: dict[str, int]


Bench = frame.Bench[Reading]


def main(argv: Sequence[str] | None = None) -> int:
    """0 when no request failed and no role grew beyond LIMIT, else 1; 130 when interrupted."""
    return frame.bench_main(parser(), measure, conclude, argv)


def parser() -> frame.Parser:
    """The command line."""
    parser = frame.Parser("soak", __doc__)
    servers.add_options(parser)
    parser.add_argument("--minutes", type=float, default=30.0, help="length of the load [30]")
    parser.add_argument("--part", type=float, default=0.6, help="part (0-1) of the capacity that is used [0.6]")
    parser.add_argument("--plot", type=frame.path, default="bench-logs/soak.png", help="where the plot goes")
    parser.add_argument("--bundle", type=frame.path, help="a bundle to serve [one with random weights]")
    return parser


def measure(bench: Bench) -> None:
    """All readings."""
    options, seconds = bench.options, bench.options.minutes * 60
    load_said = f"{options.minutes:g} minutes at {options.part:.0%} of capacity, {options.replicas} replicas"
    where = {"versions": conditions.versions(), "load": load_said}
    bench.begin(where, num_rows=round(seconds / _every_s(seconds)), seconds=60 + seconds)
    site = servers.Site.at(bench.scratch / "home")
    site.promote(site.register(options.bundle or export(build_model(), bench.scratch / "bundle").folder))
    with servers.champion(bench, site, "soak.log") as server:
        frame.run_async(_soak(server, bench))


async def _soak(server: servers.Server, bench: Bench) -> None:
    """Load at a part of what the server bears, and the readings of its memory meanwhile."""
    asked = mixed_questions()
    async with Client(server.url) as trial:
        fast = partial(load.closed_loop, trial, asked, clients=16)
        await load.during(asyncio.sleep(CAPACITY_S), lambda until: fast(until=until))
    capacity = sum(answer.good for answer in trial.answers) / CAPACITY_S
    rate = max(1.0, bench.options.part * capacity)
    bench.more["requests_per_s"] = round(rate, 1)
    bench.console.print(f"capacity for these requests: {capacity:.0f}/s, load: {rate:.0f}/s", highlight=False)
    async with Client(server.url) as client:
        steady = partial(load.open_loop, client, asked, rate=rate)
        await load.during(_read(server, client, bench), lambda until: steady(until=until))
    bench.more |= {"requests": len(client.answers), "problems": dict(load.failures(client.answers))}


async def _read(server: servers.Server, client: Client, bench: Bench) -> None:
    """Read the memory again and again, for as long as the load lasts."""
    seconds = bench.options.minutes * 60
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        await asyncio.sleep(_every_s(seconds))
        problems = dict(load.failures(client.answers))
        reading = Reading(processes.rss_mib(server.processes()), len(client.answers), problems)
        said = f"{sum(reading.mib.values()):,.0f} MiB, {sum(problems.values())} of {reading.requests:,} requests failed"
        bench.add(reading, said)


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


def conclude(bench: Bench) -> dict[str, Any]:
    """A row a role, and a plot."""
    readings, last = bench.rows, bench.rows[-1]
    kept = readings[int(WARM_UP * len(readings)) :]
    window = max(1, int(WINDOW * len(kept)))
    grown = {role: growth([r.mib.get(role, 0.0) for r in readings]) for role in last.mib}
    table = Table("processes", "first MiB", "last MiB", "growth", "", title=f"memory, {len(readings)} readings")
    for role, value in grown.items():
        first, latest = (median(r.mib.get(role, 0.0) for r in part) for part in (kept[:window], kept[-window:]))
        table.add_row(role, f"{first:.0f}", f"{latest:.0f}", f"{value:+.1%}", "" if value <= LIMIT else "GROWS")
    bench.console.print(table)
    problems = bench.more.get("problems", last.problems)  # of all requests, once all are answered
    said = ", ".join(f"{problem}: {count}" for problem, count in problems.items()) or "none"
    bench.console.print(f"{bench.more.get('requests', last.requests):,} requests, failed: {said}", highlight=False)
    plot([r.mib for r in readings], bench.options.plot, every_s=_every_s(bench.options.minutes * 60))
    bench.console.print(f"plot: {bench.options.plot}", highlight=False)
    return {
        "requests": last.requests, "problems": last.problems,
        "growth": {role: round(value, 4) for role, value in grown.items()},
        "mib_at_end": {role: round(value) for role, value in last.mib.items()},
        "passed": not problems and max(grown.values()) <= LIMIT,
    }  # fmt: skip


def plot(readings: Sequence[Mapping[str, float]], path: Path, *, every_s: float) -> None:
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
