"""What a model URI means: the version that an alias, a number, a run or a (deprecated) stage stands for.

models:/vision@champion    the version an alias points at
models:/vision/3           a version
runs:/RUN_ID/model         what a run logged, registered or not
models:/vision/Production  the newest version in a stage (deprecated by MLflow)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from rayapp.config.base import REGISTERED_MODEL
from rayapp.errors import RegistryError, did_you_mean

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion as MlflowVersion

CHAMPION, CHALLENGER = "champion", "challenger"
STAGES = ("Production", "Staging", "Archived")
FORMS = "models:/vision@champion, models:/vision/3, runs:/RUN_ID/model or (deprecated) models:/vision/Production"
_WORD = r"([^/@:'\"]+)"
PATTERNS = {
    "runs": rf"runs:/([0-9A-Za-z_-]+)/{_WORD}",
    "alias": rf"models:/{_WORD}@{_WORD}",
    "version": rf"models:/{_WORD}/([0-9]{{1,9}})",
    "stage": rf"models:/{_WORD}/([A-Za-z]+)",
}


@dataclass(frozen=True)
class ModelVersion:
    """What a model URI meant when it was resolved: the one answer that weights and metadata are both taken from."""

    name: str
    version: int | None  # None: a run's model that is not registered
    run_id: str
    source: str  # where the artifacts lie
    status: str
    tags: Mapping[str, str]
    created: datetime
    aliases: tuple[str, ...] = ()
    alias: str | None = None  # the one it was asked for by
    stage: str | None = None  # the one it was asked for by

    @property
    def uri(self) -> str:
        """The URI that always means this version."""
        return f"runs:/{self.run_id}/{self.name}" if self.version is None else f"models:/{self.name}/{self.version}"


class Reference(NamedTuple):
    """A model URI in its parts: a run and its artifact, or a model and its alias, version or stage."""

    kind: str  # runs, alias, version, stage
    name: str
    what: str


def resolve(client: MlflowClient, reference: Reference) -> ModelVersion:
    """The version that is meant now. An alias is looked up once, so that weights and metadata cannot differ
    (docs/faults.md, 20).
    """
    look_up = {"runs": _of_run, "alias": _by_alias, "version": _by_number, "stage": _by_stage}
    return look_up[reference.kind](client, reference)


def parse(uri: str) -> Reference:
    """The parts of uri. Raises RegistryError where it has none of the four forms, or is models:/NAME/latest."""
    matches = ((kind, re.fullmatch(pattern, uri)) for kind, pattern in PATTERNS.items())
    reference = next((Reference(kind, match[1], match[2]) for kind, match in matches if match), None)
    if reference is None:
        raise RegistryError(f"'{uri}' names no model; write {FORMS}")
    if reference.what.lower() == "latest":
        raise RegistryError(
            f"'{uri}' is refused: the newest version may be one that nobody promoted;"
            f" use models:/{reference.name}@{CHAMPION} or models:/{reference.name}/VERSION"
        )
    if reference.kind == "stage" and reference.what.capitalize() not in STAGES:
        raise RegistryError(
            f"'{uri}': '{reference.what}' is no stage ({', '.join(STAGES)});"
            f" for the alias write models:/{reference.name}@{reference.what}"
        )
    return reference


def _by_alias(client: MlflowClient, reference: Reference) -> ModelVersion:
    from mlflow.exceptions import MlflowException

    _, name, alias = reference
    try:
        return version_of(client.get_model_version_by_alias(name, alias), alias=alias)
    except MlflowException as error:
        aliases = aliases_of(client, name)
        if alias in aliases:  # it failed for another reason
            raise
        known = ", ".join(f"{a} -> {v}" for a, v in sorted(aliases.items())) or "none"
        raise RegistryError(
            f"alias '{alias}' of '{name}' not found (aliases: {known}). {_how_to_set(client, name, alias)}"
        ) from error


def _how_to_set(client: MlflowClient, name: str, alias: str) -> str:
    newest = next(search(client, f"name='{name}'"), None)
    if newest is None or alias == CHALLENGER:
        return "Set it with: rayapp train"
    if alias != CHAMPION:
        return f"Use one of them, or models:/{name}/{newest.version}"
    which = f"--version {newest.version}" if name == REGISTERED_MODEL else f"--model models:/{name}/{newest.version}"
    return f"Set it with: rayapp promote {which}"


def _by_number(client: MlflowClient, reference: Reference) -> ModelVersion:
    from mlflow.exceptions import MlflowException

    _, name, number = reference
    try:
        return version_of(client.get_model_version(name, number))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        aliases_of(client, name)  # says so where the model is missing
        numbers = [str(v.version) for v in search(client, f"name='{name}'")]
        known = ", ".join(numbers[:10]) + (", ..." if len(numbers) > 10 else "") or "none"
        raise RegistryError(
            f"version {number} of '{name}' not found (versions: {known}). See them with: rayapp models"
        ) from error


def _by_stage(client: MlflowClient, reference: Reference) -> ModelVersion:
    _, name, stage = reference
    aliases = aliases_of(client, name)
    for entity in search(client, f"name='{name}'"):
        if (entity.current_stage or "").lower() == stage.lower():
            return version_of(entity, aliases=aliases, stage=entity.current_stage)
    raise RegistryError(f"no version of '{name}' is in stage '{stage}'. Use an alias: models:/{name}@{CHAMPION}")


def _of_run(client: MlflowClient, reference: Reference) -> ModelVersion:
    """The newest model of a run: as its newest version, if it was registered."""
    _, run_id, artifact = reference
    found = logged_model(client, run_id, artifact)
    for entity in search(client, f"run_id='{run_id}'"):
        if entity.source in (found.artifact_location, found.model_uri):
            return version_of(entity, aliases=aliases_of(client, entity.name))
    return ModelVersion(
        name=artifact,
        version=None,
        run_id=run_id,
        source=found.artifact_location,
        status=str(found.status.value),
        tags=dict(found.tags),
        created=_time(found.creation_timestamp),
    )


def logged_model(client: MlflowClient, run_id: str, artifact: str) -> LoggedModel:
    """The newest model that a run logged under a name. Raises RegistryError where there is none."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise RegistryError(
            f"run '{run_id}' not found in MLflow. See the registered ones with: rayapp models"
        ) from error
    outputs = run.outputs.model_outputs if run.outputs else []
    models = [client.get_logged_model(output.model_id) for output in outputs]
    found = max((m for m in models if m.name == artifact), key=lambda m: m.creation_timestamp, default=None)
    if found is None:
        names = ", ".join(sorted({m.name for m in models})) or "none"
        raise RegistryError(
            f"run '{run_id}' has no model named '{artifact}' (models: {names}), its status is {run.info.status}."
            f" Let it end, or go on with: rayapp train --resume {run_id}"
        )
    return found


def version_of(
    entity: MlflowVersion,
    *,
    aliases: Mapping[str, int] | None = None,
    alias: str | None = None,
    stage: str | None = None,
) -> ModelVersion:
    """The ModelVersion of MLflow's entity. One that was searched for comes without aliases: give the model's then."""
    number = int(entity.version)
    own = entity.aliases if aliases is None else [a for a, v in aliases.items() if v == number]
    return ModelVersion(
        name=entity.name,
        version=number,
        run_id=entity.run_id or "",
        source=entity.source or "",
        status=str(entity.status),
        tags=dict(entity.tags),
        created=_time(entity.creation_timestamp),
        aliases=tuple(sorted(own)),
        alias=alias,
        stage=stage,
    )


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def search(client: MlflowClient, condition: str) -> Iterator[MlflowVersion]:
    """The versions that meet a condition, newest first."""
    token = None
    while True:
        page = client.search_model_versions(condition, order_by=["version_number DESC"], page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def aliases_of(client: MlflowClient, name: str) -> dict[str, int]:
    """Alias -> version of a model. Raises RegistryError where there is no such model."""
    from mlflow.exceptions import MlflowException

    try:
        model = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        names = [model.name for model in client.search_registered_models()]
        hint = did_you_mean(name, names) if names else ""
        raise RegistryError(f"no model '{name}' is registered.{hint} Make one with: rayapp train") from error
    return {alias: int(number) for alias, number in model.aliases.items()}
