"""The chart of MLflow as a release of real Helm: installed, upgraded, rolled back and gone."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.cluster.conftest import Platform
from tests.cluster.control_plane import ControlPlane, within_a_minute
from tests.deploy.chart_rules import CHART, FILES, GIVEN

WHERE = ("mlflow", "--namespace", "mlflow")


@pytest.fixture
def given(tmp_path: Path) -> Path:
    file = tmp_path / "given.yaml"
    file.write_text(yaml.safe_dump(GIVEN), encoding="utf-8")
    return file


@pytest.mark.parametrize("name", FILES)
def test_a_release_is_installed_upgraded_and_rolled_back(platform: Platform, name: str, given: Path):
    plane = platform.plane
    values = [f"--values={file}" for file in (*FILES[name], given)]
    plane.helm("upgrade", "--install", *WHERE[:1], CHART, *WHERE[1:], *values)
    within_a_minute(lambda: running(plane) >= 1, otherwise=lambda: str(plane.refused("mlflow")))
    jobs = len(plane.get("jobs", *WHERE[1:])["items"])
    plane.helm("upgrade", *WHERE[:1], CHART, *WHERE[1:], *values, "--set", "server.workers=3")
    assert "--workers=3" in arguments(plane)
    plane.helm("rollback", "mlflow", "1", *WHERE[1:])
    assert "--workers=3" not in arguments(plane)
    assert jobs == 1
    assert plane.refused("mlflow") == []
    plane.helm("uninstall", *WHERE)
    within_a_minute(lambda: not plane.get("deployments,services,jobs", *WHERE[1:])["items"])


def running(plane: ControlPlane) -> int:
    """Pods that were made."""
    return len(plane.get("pods", *WHERE[1:])["items"])


def arguments(plane: ControlPlane) -> str:
    """The command line of the server."""
    deployment = plane.get("deployment", *WHERE)
    return " ".join(deployment["spec"]["template"]["spec"]["containers"][0].get("args", []))
