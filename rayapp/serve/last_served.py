"""LastServed: a note on disk of the model that was served last, for a start while MLflow is away."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from rayapp.registry.uris import ModelVersion

VERSION = TypeAdapter(ModelVersion)
log = logging.getLogger(__name__)


class LastServed:
    """One file beside the downloaded bundles: model URI -> the version that it meant, and what is said of it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "last_served.json"

    def read(self, model: str) -> tuple[ModelVersion, dict[str, Any]] | None:
        """What was served last under a model URI; None where nothing was, or the note is damaged."""
        found = self._notes().get(model)
        if not isinstance(found, dict):
            return None
        try:
            return VERSION.validate_python(found["version"]), dict(found["metadata"])
        except (ValidationError, KeyError, TypeError, ValueError) as error:
            log.warning("cannot use %s: %s", self._path, " ".join(str(error).split()))
            return None

    def write(self, model: str, version: ModelVersion, metadata: Mapping[str, Any]) -> None:
        """Note what is served from now on. A note that cannot be written is logged: serving goes on without."""
        note = {"version": VERSION.dump_python(version, mode="json"), "metadata": dict(metadata)}
        partial = self._path.with_suffix(f".{os.getpid()}.partial")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps({**self._notes(), model: note}), encoding="utf-8")
            os.replace(partial, self._path)
        except OSError as error:
            log.warning("cannot note the served model in %s: %s", self._path, error)

    def _notes(self) -> dict[str, Any]:
        try:
            notes = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # none yet, or damaged: the next write replaces it
            return {}
        return notes if isinstance(notes, dict) else {}
