"""Where a replica's time goes: stacks that py-spy samples from it under load, by layer and by function.

A sample belongs to the layer of the innermost frame that a rule knows; standard library helpers belong to their caller.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from rayapp.errors import RayAppError

SAMPLES_PER_S = 100
OTHER = "other"
# A layer and what its frames, "function (file:line)", contain; the first that fits counts.
LAYERS = (
    ("event loop, system calls", r"^Thread\.run \(threading|\(.*(asyncio/|uvloop/)"),
    ("model (ONNX Runtime)", r"\(.*(onnxruntime/|rayapp/vision/predictor\.py)"),
    ("decode (Pillow)", r"\(.*(PIL/|rayapp/vision/preprocess\.py)"),
    ("form parsing", r"\(.*(python_multipart/|multipart/|formparsers\.py|rayapp/serve/forms?\.py)|^_files "),
    ("JSON", r"^(_json|prediction|_answer_of) \(.*contract\.py"),
    ("metrics", r"\(.*(prometheus_client/|rayapp/serve/metrics\.py)"),
    ("batching, threads", r"\(.*(rayapp/serve/(replica|batcher)\.py|concurrent/futures/|threading\.py)"),
    ("our contract code", r"\(.*rayapp/"),
    ("HTTP server (uvicorn)", r"\(.*(uvicorn/|httptools/|h11/)"),
    ("Starlette", r"\(.*starlette/"),
    ("Ray Serve", r"\(.*ray/"),
)
_THREAD = re.compile(r"thread \((\d+)\)")
_RULES = tuple((layer, re.compile(pattern)) for layer, pattern in LAYERS)


@dataclass(frozen=True)
class Profile:
    """CPU seconds by layer and by innermost function, estimated from so many samples."""

    layers: Mapping[str, float]
    functions: Mapping[str, float]
    samples: int

    def shares(self) -> dict[str, float]:
        """Part (0-1) of the CPU time by layer, the largest first."""
        return _shares(self.layers)

    def top(self, count: int) -> dict[str, float]:
        """Part (0-1) of the CPU time by function, the largest ones."""
        return dict(list(_shares(self.functions).items())[:count])


def profile(stacks: Sequence[str], cpu_s: Mapping[int, float]) -> Profile:
    """The profile of py-spy's raw lines, "thread (ID): name;outer;...;inner COUNT".

    cpu_s is what the kernel says of each thread: py-spy takes some sleeping threads for working ones, so that its
    samples tell how a thread's time is divided, and not how much time that is.
    """
    parsed = [_parsed(line) for line in stacks if _THREAD.match(line)]
    samples: Counter[int] = Counter()
    for thread, _, count in parsed:
        samples[thread] += count
    layers: defaultdict[str, float] = defaultdict(float)
    functions: defaultdict[str, float] = defaultdict(float)
    for thread, stack, count in parsed:
        if not (seconds := cpu_s.get(thread, 0.0) * count / samples[thread]):
            continue
        layers[layer_of(stack)] += seconds
        functions[re.sub(r":\d+\)$", ")", stack[-1])] += seconds
    return Profile(layers, functions, samples.total())


def _parsed(line: str) -> tuple[int, list[str], int]:
    """Thread, frames from the outermost to the innermost, and count of a raw line."""
    frames, _, count = line.rpartition(" ")
    found = _THREAD.match(frames)
    assert found is not None
    return int(found[1]), frames.split(";")[1:] or [OTHER], int(count)


def _shares(seconds: Mapping[str, float]) -> dict[str, float]:
    total = sum(seconds.values()) or 1.0
    return {name: value / total for name, value in sorted(seconds.items(), key=lambda item: -item[1])}


def layer_of(stack: Sequence[str]) -> str:
    """The layer that a stack's innermost known frame belongs to; OTHER where none is known."""
    for frame in reversed(stack):
        for layer, pattern in _RULES:
            if pattern.search(frame):
                return layer
    return OTHER


def record(pids: Sequence[int], folder: Path, seconds: int) -> Profile:
    """The profile of processes over so many seconds; stacks and flame graphs go to folder. Raises RayAppError."""
    folder.mkdir(parents=True, exist_ok=True)
    before = _cpu_s(pids)
    _py_spy(pids, folder, seconds, "raw", "txt")
    used = {thread: value - before.get(thread, 0.0) for thread, value in _cpu_s(pids).items()}
    _py_spy(pids[:1], folder, seconds, "flamegraph", "svg")
    _py_spy(pids[:1], folder, seconds, "speedscope", "json")
    stacks = [line for n in range(len(pids)) for line in _file(folder, n, "txt").read_text().splitlines()]
    found = profile(stacks, used)
    if not found.samples:
        raise RayAppError(f"py-spy saw no thread of the replicas at work in {seconds} s; give more --seconds")
    return found


def _cpu_s(pids: Iterable[int]) -> dict[int, float]:
    """CPU seconds of each thread of some processes so far."""
    return {
        thread.id: thread.user_time + thread.system_time for pid in pids for thread in psutil.Process(pid).threads()
    }


def _py_spy(pids: Sequence[int], folder: Path, seconds: int, form: str, suffix: str) -> None:
    watching = []
    for n, pid in enumerate(pids):
        program = str(Path(sys.executable).with_name("py-spy"))  # comes with ray[default]
        command = [program, "record", "--nonblocking", "--threads", "--pid", str(pid), "--duration", str(seconds)]
        command += ["--format", form, "--rate", str(SAMPLES_PER_S), "--output", str(_file(folder, n, suffix))]
        pipe = subprocess.PIPE
        watching.append(subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True))  # noqa: S603
    for process in watching:
        said, _ = process.communicate()
        if process.returncode:
            raise RayAppError(f"py-spy failed; it needs the right to trace processes (ptrace): {said.strip()[-400:]}")


def _file(folder: Path, number: int, suffix: str) -> Path:
    return folder / f"replica-{number + 1}.{suffix}"


def show(console: Console, found: Profile, cpu_ms: Mapping[str, float], replicas: str) -> None:
    """Print where the CPU time of one request goes; cpu_ms is that of each role, replicas the role that was sampled."""
    table = Table("layer", "CPU µs a request", "share of the replica", title="where the time goes")
    for name, ms in cpu_ms.items():
        if name != replicas:
            table.add_row(name, f"{1000 * ms:.0f}", "")
    for layer, share in found.shares().items():
        table.add_row(f"replica: {layer}", f"{1000 * cpu_ms.get(replicas, 0.0) * share:.0f}", f"{share:.1%}")
    console.print(table)
    table = Table("function", "share of the replica", title=f"top functions ({found.samples:,} samples)")
    for function, share in found.top(15).items():
        table.add_row(function, f"{share:.1%}")
    console.print(table)
