from __future__ import annotations

import logging
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from rayapp.errors import BundleError, RegistryError
from rayapp.registry.models import Registry
from rayapp.registry.tracking import MetricLog, Tracker, mlflow_client
from rayapp.vision.bundle import GRAPH, MANIFEST, WEIGHTS, Bundle
from tests.support.bundles import write_tiny_bundle
from tests.support.stores import new_run, registered

UNREACHABLE = "http://127.0.0.1:1"


def artifacts_of(home: Path, name: str) -> Path:
    """The one file of that name in the artifact store."""
    (path,) = (home / "artifacts").rglob(name)
    return path


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


# --- registering ------------------------------------------------------------------------------------------------------


def test_a_registered_bundle_is_a_version_with_alias_and_tags(
    tracker: Tracker, registry: Registry, run_id: str, bundle_folder: Path
) -> None:
    source = registry.log_bundle(run_id, bundle_folder)
    version = registry.register(run_id, source, tags={"val_accuracy": "0.9"})
    assert re.fullmatch(r"models:/m-[0-9a-f]{32}", source)
    assert (version.name, version.version, version.run_id) == ("vision", 1, run_id)
    assert version.uri == "models:/vision/1"
    assert version.aliases == ("challenger",)
    assert version.status == "READY"
    assert version.tags == {"val_accuracy": "0.9", "bundle_digest": Bundle.open(bundle_folder).digest}
    assert datetime.now(UTC) - version.created < timedelta(minutes=5)
    newer = registered(tracker, registry, bundle_folder)
    assert (newer.version, newer.aliases) == (2, ("challenger",))
    assert registry.resolve("models:/vision/1").aliases == ()


def test_versions_come_newest_first_with_their_aliases(
    tracker: Tracker, registry: Registry, bundle_folder: Path
) -> None:
    assert registry.versions() == []
    first = registered(tracker, registry, bundle_folder)
    registered(tracker, registry, bundle_folder)
    registry.set_alias(first, "champion")
    assert [(v.version, v.aliases) for v in registry.versions()] == [(2, ("challenger",)), (1, ("champion",))]


def test_tags_are_added_to_those_that_are_there(tracker: Tracker, registry: Registry, bundle_folder: Path) -> None:
    version = registered(tracker, registry, bundle_folder)
    registry.tag(version, {"test_accuracy": "0.8", "test_n": "10"})
    assert registry.resolve(version.uri).tags == {**version.tags, "test_accuracy": "0.8", "test_n": "10"}


def test_versions_registered_at_once_get_numbers_of_their_own(
    tracker: Tracker, registry: Registry, bundle_folder: Path
) -> None:
    run = new_run(tracker)
    source = registry.log_bundle(run, bundle_folder)
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: registry.register(run, source), range(4)))
    assert sorted(v.version or 0 for v in made) == [1, 2, 3, 4]


def test_a_changed_bundle_is_not_logged(registry: Registry, run_id: str, bundle_folder: Path) -> None:
    flip_a_byte(bundle_folder / WEIGHTS)
    with pytest.raises(BundleError, match=r"the file was changed"):
        registry.log_bundle(run_id, bundle_folder)


def test_standard_clients_load_a_version_by_its_onnx_flavour(
    tracker: Tracker, registry: Registry, bundle_folder: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow.onnx
    import onnxruntime

    version = registered(tracker, registry, bundle_folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # as the user of another tool has it
    images_nhwc = np.full((5, 32, 32, 3), 51, np.uint8)
    ours = onnxruntime.InferenceSession(bundle_folder / GRAPH, providers=["CPUExecutionProvider"])
    (expected_nk,) = ours.run(["logits"], {"images": images_nhwc})
    for name in ("models:/vision@challenger", "models:/vision/1", f"runs:/{version.run_id}/model"):
        model = mlflow.onnx.load_model(name)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        (logits_nk,) = session.run(["logits"], {"images": images_nhwc})
        assert np.array_equal(logits_nk, expected_nk)
    signature = mlflow.models.get_model_info("models:/vision/1").signature
    assert signature.inputs.inputs[0].shape == (-1, 32, 32, 3)
    assert signature.outputs.inputs[0].shape == (-1, 10)


def test_mlflows_global_state_and_the_environment_stay_as_they_are(
    tracker: Tracker, registry: Registry, bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.chdir(tmp_path)
    environment, state = dict(os.environ), mlflow.get_tracking_uri()
    registry.download(registered(tracker, registry, bundle_folder), tmp_path / "cache")
    changed = {k for k, v in os.environ.items() if environment.get(k) != v and k != "PYTEST_CURRENT_TEST"}
    assert changed == set()
    assert mlflow.get_tracking_uri() == state
    assert {path.name for path in tmp_path.iterdir()} == {"home", "bundle", "cache"}  # no mlruns, no mlflow.db


# --- resolving --------------------------------------------------------------------------------------------------------


def test_a_version_is_found_by_alias_number_and_run(tracker: Tracker, registry: Registry, bundle_folder: Path) -> None:
    first, second = (registered(tracker, registry, bundle_folder) for _ in range(2))
    by_alias = registry.resolve("models:/vision@challenger")
    by_number = registry.resolve("models:/vision/1")
    by_run = registry.resolve(f"runs:/{first.run_id}/model")
    assert (by_alias.version, by_alias.alias, by_alias.run_id) == (2, "challenger", second.run_id)
    assert (by_number.version, by_number.alias, by_number.run_id) == (1, None, first.run_id)
    assert (by_run.version, by_run.source) == (1, first.source)
    assert by_alias.source != by_number.source


def test_a_run_that_is_not_registered_is_found(registry: Registry, run_id: str, bundle_folder: Path) -> None:
    registry.log_bundle(run_id, bundle_folder)
    version = registry.resolve(f"runs:/{run_id}/model")
    assert (version.version, version.run_id, version.status) == (None, run_id, "READY")
    assert version.uri == f"runs:/{run_id}/model"
    with pytest.raises(RegistryError, match=r"is not registered, so it takes no alias or tag; train with --register"):
        registry.tag(version, {"a": "b"})


def test_a_stage_works_and_warns(
    tracker: Tracker, registry: Registry, bundle_folder: Path, uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    registered(tracker, registry, bundle_folder)
    registered(tracker, registry, bundle_folder)
    with mlflow_client(uri) as client, pytest.warns(FutureWarning, match=r"stages will be removed"):
        client.transition_model_version_stage("vision", "1", "Production")
    for _ in range(2):
        with pytest.warns(
            DeprecationWarning, match=r"names a stage, which MLflow deprecates; use models:/vision@champ"
        ):
            version = registry.resolve("models:/vision/Production")
    assert (version.version, version.stage, version.alias) == (1, "Production", None)
    assert [r.levelno for r in caplog.records if "names a stage" in r.message] == [logging.WARNING]  # once, not twice
    with pytest.raises(RegistryError, match=r"no version of 'vision' is in stage 'Staging'. Use an alias: models:/vis"):
        registry.resolve("models:/vision/Staging")


def test_a_missing_alias_says_which_exist_and_how_to_set_it(
    tracker: Tracker, registry: Registry, bundle_folder: Path
) -> None:
    version = registered(tracker, registry, bundle_folder)
    with pytest.raises(RegistryError) as caught:
        registry.resolve("models:/vision@champion")
    assert str(caught.value) == (
        "alias 'champion' of 'vision' not found (aliases: challenger -> 1). Set it with: rayapp promote --version 1"
    )
    with pytest.raises(RegistryError, match=r"alias 'canary' .* \(aliases: challenger -> 1\). Use one of them, or mod"):
        registry.resolve("models:/vision@canary")
    other = registry.register(version.run_id, "models:/" + version.source.split("/")[-2], alias=None, name="other")
    assert other.aliases == ()
    with pytest.raises(RegistryError, match=r"'other' not found \(aliases: none\).*promote --model models:/other/1$"):
        registry.resolve("models:/other@champion")
    with pytest.raises(RegistryError, match=r"alias 'challenger' of 'other' not found .* Set it with: rayapp train"):
        registry.resolve("models:/other@challenger")


def test_a_missing_version_says_which_exist(tracker: Tracker, registry: Registry, bundle_folder: Path) -> None:
    registered(tracker, registry, bundle_folder)
    registered(tracker, registry, bundle_folder)
    with pytest.raises(
        RegistryError, match=r"^version 9 of 'vision' not found \(versions: 2, 1\). See them with: raya"
    ):
        registry.resolve("models:/vision/9")


@pytest.mark.parametrize("given", ["models:/vision@champion", "models:/vision/1", "models:/vision/Production"])
def test_a_missing_model_says_to_train(registry: Registry, given: str) -> None:
    with pytest.raises(RegistryError, match=r"^no model 'vision' is registered. Make one with: rayapp train$"):
        registry.resolve(given)


def test_a_misspelt_model_is_put_right(tracker: Tracker, registry: Registry, bundle_folder: Path) -> None:
    registered(tracker, registry, bundle_folder)
    with pytest.raises(RegistryError, match=r"no model 'visoin' is registered\. Did you mean 'vision'\?"):
        registry.resolve("models:/visoin@champion")


def test_a_run_without_a_model_and_a_missing_run_are_told_apart(registry: Registry, run_id: str) -> None:
    with pytest.raises(RegistryError, match=rf"run '{run_id}' has no model named 'model' \(models: none\).*--resume"):
        registry.resolve(f"runs:/{run_id}/model")
    with pytest.raises(RegistryError, match=r"run 'abc' not found in MLflow"):
        registry.resolve("runs:/abc/model")


@pytest.mark.parametrize(
    "given", ["", "vision", "models:/vision", "models:vision/1", "models:/a/b/c", "runs:/abc", "models:/v@", "s3://x/y"]
)
def test_a_malformed_uri_names_the_four_forms(given: str) -> None:
    with pytest.raises(RegistryError) as caught:
        Registry(UNREACHABLE).resolve(given)
    assert str(caught.value) == (
        f"'{given}' names no model; write models:/vision@champion, models:/vision/3, runs:/RUN_ID/model"
        " or (deprecated) models:/vision/Production"
    )


@pytest.mark.parametrize("given", ["models:/vision/latest", "models:/vision/Latest", "models:/vision@latest"])
def test_F21_latest_is_refused(tracker: Tracker, registry: Registry, bundle_folder: Path, given: str) -> None:
    registered(tracker, registry, bundle_folder)
    with pytest.raises(
        RegistryError, match=r"is refused: the newest version may be one that nobody promoted; use mode"
    ):
        registry.resolve(given)


def test_an_alias_in_the_place_of_a_stage_is_put_right(registry: Registry) -> None:
    with pytest.raises(RegistryError, match=r"'champion' is no stage .*for the alias write models:/vision@champion"):
        registry.resolve("models:/vision/champion")


def test_F20_weights_and_metadata_are_of_one_version_though_the_alias_moves(
    tracker: Tracker, registry: Registry, tmp_path: Path
) -> None:
    old, new = (write_tiny_bundle(tmp_path / f"b{i}", classes=(f"a{i}", f"b{i}")).folder for i in range(2))
    first = registered(tracker, registry, old)
    resolved = registry.resolve("models:/vision@challenger")
    registered(tracker, registry, new)  # moves the alias
    assert registry.download(resolved, tmp_path / "cache").manifest.class_names == ("a0", "b0")
    told = registry.metadata(resolved)
    assert (told["version"], told["run_id"], told["alias"]) == ("1", first.run_id, "challenger")
    assert registry.resolve("models:/vision@challenger").version == 2


# --- downloading ------------------------------------------------------------------------------------------------------


def test_a_bundle_comes_back_as_it_was_and_then_needs_no_network(
    tracker: Tracker, registry: Registry, bundle_folder: Path, home: Path, tmp_path: Path
) -> None:
    version = registered(tracker, registry, bundle_folder)
    bundle = registry.download(version, tmp_path / "cache")
    for name in (MANIFEST, WEIGHTS, GRAPH):
        assert (bundle.folder / name).read_bytes() == (bundle_folder / name).read_bytes()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [bundle.folder.name]  # nothing half-done is left
    shutil.rmtree(home / "artifacts")
    assert Registry(UNREACHABLE).download(version, tmp_path / "cache").digest == bundle.digest


@pytest.mark.parametrize("name", [WEIGHTS, GRAPH])
def test_a_file_changed_in_the_artifact_store_is_refused(
    tracker: Tracker, registry: Registry, bundle_folder: Path, home: Path, tmp_path: Path, name: str
) -> None:
    version = registered(tracker, registry, bundle_folder)
    flip_a_byte(artifacts_of(home, name))
    with pytest.raises(BundleError, match=f"^models:/vision/1: .*{name} has the digest .* refused"):
        registry.download(version, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_file_changed_in_the_cache_is_downloaded_again(
    tracker: Tracker, registry: Registry, bundle_folder: Path, tmp_path: Path
) -> None:
    version = registered(tracker, registry, bundle_folder)
    first = registry.download(version, tmp_path / "cache")
    flip_a_byte(first.folder / WEIGHTS)
    second = registry.download(version, tmp_path / "cache")
    assert second == first
    assert (second.folder / WEIGHTS).read_bytes() == (bundle_folder / WEIGHTS).read_bytes()


def test_another_sound_bundle_in_the_artifact_store_is_refused(
    tracker: Tracker, registry: Registry, bundle_folder: Path, home: Path, tmp_path: Path
) -> None:
    version = registered(tracker, registry, bundle_folder)
    other = write_tiny_bundle(tmp_path / "other", seed=9).folder
    shutil.copytree(other, artifacts_of(home, MANIFEST).parent, dirs_exist_ok=True)
    with pytest.raises(
        BundleError, match=r"models:/vision/1 was registered as bundle sha256:\w+, but its artifacts ho"
    ):
        registry.download(version, tmp_path / "cache")


def test_a_model_of_another_tool_is_no_bundle(
    tracker: Tracker, registry: Registry, bundle_folder: Path, home: Path, tmp_path: Path
) -> None:
    version = registered(tracker, registry, bundle_folder)
    artifacts_of(home, MANIFEST).unlink()
    with pytest.raises(BundleError, match=rf"models:/vision/1 holds no bundle: .* lacks {MANIFEST}; restore"):
        registry.download(version, tmp_path / "cache")


def test_lost_artifacts_are_named(
    tracker: Tracker, registry: Registry, bundle_folder: Path, home: Path, tmp_path: Path
) -> None:
    version = registered(tracker, registry, bundle_folder)
    shutil.rmtree(home / "artifacts")
    with pytest.raises(
        BundleError, match=r"models:/vision/1 holds no bundle: .* lacks manifest.json, model.onnx, weig"
    ):
        registry.download(version, tmp_path / "cache")


def test_downloads_at_once_share_one_folder(
    tracker: Tracker, registry: Registry, bundle_folder: Path, tmp_path: Path
) -> None:
    version = registered(tracker, registry, bundle_folder)
    with ThreadPoolExecutor(4) as pool:
        bundles = list(pool.map(lambda _: registry.download(version, tmp_path / "cache"), range(4)))
    assert len({b.folder for b in bundles}) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 1


# --- what the world may know ------------------------------------------------------------------------------------------


def test_F59_metadata_tells_how_a_model_was_made_and_of_people_only_who_promoted_it(
    tracker: Tracker, registry: Registry, bundle_folder: Path, uri: str, tmp_path: Path
) -> None:
    version = registered(tracker, registry, bundle_folder)
    metrics = MetricLog(uri, version.run_id, tmp_path / "spool")
    metrics.log({"best_val_accuracy": 0.9, "broken": float("nan"), "endless": float("inf")}, step=1)
    assert metrics.close(timeout_s=60) == 0
    registry.tag(version, {"test_accuracy": "0.8", "promoted_by": "carol"})
    told = registry.metadata(registry.resolve("models:/vision@challenger"))
    assert told["params"] == {
        "model.name": "resnet18",
        "data.dataset": "digits",
        "plan.batch_size": "128",
        "plan.peak_lr": "0.4",
        "plan.epochs": "8",
        "seed": "0",
        "model_name": "resnet18",
        "dataset": "digits",
        "batch_size": "128",
        "learning_rate": "0.4",
        "epochs": "8",
    }
    assert told["metrics"]["best_val_accuracy"] == 0.9
    assert told["metrics"]["broken"] is None  # JSON has no NaN
    assert told["tags"] == {
        "model_architecture": "resnet18",
        "git_sha": "abc",
        "mlflow.runName": "a run",
        "val_accuracy": "0.900000",
        "test_accuracy": "0.8",
        "bundle_digest": version.tags["bundle_digest"],
        "promoted_by": "carol",  # who answers for the model that serves; who trained it is nobody's business
    }
    assert not {"alice", "secret"} & set(re.findall(r"\w+", str(told["params"]) + str(told["tags"])))


def test_metadata_has_the_fields_of_the_way_a_model_was_named(
    tracker: Tracker, registry: Registry, bundle_folder: Path, uri: str
) -> None:
    version = registered(tracker, registry, bundle_folder)
    common = {"run_id", "status", "source", "artifact_uri", "params", "metrics", "tags"}
    by_alias = registry.metadata(registry.resolve("models:/vision@challenger"))
    assert set(by_alias) == common | {"name", "version", "alias", "aliases"}
    assert (by_alias["version"], by_alias["alias"], by_alias["aliases"]) == ("1", "challenger", ["challenger"])
    assert set(registry.metadata(registry.resolve("models:/vision/1"))) == common | {"name", "version"}
    with mlflow_client(uri) as client, pytest.warns(FutureWarning, match="stages will be removed"):
        client.transition_model_version_stage("vision", "1", "Production")
    with pytest.warns(DeprecationWarning, match="names a stage"):
        by_stage = registry.metadata(registry.resolve("models:/vision/production"))
    assert set(by_stage) == common | {"name", "version", "stage"}
    alone = new_run(tracker)
    registry.log_bundle(alone, bundle_folder)
    assert set(registry.metadata(registry.resolve(f"runs:/{alone}/model"))) == common
    assert version.source == by_alias["source"]
