"""The one reader of the environment: RAYAPP_HOME, MLFLOW_TRACKING_URI, RAYAPP_API_KEY, RAYAPP_GIT_SHA, RAY_ADDRESS and
where else Ray's own rules have to be known.

AWS_* and the like are read by the libraries that own them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Self

from pydantic import Field

from rayapp.config.base import Section
from rayapp.errors import ConfigError


class Home(Section):
    """The folder that holds all state of this machine, and the MLflow server or database that goes with it."""

    folder: Path = Field(description="Folder of mlflow.db, artifacts/, runs/ and data/.")
    tracking_uri: str = Field(description="MLflow server or database.")

    @property
    def runs(self) -> Path:
        """Checkpoints and bundles, one folder per run."""
        return self.folder / "runs"

    @property
    def sweeps(self) -> Path:
        """Rows and state of sweeps, one folder per sweep."""
        return self.folder / "sweeps"

    @property
    def data(self) -> Path:
        """Downloaded and decoded data sets."""
        return self.folder / "data"

    @property
    def artifacts(self) -> Path:
        """MLflow's artifacts, where the tracking store is a database of this folder."""
        return self.folder / "artifacts"

    @property
    def bundles(self) -> Path:
        """Bundles downloaded from the registry, one folder per digest."""
        return self.folder / "bundles"

    @classmethod
    def from_env(cls) -> Self:
        """The home that RAYAPP_HOME (default ./.rayapp) and MLFLOW_TRACKING_URI (default: sqlite in it) name.

        The working directory of a submitted Ray job is a copy that is thrown away, so there the default is ~/.rayapp.
        """
        folder = Path(os.environ.get("RAYAPP_HOME", "") or ".rayapp").expanduser()
        if not folder.is_absolute():
            folder = cls._base(os.environ.get("RAYAPP_HOME", "")) / folder
        uri = os.environ.get("MLFLOW_TRACKING_URI", "") or f"sqlite:///{folder / 'mlflow.db'}"
        return cls(folder=folder, tracking_uri=uri)

    @staticmethod
    def _base(given: str) -> Path:
        try:
            here = Path.cwd()
        except FileNotFoundError as error:
            raise ConfigError(
                "the working folder was deleted, and RAYAPP_HOME is in it; cd to another one, or set RAYAPP_HOME to an"
                " absolute path"
            ) from error
        return Path.home() if not given and "/runtime_resources/working_dir_files/" in f"{here}/" else here


def ray_address() -> str | None:
    """The cluster that RAY_ADDRESS names (Ray reads it itself); None where Ray is to be started in this process."""
    address = os.environ.get("RAY_ADDRESS") or "local"
    return None if address == "local" else address


def ray_uses_tls() -> bool:
    """Whether Ray's own connections are encrypted: RAY_USE_TLS, as Ray reads it."""
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")


def ray_folder() -> Path:
    """Where Ray keeps its sessions and their sockets unless it is told otherwise, by Ray's own rule."""
    temporary = os.environ.get("TMPDIR", "/tmp") if sys.platform == "linux" else "/tmp"  # noqa: S108 - Ray's default
    return Path(os.environ.get("RAY_TMPDIR", temporary)) / "ray"


def built_git_sha() -> str | None:
    """The commit that an image was built from, RAYAPP_GIT_SHA: an image is no checkout. None elsewhere."""
    return os.environ.get("RAYAPP_GIT_SHA") or None


def api_key() -> str | None:
    """The key that `rayapp predict --url` sends: RAYAPP_API_KEY, because flags are in the list of processes."""
    return os.environ.get("RAYAPP_API_KEY") or None
