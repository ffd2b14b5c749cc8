"""Registered models: register, download, move aliases, tell what may be told.

Bundles bring torch, which takes seconds to import, so they are imported where one is opened: a table needs none.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayapp.config.base import REGISTERED_MODEL
from rayapp.errors import BundleError, RegistryError
from rayapp.registry.tracking import mlflow_client
from rayapp.registry.uris import (
    CHALLENGER,
    CHAMPION,
    ModelVersion,
    Reference,
    aliases_of,
    logged_model,
    parse,
    resolve,
    search,
    version_of,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

    from rayapp.vision.bundle import Bundle

__all__ = ["ModelVersion", "Registry"]

log = logging.getLogger(__name__)

ARTIFACT = "model"  # its name in a run
DIGEST_TAG = "bundle_digest"

# What /get_model_info may tell the world: how a model was made, never who made it, where, or with which machines.
PUBLIC_PARAMS = re.compile(r"(model|optim|augment|plan)\..+|data\.(dataset|validation_fraction|split_seed)|seed")
PUBLIC_TAGS = {"model_architecture", "dataset", "mlflow.runName", "git_sha", "data_digest", "split_digest", DIGEST_TAG}
PUBLIC_TAGS |= {"val_accuracy", "test_accuracy", "test_accuracy_low", "test_accuracy_high", "test_n"}
PUBLIC_TAGS |= {"promotion_verdict", "promoted_by", "promoted_at"}
# The names under which clients of the replaced service know some parameters (docs/contract.md, 1.2).
OLD_PARAMS = {
    "model_name": "model.name",
    "dataset": "data.dataset",
    "batch_size": "plan.batch_size",
    "learning_rate": "plan.peak_lr",
    "epochs": "plan.epochs",
}


class Registry:
    """The models of one MLflow server or database. Everything here may raise RegistryError."""

    def __init__(self, tracking_uri: str) -> None:
        self._uri = tracking_uri
        self._stages_seen: set[str] = set()

    def resolve(self, uri: str) -> ModelVersion:
        """The version that uri means now; uris.py tells the forms of a URI. A stage is answered with a warning."""
        reference = parse(uri)
        with mlflow_client(self._uri) as client:
            version = resolve(client, reference)
        if version.stage:
            advice = f"'{uri}' names a stage, which MLflow deprecates; use models:/{version.name}@{CHAMPION}"
            warnings.warn(advice, DeprecationWarning, stacklevel=2)
            if uri not in self._stages_seen:  # a server asks again every few seconds
                log.warning(advice)
                self._stages_seen.add(uri)
        return version

    def versions(self, name: str = REGISTERED_MODEL) -> list[ModelVersion]:
        """All versions of a model, newest first; none where there is no such model."""
        with mlflow_client(self._uri) as client:
            found = list(search(client, f"name='{name}'"))
            aliases = aliases_of(client, name) if found else {}
        return [version_of(v, aliases=aliases) for v in found]

    def holder(self, name: str, alias: str) -> ModelVersion | None:
        """The version of a model that has an alias; None where none has it. Raises where there is no such model."""
        with mlflow_client(self._uri) as client:
            if alias not in aliases_of(client, name):
                return None
            return resolve(client, Reference("alias", name, alias))

    def set_alias(self, version: ModelVersion, alias: str) -> None:
        """Point an alias at a version."""
        with mlflow_client(self._uri) as client:
            _point(client, version.name, alias, _number(version))

    def tag(self, version: ModelVersion, tags: Mapping[str, str]) -> None:
        """Write tags to a version; others stay."""
        with mlflow_client(self._uri) as client:
            for key, value in tags.items():
                client.set_model_version_tag(version.name, _number(version), key, value)

    def log_bundle(self, run_id: str, folder: Path) -> str:
        """The URI (models:/m-...) of the bundle in folder, now a model of a run. Standard clients load it as onnx.

        Raises BundleError where folder holds no sound bundle.
        """
        from mlflow.entities import LoggedModelOutput

        from rayapp.registry.mlflow_model import write_model
        from rayapp.vision.bundle import Bundle

        bundle = Bundle.open(folder)
        with mlflow_client(self._uri) as client, tempfile.TemporaryDirectory() as temporary:
            run = client.get_run(run_id)
            model = client.create_logged_model(
                run.info.experiment_id,
                name=ARTIFACT,
                source_run_id=run_id,
                params=run.data.params,
                tags={DIGEST_TAG: bundle.digest},
            )
            staged = Path(temporary) / ARTIFACT
            write_model(bundle, model, staged)
            client.log_model_artifacts(model.model_id, str(staged))
            client.finalize_logged_model(model.model_id, "READY")
            client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])  # last: now runs:/ID/model finds it
        return str(model.model_uri)

    def register(
        self,
        run_id: str,
        source: str,
        *,
        alias: str | None = CHALLENGER,
        tags: Mapping[str, str] | None = None,
        name: str = REGISTERED_MODEL,
    ) -> ModelVersion:
        """The new version made of what log_bundle returned, with alias pointing at it."""
        with mlflow_client(self._uri) as client:
            _create_model(client, name)
            model = client.get_logged_model(source.removeprefix("models:/"))
            # The location and not source: MLflow 3.17 looks a models:/m-... up at its global tracking URI.
            made = client.create_model_version(
                name,
                model.artifact_location,
                run_id,
                tags={DIGEST_TAG: model.tags.get(DIGEST_TAG, ""), **(tags or {})},
                model_id=model.model_id,
            )
            if alias:
                _point(client, name, alias, str(made.version))
            return version_of(client.get_model_version(name, str(made.version)))

    def register_run(self, run_id: str, *, tags: Mapping[str, str]) -> ModelVersion:
        """The new version made of the bundle that a run has logged, as the challenger."""
        with mlflow_client(self._uri) as client:
            model = logged_model(client, run_id, ARTIFACT)
        accuracy = self._run_data(run_id)[1].get("best_val_accuracy")
        known = {} if accuracy is None else {"val_accuracy": f"{accuracy:.6f}"}
        return self.register(run_id, model.model_uri, tags={**known, **tags})

    def download(self, version: ModelVersion, cache: Path) -> Bundle:
        """The verified bundle of a version, in a folder of cache of its own. Once there, no network is needed.

        Raises BundleError where a file is not what the manifest says, or the bundle not the one that was registered.
        """
        folder = cache / _cache_key(version.source)
        if folder.exists():
            try:
                return _open(version, folder)
            except BundleError as error:
                log.warning("downloading again: %s", error)
                shutil.rmtree(folder, ignore_errors=True)
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".partial-") as temporary:
            downloaded = Path(temporary) / "bundle"
            downloaded.mkdir()
            self._fetch(version, downloaded)
            _open(version, downloaded)  # before it takes its place: nothing unsound is ever cached
            try:
                os.rename(downloaded, folder)
            except OSError:
                if not folder.exists():  # else another process was faster
                    raise
        return _open(version, folder)

    def require_bundle(self, version: ModelVersion) -> None:
        """Returns where the artifacts of a version are a bundle's files. Raises BundleError: no server can load it."""
        with mlflow_client(self._uri) as client:
            self._artifacts(client, version)

    def _fetch(self, version: ModelVersion, folder: Path) -> None:
        """Download the files of a bundle one by one: for a whole folder MLflow draws a progress bar."""
        from rayapp.registry.mlflow_model import FILES

        with mlflow_client(self._uri) as client:
            store = self._artifacts(client, version)
            for name in FILES:
                store._download_file(name, str(folder / name))  # type: ignore[no-untyped-call]  # as MLflow has it

    def _artifacts(self, client: MlflowClient, version: ModelVersion) -> ArtifactRepository:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        from rayapp.registry.mlflow_model import FILES

        location = version.source
        if version.version is not None:  # source may be one more models:/ URI where another tool registered it
            location = client.get_model_version_download_uri(version.name, str(version.version))
        store = get_artifact_repository(location, tracking_uri=self._uri)
        missing = set(FILES) - {file.path for file in store.list_artifacts()}
        if missing:
            raise BundleError(
                f"{version.uri} holds no bundle: {location} lacks {', '.join(sorted(missing))};"
                " restore them, or make a new version with: rayapp train"
            )
        return store

    def metadata(self, version: ModelVersion) -> dict[str, Any]:
        """The model_metadata of /get_model_info (docs/contract.md, 1.2); values that are not finite are None."""
        params, metrics, run_tags = self._run_data(version.run_id)
        known = {name: value for name, value in params.items() if PUBLIC_PARAMS.fullmatch(name)}
        old = {name: params[now] for name, now in OLD_PARAMS.items() if now in params}
        facts: dict[str, Any] = {
            "run_id": version.run_id,
            "status": version.status,
            "source": version.source,
            "artifact_uri": version.source,
            "params": known | old,
            "metrics": {name: value if math.isfinite(value) else None for name, value in metrics.items()},
            "tags": {name: value for name, value in {**run_tags, **version.tags}.items() if name in PUBLIC_TAGS},
        }
        if version.version is not None:
            facts |= {"name": version.name, "version": str(version.version)}
        if version.alias:
            facts |= {"alias": version.alias, "aliases": list(version.aliases)}
        if version.stage:
            facts |= {"stage": version.stage}
        return facts

    def _run_data(self, run_id: str) -> tuple[dict[str, str], dict[str, float], dict[str, str]]:
        from mlflow.exceptions import MlflowException

        with mlflow_client(self._uri) as client:
            try:
                data = client.get_run(run_id).data
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return {}, {}, {}  # the version outlived its run
            return data.params, data.metrics, data.tags


def _number(version: ModelVersion) -> str:
    if version.version is None:
        raise RegistryError(f"{version.uri} is not registered, so it takes no alias or tag; train with --register true")
    return str(version.version)


def _point(client: MlflowClient, name: str, alias: str, number: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.set_registered_model_alias(name, alias, number)
    except MlflowException as error:
        if error.error_code != "BAD_REQUEST":
            raise
        client.set_registered_model_alias(name, alias, number)  # another process made the same new alias meanwhile


def _create_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _open(version: ModelVersion, folder: Path) -> Bundle:
    from rayapp.vision.bundle import Bundle

    try:
        bundle = Bundle.open(folder)
    except BundleError as error:
        raise BundleError(f"{version.uri}: {error}") from error
    registered = version.tags.get(DIGEST_TAG)
    if registered and registered != bundle.digest:
        raise BundleError(
            f"{version.uri} was registered as bundle {registered}, but its artifacts hold {bundle.digest}: refused;"
            " restore them, or register the model again"
        )
    return bundle


def _cache_key(source: str) -> str:
    """The id of the logged model that source names, or a digest of it where it names none."""
    found = re.search(r"\bm-[0-9a-f]{32}\b", source)
    return found.group() if found else hashlib.sha256(source.encode()).hexdigest()[:32]
