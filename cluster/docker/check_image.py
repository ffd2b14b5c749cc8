"""Fails the build of an image whose packages are not those that were asked for: VARIANT NAME==VERSION ...

VARIANT is cpu or cuda (of torch), or mlflow (the tracking server). Runs with the image's own Python, beside the files
that pin its packages.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).parent
CUDA = re.compile(r"(nvidia|cuda)-.*|triton")
NOT_PINNED = {"pip", "rayapp"}  # the base image's and our own


def canonical(name: str) -> str:
    """A package's name as PEP 503 writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins_of(*files: Path) -> dict[str, str]:
    """NAME==VERSION of each line that has one."""
    lines = (line.partition("#")[0].strip() for file in files for line in file.read_text(encoding="utf-8").splitlines())
    return {canonical(name): version for name, _, version in (line.partition("==") for line in lines) if version}


def installed() -> dict[str, str]:
    """The version of each package of this Python, without what a build adds to it (+cpu)."""
    packages = importlib.metadata.distributions()
    return {canonical(package.metadata["Name"]): package.version.partition("+")[0] for package in packages}


def wrong_versions(found: Mapping[str, str], expected: Mapping[str, str]) -> Iterator[str]:
    """What differs from the versions that the build was given."""
    here = {**found, "python": ".".join(map(str, sys.version_info[:2]))}
    for name, version in expected.items():
        if here.get(name) != version:
            yield f"{name} is {here.get(name)}, and the build was given {version or 'no version of it'}"


def not_as_pinned(found: Mapping[str, str], pins: Mapping[str, str]) -> Iterator[str]:
    """What differs from the pins, or has none."""
    for name, version in sorted(found.items()):
        if name not in NOT_PINNED and pins.get(name) != version:
            yield f"{name} {version} is installed, and {pins.get(name, 'nothing')} is pinned"


def wrong_torch(variant: str, found: Mapping[str, str]) -> Iterator[str]:
    """CUDA where it must not be, or none where it must be."""
    libraries = sorted(name for name in found if CUDA.fullmatch(name))
    if variant != "cuda" and libraries:
        yield f"the {variant} image holds CUDA: {', '.join(libraries)}"
    if variant == "mlflow":
        return
    import torch

    importlib.import_module("torchvision")  # fails where it was built for another torch
    if (torch.version.cuda is None) != (variant == "cpu"):
        yield f"the {variant} image has torch {torch.__version__}, built for CUDA {torch.version.cuda}"


def main(variant: str, *expected: str) -> int:
    """Say what is wrong; 1 if anything is."""
    if variant not in ("cpu", "cuda", "mlflow"):
        raise SystemExit(f"{variant!r} is no variant: cpu, cuda or mlflow")
    found, pins = installed(), pins_of(*sorted(HERE.glob("*.txt")))
    wanted = {canonical(name): version for name, _, version in (word.partition("==") for word in expected)}
    wrong = [*wrong_versions(found, wanted), *not_as_pinned(found, pins), *wrong_torch(variant, found)]
    requirements = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    if requirements.returncode:
        wrong += requirements.stdout.splitlines()
    for line in wrong:
        print(f"check_image: {line}", file=sys.stderr)
    return 1 if wrong else 0


def arguments(words: Sequence[str]) -> Sequence[str]:
    """The words of the command line, or how to call this."""
    if not words:
        raise SystemExit(__doc__)
    return words


if __name__ == "__main__":
    sys.exit(main(*arguments(sys.argv[1:])))
