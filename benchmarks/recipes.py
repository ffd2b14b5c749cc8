"""Recipes of jobs/configs, read without a YAML library: the sections that decide about accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from rayapp.config.base import Section
from rayapp.config.train import AugmentConfig, ModelConfig, OptimConfig
from rayapp.errors import ConfigError


class Recipe(Section):
    """Sections of `rayapp train`."""

    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    augment: AugmentConfig = AugmentConfig()

    @classmethod
    def load(cls, path: Path | None, over: Mapping[str, Mapping[str, Any]]) -> Self:
        """The recipe in a file of jobs/configs, or rayapp's defaults, with the fields over it that are not None.

        Raises ConfigError.
        """
        values: dict[str, dict[str, Any]] = read_config(path) if path else {}
        for section, fields in over.items():
            named = {name: value for name, value in fields.items() if value is not None}
            values[section] = values.get(section, {}) | named
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(f"{'.'.join(map(str, first['loc']))} is {first['input']!r}: {first['msg']}") from error


def read_config(path: Path) -> dict[str, dict[str, Any]]:
    """The sections of a file but data: name -> value, as text.

    Raises ConfigError where a line is neither "section:" nor "  name: value", nor a comment.
    """
    if not path.exists():
        raise ConfigError(f"--config {path} is not there; give a file of jobs/configs")
    sections: dict[str, dict[str, Any]] = {}
    fields: dict[str, Any] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        words = line.partition("#")[0].rstrip()
        name, colon, value = (part.strip() for part in words.partition(":"))
        if words and (not colon or words.startswith(" ") != bool(value)):
            raise ConfigError(f"--config {path}, line {number}: '{line}' is neither 'section:' nor '  name: value'")
        if value:
            fields[name] = value
        elif words:
            fields = sections.setdefault(name, {})
    return {name: fields for name, fields in sections.items() if name != "data"}
