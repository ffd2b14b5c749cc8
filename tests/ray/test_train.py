"""Training for real: Ray workers, MLflow on sqlite or as a server, checkpoints on disk."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from rayapp.config.commands import TrainSettings
from rayapp.config.env import Home
from rayapp.config.parse import validate
from rayapp.errors import ConfigError
from rayapp.runtime.progress import ProgressActor
from tests.support.digits import few_digits
from tests.support.servers import MlflowServer
from tests.support.stores import home_at


def settings(**sections: object) -> TrainSettings:
    quick = {"optim": {"epochs": 2}, "tracking": {"log_every_steps": 2}}
    return validate(TrainSettings, quick | sections)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Settings of data, for what is not about accuracy."""
    return {"dataset": "parquet", "path": str(few_digits(tmp_path_factory.mktemp("few")))}


def client(home: Home):  # type: ignore[no-untyped-def]
    from mlflow import MlflowClient

    return MlflowClient(home.tracking_uri)


@pytest.fixture(scope="module")
def trained(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """One training of two workers that several tests look at, its home, and what it returned."""
    from rayapp.train.driver import train

    folder = tmp_path_factory.mktemp("trained")
    home = home_at(folder)
    return home, train(settings(data={"dataset": "digits"}, compute={"num_workers": 2}), home)


def test_two_workers_train_one_model_that_is_registered_as_challenger(trained) -> None:  # type: ignore[no-untyped-def]
    home, result = trained
    said = result.to_dict()
    assert said["model_uri"] == "models:/vision/1"
    assert said["model_version"] == 1
    assert said["epochs"] == 2
    assert 0.1 < said["val_accuracy"] <= 1
    version = client(home).get_model_version_by_alias("vision", "challenger")
    assert version.version in ("1", 1)
    assert version.run_id == said["run_id"]


def test_F44_there_is_exactly_one_run_and_it_is_finished(trained) -> None:  # type: ignore[no-untyped-def]
    home, result = trained
    mlflow = client(home)
    experiment = mlflow.get_experiment_by_name("rayapp")
    runs = mlflow.search_runs([experiment.experiment_id])
    assert [(r.info.run_id, r.info.status) for r in runs] == [(result.run.run_id, "FINISHED")]


def test_the_run_tells_settings_versions_code_data_and_hardware(trained) -> None:  # type: ignore[no-untyped-def]
    home, result = trained
    run = client(home).get_run(result.run.run_id)
    assert run.data.params["optim.epochs"] == "2"
    assert run.data.params["model.name"] == "mobilenet_v3_small"
    assert run.data.params["plan.world_batch"] == "64"
    for tag in ("git_sha", "data_digest", "split_digest", "hardware.cpu", "version.torch", "version.ray"):
        assert run.data.tags[tag]


def test_F17_each_metric_name_has_one_axis(trained) -> None:  # type: ignore[no-untyped-def]
    home, result = trained
    mlflow, run_id = client(home), result.run.run_id
    steps = [m.step for m in mlflow.get_metric_history(run_id, "train/loss")]
    epochs = [m.step for m in mlflow.get_metric_history(run_id, "val/accuracy")]
    assert steps == sorted(set(steps))
    assert all(step % 2 == 0 for step in steps)
    assert epochs == [1, 2]
    logged = [m.value for m in mlflow.get_metric_history(run_id, "val/accuracy")]
    assert logged == pytest.approx([e.val_accuracy for e in result.epochs])


def test_curves_checkpoint_split_and_bundle_are_in_mlflow(trained) -> None:  # type: ignore[no-untyped-def]
    home, result = trained
    mlflow, run_id = client(home), result.run.run_id
    assert {f.path for f in mlflow.list_artifacts(run_id)} >= {"curves.png", "checkpoint", "data"}
    split = np.load(mlflow.download_artifacts(run_id, "data/split.npz"))
    assert not set(split["train"]) & set(split["validation"])


def test_F5_the_registered_bundle_is_the_best_epoch(trained) -> None:  # type: ignore[no-untyped-def]
    from rayapp.registry.models import Registry
    from rayapp.vision.evaluate import dataset_of, evaluate_bundle
    from rayapp.vision.predictor import Predictor

    home, result = trained
    registry = Registry(home.tracking_uri)
    bundle = registry.download(registry.resolve("models:/vision@challenger"), home.bundles)
    predictor = Predictor.load(bundle, device="cpu")
    report = evaluate_bundle(predictor, dataset_of(bundle, home.data), split="validation")
    assert report.scores.accuracy.value == pytest.approx(result.best.val_accuracy, abs=1e-9)
    assert bundle.manifest.class_names == tuple("0123456789")


def test_a_finished_run_cannot_be_resumed(trained) -> None:  # type: ignore[no-untyped-def]
    from rayapp.train.driver import train

    home, result = trained
    with pytest.raises(ConfigError, match="is finished: there is nothing to resume"):
        train(validate(TrainSettings, {"resume": result.run.name}), home)
    with pytest.raises(ConfigError, match="no run 'nonsense' to resume"):
        train(validate(TrainSettings, {"resume": "nonsense"}), home)


def test_more_workers_than_the_cluster_has_are_refused_at_once(ray_cluster: None, tmp_path: Path) -> None:
    from rayapp.train.driver import train

    home = home_at(tmp_path)
    refusal = r"num_workers 64 on cpu needs 64 CPUs, the cluster has 2; at most 2 workers fit"
    with pytest.raises(ConfigError, match=refusal):
        train(settings(compute={"num_workers": 64}), home)
    assert not home.runs.exists()


def test_a_full_cluster_is_waited_for_and_it_is_said(ray_cluster: None, tmp_path: Path, few: dict[str, str]) -> None:
    import ray

    from rayapp.train.driver import train

    other = ray.remote(num_cpus=2)(ProgressActor).remote()
    ray.get(other.reason.remote())  # type: ignore[attr-defined]
    home = home_at(tmp_path)
    said = tmp_path / "said"

    def end_the_other_when_it_is_said() -> None:
        while "waiting for CPUs: 1 needed, 0 of the cluster's 2 free" not in said.read_text():
            time.sleep(0.1)
        ray.kill(other)

    with said.open("w", buffering=1) as file:
        ending = threading.Thread(target=end_the_other_when_it_is_said, daemon=True)
        ending.start()
        result = train(settings(data=few, optim={"epochs": 1}), home, Console(file=file))
    assert not ending.is_alive()
    assert len(result.epochs) == 1


def test_a_loss_that_explodes_ends_the_run_as_failed_without_retries(
    ray_cluster: None, tmp_path: Path, few: dict[str, str]
) -> None:
    from rayapp.errors import TrainingError
    from rayapp.train.driver import train

    home = home_at(tmp_path)
    with pytest.raises(TrainingError, match=r"lower --optim\.lr"):
        train(settings(data=few, optim={"epochs": 1, "lr": 1e30}), home)
    mlflow = client(home)
    (run,) = mlflow.search_runs([mlflow.get_experiment_by_name("rayapp").experiment_id])
    assert run.info.status == "FAILED"


def num_checkpoints(home: Path) -> int:
    return len(list(home.glob("runs/*/checkpoint_*/digest.json")))


# --- what must not end a training ---


def in_background(function: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[MlflowServer]:
    server = MlflowServer(home_at(tmp_path / "server").folder)
    server.start()
    yield server
    server.kill()


def test_F29_killing_mlflow_does_not_stop_training_and_resume_delivers(
    ray_cluster: None, tmp_path: Path, mlflow_server: MlflowServer, few: dict[str, str]
) -> None:
    from rayapp.errors import RegistryError
    from rayapp.train import publish
    from rayapp.train.driver import train

    home = Home(folder=tmp_path, tracking_uri=mlflow_server.uri)

    def kill_mlflow() -> None:
        while num_checkpoints(tmp_path) < 1:
            time.sleep(0.05)
        mlflow_server.kill()

    killer = in_background(kill_mlflow)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "PUBLISH_TIMEOUT_S", 3.0)
        with pytest.raises(
            RegistryError, match=r"the model is trained and kept in .* send it with: rayapp train --resume"
        ):
            train(settings(data=few, optim={"epochs": 3}), home)
    killer.join(timeout=10)
    (path,) = tmp_path.glob("runs/*/run.json")
    run = json.loads(path.read_text())
    assert run["stage"] == "trained"

    mlflow_server.start()
    result = train(validate(TrainSettings, {"resume": run["name"]}), home)
    assert result.version is not None
    mlflow = client(home)
    assert mlflow.get_run(run["run_id"]).info.status == "FINISHED"
    epochs = [m.step for m in mlflow.get_metric_history(run["run_id"], "val/accuracy")]
    assert epochs == [1, 2, 3]  # all of them, none twice


def test_a_full_disk_keeps_the_last_good_checkpoint(ray_cluster: None, tmp_path: Path, few: dict[str, str]) -> None:
    from rayapp.errors import TrainingError
    from rayapp.train.driver import train

    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs rights that this machine does not give")
    try:
        home = home_at(tmp_path)
        stuffing = small / "other"

        def fill_disk() -> None:
            while not list(small.glob("*/checkpoint_*/digest.json")):
                time.sleep(0.02)
            with contextlib.suppress(OSError), stuffing.open("wb") as file:
                while True:
                    file.write(b"x" * 2**20)
                    file.flush()

        filler = in_background(fill_disk)
        compute = {"num_workers": 1, "storage_path": str(small), "max_failures": 0}
        with pytest.raises(TrainingError, match=r"No space left.*go on with: rayapp train --resume"):
            train(settings(data=few, optim={"epochs": 4}, compute=compute), home)
        filler.join(timeout=10)
        stuffing.unlink()
        (path,) = tmp_path.glob("runs/*/run.json")
        result = train(validate(TrainSettings, {"resume": json.loads(path.read_text())["name"]}), home)
        assert [e.epoch for e in result.epochs] == list(range(1, 5))
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)
