"""Training that is cut off anywhere goes on by itself or with --resume, and ends with the same bits."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from rich.console import Console

from rayapp.config.commands import TrainSettings
from rayapp.config.env import Home
from rayapp.config.parse import validate
from rayapp.errors import ConfigError, TrainingError
from rayapp.train.checkpoints import Checkpoints
from rayapp.train.record import TrainingRun
from tests.support.digits import few_digits
from tests.support.processes import children, kill
from tests.support.stores import home_at
from tests.support.wait import until

pytestmark = pytest.mark.timeout(600)  # a killed driver is started again, and trains with two workers each time


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """22 optimiser steps an epoch on 2 ranks, a checkpoint every 4 of them."""
    return {
        "data": {"dataset": "parquet", "path": str(few_digits(tmp_path_factory.mktemp("few")))},
        "model": {"name": "mobilenet_v3_small"},
        "optim": {"epochs": 2, "batch_size": 6},
        "compute": {"num_workers": 2, "deterministic": True},
        "checkpoint": {"every_steps": 4},
        "tracking": {"log_every_steps": 4},
        "register": False,
    }


def settings(recipe: dict[str, Any], **sections: object) -> TrainSettings:
    return validate(TrainSettings, recipe | sections)


def final_state(home: Home, run: str) -> dict[str, object]:
    found = Checkpoints(str(home.runs), run).newest()
    assert found is not None
    return found[1]


def assert_same_bits(one: dict, other: dict) -> None:  # type: ignore[type-arg]
    for part in ("model", "best_weights"):
        different = [name for name, tensor in one[part].items() if not torch.equal(tensor, other[part][name])]
        assert different == []
    assert one["position"] == other["position"]
    figures = ("epoch", "step", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "is_best")
    rows = [[{name: row[name] for name in figures} for row in state["epochs"]] for state in (one, other)]
    assert rows[0] == rows[1]


@pytest.fixture(scope="module")
def whole(ray_cluster: None, recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> TrainingRun:
    """A run that nothing interrupted."""
    from rayapp.train.driver import train

    return train(settings(recipe), home_at(tmp_path_factory.mktemp("whole"))).run


@pytest.fixture(scope="module")
def uninterrupted(whole: TrainingRun) -> dict[str, object]:
    found = Checkpoints(whole.storage, whole.name).newest()
    assert found is not None
    return found[1]


def steps_saved(home: Home) -> list[int]:
    return [int(path.parent.name.split("_")[1]) for path in home.runs.glob("*/checkpoint_*/digest.json")]


def client(home: Home):  # type: ignore[no-untyped-def]
    from mlflow import MlflowClient

    return MlflowClient(home.tracking_uri)


def command(home: Home, recipe: dict[str, Any], said: Path) -> subprocess.Popen[str]:
    """`rayapp train` as a job that is tried again would run it."""
    config = home.folder / "recipe.yaml"
    config.write_text(json.dumps(recipe))
    words = ("train", "--config", str(config), "--name", "nightly", "--resume", "auto")
    with said.open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "rayapp.cli", *words],
            env=os.environ | {"RAYAPP_HOME": str(home.folder)},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )


def kill_a_worker_and_the_display(driver: psutil.Process) -> None:
    (display,) = children(driver, "ray::ProgressActor")
    assert kill(display)
    assert kill(children(driver, "RayTrainWorker")[0])


def test_F43_a_killed_worker_and_a_killed_driver_whose_job_is_tried_again_change_no_bit_of_the_result(
    tmp_path: Path, recipe: dict[str, Any], uninterrupted: dict[str, object]
) -> None:
    home, said = home_at(tmp_path), tmp_path / "said"
    first = command(home, recipe, said)

    def happens(what: Callable[[], bool]) -> None:
        until(lambda: what() or first.poll() is not None, patience_s=300)
        assert first.poll() is None, said.read_text()

    happens(lambda: bool(steps_saved(home)))  # in the middle of the first epoch
    kill_a_worker_and_the_display(psutil.Process(first.pid))
    happens(lambda: "went on from step" in said.read_text())
    happens(lambda: any(step > 22 for step in steps_saved(home)))  # in the middle of the second
    first.kill()
    first.communicate(timeout=200)
    assert first.returncode == -signal.SIGKILL

    second = command(home, recipe, said)
    output, _ = second.communicate(timeout=600)
    assert second.returncode == 0, said.read_text()
    assert "went on from step" in said.read_text()
    result = json.loads(output.splitlines()[-1])
    assert result["run_name"] == "nightly"
    assert_same_bits(uninterrupted, final_state(home, "nightly"))
    (run,) = client(home).search_runs([client(home).get_experiment_by_name("rayapp").experiment_id])
    assert (run.info.run_id, run.info.status) == (result["run_id"], "FINISHED")
    epochs = [m.step for m in client(home).get_metric_history(run.info.run_id, "val/accuracy")]
    assert sorted(set(epochs)) == [1, 2]

    from rayapp.train.driver import train

    same = settings(recipe, name="nightly", resume="auto")  # a retry of a job that was done already trains nothing
    assert train(same, home).to_dict()["val_accuracy"] == result["val_accuracy"]
    with pytest.raises(ConfigError, match=r"was started with other settings: optim\.epochs \(was 2, is 3\)"):
        train(same.model_copy(update={"optim": same.optim.model_copy(update={"epochs": 3})}), home)


def test_an_unreadable_checkpoint_is_passed_over_and_said(
    whole: TrainingRun, uninterrupted: dict[str, object], tmp_path: Path
) -> None:
    from rayapp.train.driver import train

    home = home_at(whole.folder.parents[1])
    before, newest = Checkpoints(whole.storage, whole.name).names()
    (whole.folder / newest / "state.pt").write_bytes(b"half of it")
    whole.at("training")
    said = Console(file=(tmp_path / "said").open("w"), width=200)
    result = train(validate(TrainSettings, {"resume": whole.name}), home, said)
    assert [e.epoch for e in result.epochs] == [1, 2]
    text = (tmp_path / "said").read_text()
    assert f"checkpoint {newest} cannot be read" in text
    assert f"checkpoint {before}" in text
    assert_same_bits(uninterrupted, final_state(home, whole.name))


def test_two_runs_of_one_name_are_refused(ray_cluster: None, tmp_path: Path, recipe: dict[str, Any]) -> None:
    from rayapp.train.driver import train

    home = home_at(tmp_path)
    run = TrainingRun("nightly", "0" * 32, "training", home.runs / "nightly", settings(recipe, name="nightly"))
    run.save()
    with pytest.raises(ConfigError, match=r"run 'nightly' exists already \(stage: training\); give another --name, or"):
        train(settings(recipe, name="nightly"), home)
    held = (
        "import sys; from filelock import FileLock; x = FileLock(sys.argv[1]); x.acquire(); print(flush=True); input()"
    )
    other = subprocess.Popen([sys.executable, "-c", held, str(run.folder / "lock")], stdin=-1, stdout=-1)
    assert other.stdout is not None
    other.stdout.readline()
    with pytest.raises(ConfigError, match="run 'nightly' is being trained by another process"):
        train(validate(TrainSettings, {"resume": "nightly"}), home)
    other.kill()
    other.wait()


def parquet_with_a_corrupt_image(folder: Path) -> Path:
    """Images of two colours, one of which is cut off: too many for the sample that is looked at before training."""
    content = {}
    for label, colour in enumerate(((200, 30, 30), (30, 30, 200))):
        buffer = io.BytesIO()
        Image.new("RGB", (32, 32), colour).save(buffer, "PNG")
        content[label] = buffer.getvalue()
    rows = [{"image": {"bytes": content[n % 2], "path": None}, "label": n % 2} for n in range(6_000)]
    rows[3650]["image"] = {"bytes": content[0][:40], "path": None}
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet", row_group_size=500)
    return folder


def test_what_one_rank_alone_cannot_heal_ends_all_with_its_cause(
    ray_cluster: None, tmp_path: Path, recipe: dict[str, Any]
) -> None:
    from rayapp.train.driver import train

    data = {"dataset": "parquet", "path": str(parquet_with_a_corrupt_image(tmp_path / "data")), "stream": True}
    home = home_at(tmp_path)
    with pytest.raises(TrainingError, match=r"train\.parquet, row 3650.*cannot be decoded.*--data\.on_error skip"):
        train(settings(recipe, data=data, optim={"epochs": 1}), home)
    (run,) = client(home).search_runs([client(home).get_experiment_by_name("rayapp").experiment_id])
    assert run.info.status == "FAILED"
