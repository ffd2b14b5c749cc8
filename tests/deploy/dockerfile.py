"""Reads Dockerfiles: stages with their instructions, and what holds for an image, be it said in the stage or before."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Stage:
    """What stands between one FROM and the next."""

    parent: str
    name: str
    instructions: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Dockerfile:
    """A file with its stages, in order; arguments: those before the first FROM."""

    path: Path
    arguments: dict[str, str]
    stages: dict[str, Stage]

    def chain(self, name: str) -> Iterator[Stage]:
        """A stage and those that it stands on, the nearest first."""
        while name in self.stages:
            yield self.stages[name]
            name = self.stages[name].parent

    def last(self, target: str, word: str) -> str | None:
        """The value of the instruction `word` that holds for an image of this target."""
        for stage in self.chain(target):
            values = [value for instruction, value in stage.instructions if instruction == word]
            if values:
                return values[-1]
        return None

    def all(self, word: str, *targets: str) -> Iterator[tuple[Stage, str]]:
        """Every value of the instruction `word`, with its stage; targets: of these stages alone."""
        for stage in self.stages.values():
            if not targets or stage.name in targets:
                yield from ((stage, value) for instruction, value in stage.instructions if instruction == word)


def read(path: Path) -> Dockerfile:
    """The file at path; comments and line breaks are gone."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    stage = None
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        word, _, value = line.strip().partition(" ")
        if word == "FROM":
            parent, _, name = value.partition(" AS ")
            stage = stages[name or parent] = Stage(parent, name or parent)
        elif stage:
            stage.instructions.append((word, value))
        elif word == "ARG":
            name, _, default = value.partition("=")
            arguments[name] = default
    return Dockerfile(path, arguments, stages)
