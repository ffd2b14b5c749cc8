"""The settings of every verb."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import (
    BaseSettings,
    CliPositionalArg,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from rayapp.config.base import REGISTERED_MODEL, DatasetName
from rayapp.config.batch import ImagesConfig, PredictorsConfig
from rayapp.config.serve import MODEL_URI, ServeArgs
from rayapp.config.train import (
    AugmentConfig,
    CheckpointConfig,
    ComputeConfig,
    CostConfig,
    DataConfig,
    ModelConfig,
    OptimConfig,
    TrackingConfig,
)

RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class Settings(BaseSettings):
    """Settings of one verb. Flags win over the YAML file; unknown keys are errors that name the nearest right one."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
        allow_inf_nan=False,
        cli_avoid_json=True,
        cli_hide_none_type=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is given explicitly: a stray environment variable must not change a run."""
        return (init_settings,)

    @property
    def joins_ray(self) -> bool:
        """Whether the verb works on the cluster that RAY_ADDRESS names."""
        return False


class RaySettings(Settings):
    """Settings of a verb that works on the cluster that RAY_ADDRESS names, where it names one."""

    @property
    def joins_ray(self) -> bool:
        """As asked for here it does."""
        return True


class Recipe(RaySettings):
    """What every training has, whoever asked for it."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    augment: AugmentConfig = AugmentConfig()
    compute: ComputeConfig = ComputeConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    cost: CostConfig = CostConfig()
    seed: int = Field(0, ge=0, description="Seed of the weights, the order of the images and their augmentation.")


class TrainSettings(Recipe):
    """Train a model, log it to MLflow and register its bundle as the challenger."""

    name: str | None = Field(
        None,
        pattern=RUN_NAME,
        description="Name of the run; one that exists is refused [default: data set, model and time].",
    )
    register_model: bool = Field(
        True,
        alias="register",
        description="Register the bundle as a new version of 'vision' and point the alias 'challenger' at it.",
    )
    resume: str | None = Field(
        None,
        description="Name or MLflow id of a run to go on with; its own settings are used, not today's. auto, with a"
        " name: go on with the run of that name if there is one, for jobs that are tried again.",
    )
    dry_run: bool = Field(
        False, description="Print the resolved settings, what they ask for and what that took so far, then stop."
    )

    @property
    def joins_ray(self) -> bool:
        """A dry run starts nothing."""
        return not self.dry_run

    @model_validator(mode="after")
    def _auto_needs_a_name(self) -> Self:
        if self.resume == "auto" and not self.name:
            raise ValueError("resume auto goes on with the run of a name: add --name NAME, or say --resume RUN")
        return self


class EvaluateSettings(Settings):
    """Measure a model on the data set that its bundle names, and write the report to the model version."""

    model: str = Field(f"models:/{REGISTERED_MODEL}@challenger", description=MODEL_URI)
    split: Literal["test", "validation"] = Field(
        "test", description="Split; test is opened once a version, choose between models on validation."
    )
    data_path: str | None = Field(
        None, description="Where the bundle's data set lies now, if it has moved; its digest must be the same."
    )
    batch_size: int = Field(256, ge=1, description="Images at once.")
    output: Path | None = Field(None, description="Folder for report.json and the plots [default: the run's folder].")


class PromoteSettings(Settings):
    """Point the alias 'champion' at a version, if it is better on the test split than today's champion."""

    model: str = Field(f"models:/{REGISTERED_MODEL}@challenger", description=MODEL_URI)
    version: int | None = Field(None, ge=1, description="Version of 'vision', instead of model.")
    force: bool = Field(False, description="Promote although the gate says no; needs a reason.")
    reason: str = Field("", description="Why, for the record.")

    @model_validator(mode="after")
    def _force_has_a_reason(self) -> Self:
        if self.force and not self.reason.strip():
            raise ValueError("force needs a reason for the record: add --reason 'why this version must serve'")
        if self.version is not None and "model" in self.model_fields_set:
            raise ValueError(f"version {self.version} and model '{self.model}' are both given; leave one out")
        return self

    @property
    def uri(self) -> str:
        """The model that is meant."""
        return self.model if self.version is None else f"models:/{REGISTERED_MODEL}/{self.version}"


class RollbackSettings(Settings):
    """Point the alias 'champion' back at the version that was champion before."""

    reason: str = Field("", description="Why, for the record.")


class ModelsSettings(Settings):
    """Show the versions of the registered model with their aliases and accuracies as a table."""

    json_output: bool = Field(False, alias="json", description="One JSON line instead of a table.")


class PredictSettings(Settings):
    """Classify image files with a model, or with a running server."""

    images: CliPositionalArg[list[Path]] = Field(description="Image files.")
    model: str = Field(f"models:/{REGISTERED_MODEL}@champion", description=MODEL_URI)
    url: str | None = Field(None, description="Ask the server at this address, as http://127.0.0.1:3000, instead.")
    json_output: bool = Field(False, alias="json", description="One JSON line instead of a table.")

    @model_validator(mode="after")
    def _model_or_url(self) -> Self:
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url is '{self.url}': it needs its scheme, as http://{self.url.rpartition('://')[2]}")
        if self.url and "model" in self.model_fields_set:
            raise ValueError(f"model '{self.model}' has no effect with url, whose server has its own; leave one out")
        return self


class BatchPredictSettings(RaySettings):
    """Classify every image of a folder or bucket with a model, and write the predictions as Parquet."""

    model: str = Field(f"models:/{REGISTERED_MODEL}@champion", description=MODEL_URI)
    data: ImagesConfig = ImagesConfig()
    output: str = Field(
        "", description="Folder (local or s3://) of the predictions; it is whole once _SUCCESS is in it."
    )
    overwrite: bool = Field(False, description="Replace the predictions that are there, once the new ones are whole.")
    batch_size: int = Field(64, ge=1, description="Images that go through the model at once.")
    compute: PredictorsConfig = PredictorsConfig()

    @model_validator(mode="after")
    def _places_are_given(self) -> Self:
        if not self.data.path:
            raise ValueError("data.path is missing: add --data.path FOLDER (local or s3://)")
        if not self.output:
            raise ValueError("output is missing: add --output FOLDER (local or s3://)")
        return self


class ServeSettings(RaySettings):
    """Serve a model on this machine: the REST contract at http://HOST:PORT."""

    app: ServeArgs = ServeArgs()
    model: str = Field(f"models:/{REGISTERED_MODEL}@champion", description=MODEL_URI)
    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 opens it to the network.")
    port: int = Field(3000, ge=1, le=65535, description="TCP port.")
    haproxy: bool = Field(
        sys.platform == "linux",
        description="HAProxy takes the requests (comes with Ray on Linux, far faster), not Serve's own proxy.",
    )

    @model_validator(mode="after")
    def _haproxy_is_there(self) -> Self:
        if self.haproxy and sys.platform != "linux":
            raise ValueError("haproxy comes with Ray on Linux only; leave it out")
        return self

    @model_validator(mode="after")
    def _one_model(self) -> Self:
        if "model" in self.app.model_fields_set:
            raise ValueError("app.model has no effect here; use --model")
        return self


class DemoSettings(RaySettings):
    """Take a model through its whole life on this machine, in a home of its own, and say PASS or FAIL per step."""

    dataset: DatasetName = Field("digits", description="Data set.")
    path: str | None = Field(None, description="Folder of a 'folder' or 'parquet' data set.")
    num_workers: int = Field(2, ge=1, description="Training processes.")
    port: int = Field(3000, ge=1, le=65535, description="TCP port of the server; a free one is taken if it is in use.")
    keep: bool = Field(False, description="Keep the demo's home (.rayapp-demo) instead of starting afresh.")


class DoctorSettings(Settings):
    """Check this machine: versions, cores, memory, disk, GPU, Ray, MLflow, data; each with what to do about it."""

    port: int = Field(3000, ge=1, le=65535, description="TCP port that a server would listen on.")
    json_output: bool = Field(False, alias="json", description="One JSON line instead of a table.")
