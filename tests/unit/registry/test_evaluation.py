from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from rayapp.config.commands import EvaluateSettings
from rayapp.config.env import Home
from rayapp.data.datasets import load
from rayapp.registry.evaluation import evaluate_version
from rayapp.registry.models import Registry
from rayapp.registry.tracking import Tracker
from tests.support.bundles import digits_bundle
from tests.support.stores import home_at


@pytest.fixture
def registered(tmp_path: Path) -> Home:
    """A home whose model version 1 is an untrained model of the digits."""
    from rayapp.config.train import DataConfig

    home = home_at(tmp_path)
    info = load(DataConfig(), home.data).info
    digits_bundle(tmp_path / "bundle", info)
    run_id = Tracker(home.tracking_uri, home.artifacts).open_run("rayapp", "a run", {}, {})
    registry = Registry(home.tracking_uri)
    registry.register(run_id, registry.log_bundle(run_id, tmp_path / "bundle"))
    return home


def test_the_figures_are_on_the_version_and_the_files_at_the_run(registered: Home) -> None:
    evaluation = evaluate_version(EvaluateSettings(), registered)
    said = evaluation.to_dict()
    assert said["n"] == 360
    assert said["test_accuracy_low"] <= said["test_accuracy"] <= said["test_accuracy_high"]
    client = MlflowClient(registered.tracking_uri)
    version = client.get_model_version("vision", "1")
    assert float(version.tags["test_accuracy"]) == said["test_accuracy"]
    assert version.tags["test_opened"] == "1"
    (folder,) = client.list_artifacts(version.run_id, "evaluation")
    names = {Path(f.path).name for f in client.list_artifacts(version.run_id, folder.path)}
    assert names == {"report.json", "confusion.png", "calibration.png", "classes.png", "classes_table.json"}
    table = json.loads(Path(client.download_artifacts(version.run_id, f"{folder.path}/classes_table.json")).read_text())
    assert table["columns"][0] == "name"
    assert len(table["data"]) == 10


def test_F23_test_figures_never_become_metrics_of_the_run(registered: Home) -> None:
    evaluation = evaluate_version(EvaluateSettings(), registered)
    run = MlflowClient(registered.tracking_uri).get_run(evaluation.version.run_id)
    assert run.data.metrics == {}
    assert not [tag for tag in run.data.tags if "test" in tag]


def test_opening_the_test_split_again_is_counted_and_said(registered: Home, caplog: pytest.LogCaptureFixture) -> None:
    first = evaluate_version(EvaluateSettings(), registered)
    second = evaluate_version(EvaluateSettings(), registered)
    assert second.to_dict()["test_accuracy"] == first.to_dict()["test_accuracy"]
    assert "the test split is opened for models:/vision/1 for the 2. time" in caplog.text
    version = MlflowClient(registered.tracking_uri).get_model_version("vision", "1")
    assert version.tags["test_opened"] == "2"


def test_validation_leaves_the_test_split_closed(registered: Home) -> None:
    said = evaluate_version(EvaluateSettings(split="validation"), registered).to_dict()
    assert said["n"] == 144
    assert "test_accuracy" not in said
    assert "test_opened" not in MlflowClient(registered.tracking_uri).get_model_version("vision", "1").tags
