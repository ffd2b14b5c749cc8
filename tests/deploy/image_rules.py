"""What our Dockerfiles have to say beside what hadolint knows. Each rule yields sentences that name file and field."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.deploy.dockerfile import Dockerfile

USER = "10001:10001"
HAPROXY = "/usr/local/bin/rayapp-haproxy"
VERSION_ARGUMENT = re.compile(r"\b([A-Z]+_VERSION)\b(=\S+)?")


def problems(file: Dockerfile, root: Path, targets: Mapping[str, set[str]], python: str) -> list[str]:
    """All that is wrong with a file. targets: for each the version arguments that its build must assert."""
    rules = [
        *base(file, python),
        *targets_run_as_user(file, targets),
        *versions(file, targets),
        *pip(file),
        *sources(file, root),
    ]
    return [f"{file.path.name}: {problem}" for problem in rules]


def base(file: Dockerfile, python: str) -> Iterator[str]:
    """One base image, named once, of the Python that versions.env names, with a tag that says so."""
    image = file.arguments.get("BASE", "")
    if not re.fullmatch(rf"python:{re.escape(python)}(\.\d+)?-slim-\w+(@sha256:[0-9a-f]{{64}})?", image):
        yield f"ARG BASE={image} is not python:{python}-slim-RELEASE"
    for stage in file.stages.values():
        if stage.parent != "${BASE}" and stage.parent not in file.stages:
            yield f"FROM {stage.parent} AS {stage.name}: it is neither ${{BASE}} nor a stage"


def targets_run_as_user(file: Dockerfile, targets: Mapping[str, set[str]]) -> Iterator[str]:
    """What runs is not root, has a health check, a command, and a folder to stand in."""
    for target in targets:
        if (user := file.last(target, "USER")) != USER:
            yield f"target {target}: USER is {user}, not {USER}"
        for word in ("HEALTHCHECK", "CMD", "WORKDIR", "EXPOSE"):
            if file.last(target, word) is None:
                yield f"target {target}: no {word}"


def versions(file: Dockerfile, targets: Mapping[str, set[str]]) -> Iterator[str]:
    """Versions come from versions.env as arguments, without a second value here, and the build asserts them."""
    for stage, value in file.all("ARG"):
        for name, default in VERSION_ARGUMENT.findall(value):
            if default:
                yield f"stage {stage.name}: ARG {name}{default} repeats what cluster/versions.env says"
    for target, names in targets.items():
        checks = [value for stage, value in file.all("RUN") if f"check_image.py {target} " in value]
        asserted = {name for value in checks for name, _ in VERSION_ARGUMENT.findall(value)}
        for name in sorted(names - asserted):
            yield f"target {target}: no RUN check_image.py {target} asserts {name}"


def pip(file: Dockerfile) -> Iterator[str]:
    """Nothing is installed but in the versions of constraints.txt, and no cache is left behind."""
    for stage, value in file.all("RUN"):
        for command in re.findall(r"[^&|;]*\bpip install\b[^&|;]*", value):
            if "-c constraints.txt" not in command and "PIP_CONSTRAINT=" not in command:
                yield f"stage {stage.name}: `{command.strip()}` is without constraints.txt"
            if "--no-cache-dir" not in command:
                yield f"stage {stage.name}: `{command.strip()}` leaves its cache in the image"


def sources(file: Dockerfile, root: Path) -> Iterator[str]:
    """What is copied from the repository exists, and .dockerignore lets it through."""
    allowed = {line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for stage, value in file.all("COPY"):
        if value.startswith("--from="):
            continue
        for source in value.split()[:-1]:
            if not (root / source).exists():
                yield f"stage {stage.name}: COPY {source}: there is no such file"
            if source not in allowed:
                yield f"stage {stage.name}: COPY {source}: .dockerignore leaves it out"
