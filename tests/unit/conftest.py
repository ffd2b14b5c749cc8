"""An sqlite store of MLflow for each test that asks for one, and an S3 server for each file."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayapp.registry.tracking import connected
from tests.support.servers import s3_server


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, which take 3 s to make."""
    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    with connected(f"sqlite:///{path}"):
        return path


@pytest.fixture
def uri(template: Path, home: Path) -> str:
    """Of a store in the home of the test."""
    home.mkdir()
    shutil.copy(template, home / "mlflow.db")
    return f"sqlite:///{home / 'mlflow.db'}"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The address of an S3 server."""
    with s3_server() as url:
        yield url
