"""The bare model: what decode, model and JSON give without HTTP, in one process and in several.

Each process has one thread. All are ready before the first begins, so that they really run beside each other.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson

from rayapp.errors import RayAppError
from rayapp.serve.asgi import prediction
from rayapp.vision.bundle import Bundle
from rayapp.vision.predictor import Predictor

DECODE, MODEL, JSON, ALL = "decode", "model", "JSON", "decode + model + JSON"
CASE = "the bare model, without HTTP"


@dataclass(frozen=True)
class Work:
    """What is repeated, with so many images at a time, in so many processes."""

    what: str
    batch: int = 1
    num_processes: int = 1

    def __str__(self) -> str:
        where = "1 process" if self.num_processes == 1 else f"{self.num_processes} processes"
        return f"{self.what}, batch of {self.batch}, {where}"


WORKS = (
    Work(DECODE),
    Work(JSON),
    *(Work(MODEL, batch) for batch in (1, 8, 32)),
    Work(MODEL, 32, 2),
    *(Work(ALL, batch) for batch in (1, 8, 32)),
    Work(ALL, 32, 2),
)


def measure(work: Work, *, bundle: Path, image: Path, seconds: float) -> float:
    """Images per second of a work, all its processes together. Raises RayAppError where one fails."""
    command = [sys.executable, "-m", "benchmarks.bare", "--what", work.what, "--batch", str(work.batch)]
    command += ["--bundle", str(bundle), "--image", str(image), "--seconds", str(seconds)]
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(_process(command)) for _ in range(work.num_processes)]
        for child in children:
            assert child.stdout is not None
            if child.stdout.readline() != "ready\n":
                raise RayAppError(f"the process for '{work}' ended at once; run it by hand: {' '.join(command)}")
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        return sum(float(json.loads(child.communicate()[0])) for child in children)


@contextlib.contextmanager
def _process(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that does not outlive the with block, and that Ctrl-C does not reach before us."""
    pipe = subprocess.PIPE
    child = subprocess.Popen(  # noqa: S603
        command, stdin=pipe, stdout=pipe, text=True, cwd=Path(__file__).parents[1], start_new_session=True
    )
    with child:
        try:
            yield child
        finally:
            child.kill()


def images_per_s(step: Callable[[], object], *, batch: int, seconds: float) -> float:
    """Images per second when step, which does batch of them, is repeated for so many seconds."""
    for _ in range(3):
        step()
    num_steps, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < seconds:
        step()
        num_steps += 1
    return num_steps * batch / passed


def _step(what: str, batch: int, bundle: Path, image: bytes) -> Callable[[], object]:
    """One repetition of a work."""
    predictor = Predictor.load(Bundle.open(bundle), device="cpu", num_threads=1)
    spec, classes = predictor.bundle.manifest.preprocess, predictor.bundle.manifest.class_names
    images_nhwc = np.stack([spec.decode(image)] * batch)
    rows_nk = predictor.predict(images_nhwc)

    def everything() -> list[bytes]:
        decoded_nhwc = np.stack([spec.decode(image) for _ in range(batch)])
        return [orjson.dumps(prediction(row_k, classes)) for row_k in predictor.predict(decoded_nhwc)]

    return {
        DECODE: lambda: [spec.decode(image) for _ in range(batch)],
        MODEL: lambda: predictor.predict(images_nhwc),
        JSON: lambda: [orjson.dumps(prediction(row_k, classes)) for row_k in rows_nk],
        ALL: everything,
    }[what]


def main(argv: Sequence[str] | None = None) -> None:
    """One process of a work: says "ready", waits for a line, and prints its images per second."""
    parser = argparse.ArgumentParser(description="One process of the bare model.")
    parser.add_argument("--what", choices=(DECODE, MODEL, JSON, ALL), required=True)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args(argv)
    step = _step(options.what, options.batch, options.bundle, options.image.read_bytes())
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(images_per_s(step, batch=options.batch, seconds=options.seconds)))


if __name__ == "__main__":
    main()
