"""A home that was moved or copied finds its artifacts where it lies now, though MLflow notes absolute paths."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rayapp.registry.models import Registry
from rayapp.registry.tracking import Tracker, mlflow_client
from tests.support.stores import new_run, registered

Files = dict[str, int]


def files(folder: Path) -> Files:
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def opened(home: Path) -> tuple[Tracker, Registry]:
    uri = f"sqlite:///{home / 'mlflow.db'}"
    return Tracker(uri, home / "artifacts"), Registry(uri)


def downloaded(home: Path, cache: Path) -> str:
    """The digest of the challenger's bundle, from the artifacts."""
    _, registry = opened(home)
    version = registry.resolve("models:/vision@challenger")
    assert f"file://{home}/artifacts/" in version.source
    return registry.download(version, cache).digest


@pytest.mark.parametrize("name", ["elsewhere", "with a space"])
def test_a_moved_home_serves_its_models_and_keeps_what_is_new(
    tracker: Tracker, registry: Registry, bundle_folder: Path, home: Path, tmp_path: Path, name: str
) -> None:
    """Artifacts were looked for in the old folder, and the next training made that anew."""
    version = registered(tracker, registry, bundle_folder)
    there = tmp_path / name
    home.rename(there)

    _, registry = opened(there)
    found = registry.resolve("models:/vision@challenger")
    assert found.source.startswith((there / "artifacts").as_uri())
    assert registry.download(found, tmp_path / "cache").digest == version.tags["bundle_digest"]
    tracker, _ = opened(there)
    tracker.log_artifact(found.run_id, bundle_folder / "manifest.json", "more")
    registered(tracker, registry, bundle_folder)
    assert any("more/manifest.json" in path for path in files(there / "artifacts"))
    assert not home.exists()

    there.rename(home)  # and back
    assert downloaded(home, tmp_path / "other") == version.tags["bundle_digest"]


def test_a_copied_home_stands_for_itself(
    tracker: Tracker, registry: Registry, bundle_folder: Path, home: Path, tmp_path: Path
) -> None:
    registered(tracker, registry, bundle_folder)
    before, copy = files(home / "artifacts"), tmp_path / "copy"
    shutil.copytree(home, copy)
    tracker, registry = opened(copy)
    registered(tracker, registry, bundle_folder)
    assert files(home / "artifacts") == before
    assert len(files(copy / "artifacts")) > len(before)
    downloaded(home, tmp_path / "a")
    downloaded(copy, tmp_path / "b")


def test_artifacts_that_somebody_keeps_elsewhere_stay_there(uri: str, home: Path, tmp_path: Path) -> None:
    """A folder of another home, a bucket, a link to the same home: nothing of it was moved."""
    (home / "artifacts").mkdir()
    (tmp_path / "link").symlink_to(home)
    other = tmp_path / "other" / "artifacts"
    other.mkdir(parents=True)
    places = ["s3://bucket/artifacts", other.as_uri(), (tmp_path / "link" / "artifacts").as_uri()]
    with mlflow_client(uri) as client:
        ids = [client.create_experiment(f"e{n}", artifact_location=place) for n, place in enumerate(places)]
        for experiment in ids:
            client.create_run(experiment)
    with mlflow_client(uri) as client:
        assert [client.get_experiment(experiment).artifact_location for experiment in ids] == places


def test_a_run_of_an_sqlite_store_elsewhere_is_left_alone(uri: str, home: Path, tmp_path: Path) -> None:
    """MLFLOW_TRACKING_URI may name a database, whose artifacts lie in RAYAPP_HOME."""
    tracker = Tracker(uri, tmp_path / "mine" / "artifacts")
    run = new_run(tracker)
    with mlflow_client(uri) as client:
        assert client.get_run(run).info.artifact_uri.startswith((tmp_path / "mine" / "artifacts").as_uri())
