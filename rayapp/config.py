"""Every setting of every verb: frozen pydantic models, read from a YAML file and then from flags.

A function is given the section that it needs, never a global. This is the one file that reads the environment:
RAYAPP_HOME, MLFLOW_TRACKING_URI and RAY_ADDRESS here; AWS_* and the like are read by the libraries that own them.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    CliPositionalArg,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from rayapp.errors import ConfigError, did_you_mean

DatasetName = Literal["digits", "cifar10", "cifar100", "fashion_mnist", "folder", "parquet"]
ModelName = Literal["mobilenet_v3_small", "mobilenet_v3_large", "resnet18"]
Device = Literal["auto", "cpu", "cuda", "mps"]
REGISTERED_MODEL = "vision"


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


# --- where things are -------------------------------------------------------------------------------------------------


class Home(Section):
    """The folder that holds all state of this machine, and the MLflow server or database that goes with it."""

    folder: Path = Field(description="Folder of mlflow.db, artifacts/, runs/ and data/.")
    tracking_uri: str = Field(description="MLflow server or database.")

    @property
    def runs(self) -> Path:
        """Checkpoints and bundles, a folder a run."""
        return self.folder / "runs"

    @property
    def data(self) -> Path:
        """Downloaded and decoded data sets."""
        return self.folder / "data"

    @property
    def artifacts(self) -> Path:
        """MLflow's artifacts, where the tracking store is a database of this folder."""
        return self.folder / "artifacts"

    @property
    def bundles(self) -> Path:
        """Bundles downloaded from the registry, a folder a digest."""
        return self.folder / "bundles"

    @classmethod
    def from_env(cls) -> Self:
        """The home that RAYAPP_HOME (default ./.rayapp) and MLFLOW_TRACKING_URI (default: sqlite in it) name.

        The working directory of a submitted Ray job is a copy that is thrown away, so there the default is ~/.rayapp.
        """
        given = os.environ.get("RAYAPP_HOME", "")
        in_job_copy = "/runtime_resources/working_dir_files/" in f"{Path.cwd()}/"
        folder = Path(given) if given else (Path.home() if in_job_copy else Path.cwd()) / ".rayapp"
        folder = folder.expanduser().absolute()
        uri = os.environ.get("MLFLOW_TRACKING_URI", "") or f"sqlite:///{folder / 'mlflow.db'}"
        return cls(folder=folder, tracking_uri=uri)


def ray_address() -> str | None:
    """The cluster that RAY_ADDRESS names (Ray reads it itself); None where Ray is to be started in this process."""
    return os.environ.get("RAY_ADDRESS") or None


def api_key() -> str | None:
    """The key that `rayapp predict --url` sends: RAYAPP_API_KEY, because flags are in the list of processes."""
    return os.environ.get("RAYAPP_API_KEY") or None


# --- training ---------------------------------------------------------------------------------------------------------


class DataConfig(Section):
    """Which images, and how they are split."""

    dataset: DatasetName = Field("digits", description="Data set; digits needs no download.")
    path: str | None = Field(
        None,
        description="Folder (local or s3://) of a 'folder' or 'parquet' data set; for others, where downloads lie.",
    )
    validation_fraction: float = Field(
        0.1, gt=0, lt=0.5, description="Part of the training images kept for validation (0-0.5), stratified by class."
    )
    split_seed: int = Field(0, ge=0, description="Seed of the train/validation split.")
    image_px: int | None = Field(
        None,
        ge=8,
        le=512,
        description="Height and width (pixels) that images of a 'folder' or 'parquet' data set are brought to"
        " [default: their own size where all have one, else 224].",
    )
    on_error: Literal["skip", "fail"] = Field(
        "fail",
        description="What a corrupt image of a 'folder' or 'parquet' data set does: skip (and count) it, or fail.",
    )

    @model_validator(mode="after")
    def _path_fits_dataset(self) -> Self:
        if self.dataset in ("folder", "parquet") and not self.path:
            raise ValueError(f"data.dataset '{self.dataset}' needs its folder: add --data.path FOLDER (local or s3://)")
        if self.dataset == "digits" and self.path:
            raise ValueError(
                "data.path has no effect on data.dataset 'digits', which comes with scikit-learn; leave it out,"
                " or say --data.dataset folder or parquet"
            )
        if self.dataset not in ("folder", "parquet") and self.image_px:
            raise ValueError(
                f"data.image_px has no effect on data.dataset '{self.dataset}', whose images have one size;"
                " leave it out"
            )
        return self


class ModelConfig(Section):
    """Which architecture, and what it starts from."""

    name: ModelName = Field("mobilenet_v3_small", description="Architecture.")
    pretrained: bool = Field(False, description="Start from torchvision's ImageNet weights (downloaded once).")
    freeze_backbone: bool = Field(False, description="Train the classifier alone; goes with pretrained.")

    @model_validator(mode="after")
    def _frozen_needs_pretrained(self) -> Self:
        if self.freeze_backbone and not self.pretrained:
            raise ValueError("model.freeze_backbone would freeze random weights; add --model.pretrained true")
        return self


class OptimConfig(Section):
    """How the weights are found."""

    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="SGD with Nesterov momentum, or AdamW.")
    lr: float | None = Field(
        None,
        gt=0,
        description="Peak learning rate for a world batch of 256 images; scaled linearly with the world batch"
        " [default: 0.4 for sgd, 0.003 for adamw].",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of sgd (0-1).")
    weight_decay: float | None = Field(
        None, ge=0, description="Weight decay, never on norms and biases [default: 5e-4 for sgd, 0.05 for adamw]."
    )
    schedule: Literal["one_cycle", "cosine"] = Field(
        "one_cycle", description="Learning rate: up and down in one cycle, or a short warm-up and a cosine to zero."
    )
    warmup_fraction: float | None = Field(
        None, ge=0, lt=1, description="Part of all steps (0-1) with rising rate [default: 0.25 one_cycle, 0.05 cosine]."
    )
    epochs: int | None = Field(
        None,
        ge=1,
        description="Passes over the training images [default: as many as show the model about 600,000 images,"
        " at least 8, at most 20].",
    )
    batch_size: int | None = Field(
        None,
        ge=1,
        description="Images a worker takes at once; times workers and accumulate_steps is the world batch"
        " [default: 128, fewer (at least 16) where an epoch would have less than 20 steps].",
    )
    accumulate_steps: int = Field(1, ge=1, description="Batches whose gradients are added up before a step.")
    clip_norm: float | None = Field(None, gt=0, description="Largest L2 norm of the gradient [default: not clipped].")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="Share of the target spread over all classes (0-1).")
    early_stop_patience: int | None = Field(
        None, ge=1, description="Stop after so many epochs without a better validation accuracy [default: never]."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="Arithmetic: auto is bf16 on GPUs that have it, fp32 elsewhere (bf16 is slower on CPUs)."
    )

    @model_validator(mode="after")
    def _momentum_is_used(self) -> Self:
        if self.optimizer == "adamw" and "momentum" in self.model_fields_set:
            raise ValueError("optim.momentum has no effect on optim.optimizer 'adamw'; leave it out, or say sgd")
        return self

    @property
    def peak_lr(self) -> float:
        """The learning rate for a world batch of 256."""
        return self.lr if self.lr is not None else {"sgd": 0.4, "adamw": 0.003}[self.optimizer]

    @property
    def decay(self) -> float:
        """The weight decay in force."""
        return self.weight_decay if self.weight_decay is not None else {"sgd": 5e-4, "adamw": 0.05}[self.optimizer]

    @property
    def warmup(self) -> float:
        """The part of all steps with a rising rate."""
        if self.warmup_fraction is not None:
            return self.warmup_fraction
        return {"one_cycle": 0.25, "cosine": 0.05}[self.schedule]

    def worker_batch(self, num_images: int, num_workers: int) -> int:
        """Images a worker takes at once, of num_images training images shared by num_workers."""
        if self.batch_size is not None:
            return self.batch_size
        return min(128, max(16, num_images // (20 * num_workers)))

    def num_epochs(self, num_images: int) -> int:
        """Passes over num_images training images."""
        return self.epochs if self.epochs is not None else min(20, max(8, round(600_000 / num_images)))


class AugmentConfig(Section):
    """Changes made to training images, a batch at a time; validation and test images are never changed."""

    crop_padding_px: int | None = Field(
        None, ge=0, le=64, description="Random shift by up to so many pixels [default: an eighth of the height]."
    )
    flip: bool | None = Field(
        None, description="Mirror half of the images left to right [default: yes, but not for digits]."
    )
    cutout_px: int = Field(0, ge=0, le=256, description="Side (pixels) of a square painted grey; 0 is none.")


class ComputeConfig(Section):
    """Workers and devices."""

    num_workers: int = Field(1, ge=1, description="Training processes (DDP); one a GPU, or one a CPU core.")
    device: Device = Field("auto", description="auto takes cuda, then mps, then cpu.")
    threads_per_worker: int = Field(1, ge=1, description="CPU threads of a worker; more workers beat more threads.")
    storage_path: str | None = Field(
        None, description="Folder (local, shared or s3://) of checkpoints [default: RAYAPP_HOME/runs]."
    )
    max_failures: int = Field(2, ge=0, description="Restarts from the last checkpoint after a worker is lost.")


class TrackingConfig(Section):
    """What MLflow is told."""

    experiment: str = Field("rayapp", min_length=1, description="MLflow experiment.")
    log_every_steps: int = Field(20, ge=1, description="A batch metric every so many optimiser steps.")


# --- the verbs -----------------------------------------------------------------------------------------------------


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


class TrainSettings(Settings):
    """Train a model, log it to MLflow and register its bundle as the challenger."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    augment: AugmentConfig = AugmentConfig()
    compute: ComputeConfig = ComputeConfig()
    tracking: TrackingConfig = TrackingConfig()
    seed: int = Field(0, ge=0, description="Seed of the weights, the order of the images and their augmentation.")
    register_model: bool = Field(
        True,
        alias="register",
        description="Register the bundle as a new version of 'vision' and point the alias 'challenger' at it.",
    )
    resume: str | None = Field(
        None, description="Name or MLflow id of a run to go on with; its own settings are used, not today's."
    )
    dry_run: bool = Field(False, description="Print the resolved settings and what they ask for, then stop.")


# --- the other verbs --------------------------------------------------------------------------------------------------

MODEL_URI = "Model: models:/vision@ALIAS, models:/vision/VERSION, runs:/RUN_ID/model."


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
        if self.url and "model" in self.model_fields_set:
            raise ValueError(f"model '{self.model}' has no effect with url, whose server has its own; leave one out")
        return self


class ShadowConfig(Section):
    """A copy of the traffic for a second model, whose answers nobody gets."""

    alias: str = Field("challenger", description="Alias of the model that is tried on a copy of the traffic.")
    fraction: float = Field(0.0, ge=0, le=1, description="Part of the requests (0-1) that is copied; 0 is off.")


class CanaryConfig(Section):
    """A second model that answers some of the clients."""

    alias: str = Field("challenger", description="Alias of the model that answers some of the clients.")
    fraction: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Part of the clients (0-1) that the canary answers, always the same ones; 0 is off.",
    )
    key_header: str = Field(
        "x-client-id",
        min_length=1,
        description="Header that tells clients apart; without it the API key does, and without that the image.",
    )


class RequestLogConfig(Section):
    """A sample of the predictions, kept as Parquet."""

    folder: str | None = Field(None, description="Folder (local or s3://) of the Parquet files [default: no log].")
    fraction: float = Field(0.01, gt=0, le=1, description="Part of the requests (0-1) that is kept.")
    images: bool = Field(False, description="Keep the images themselves too, not only their digests.")
    flush_s: float = Field(60.0, gt=0, le=3600, description="Longest time (seconds) until a prediction is in a file.")


class ServeArgs(Section):
    """What one serving application needs: the args of serve_configs/*.yaml."""

    model: str = Field(f"models:/{REGISTERED_MODEL}@champion", description=MODEL_URI)
    tracking_uri: str | None = Field(None, description="MLflow [default: MLFLOW_TRACKING_URI, or RAYAPP_HOME's own].")
    device: Device = Field("auto", description="auto takes cuda, then mps, then cpu.")
    num_replicas: int = Field(1, ge=1, description="Processes that answer requests.")
    num_threads: int = Field(1, ge=1, description="CPU threads a replica gives the model.")
    poll_s: float = Field(2.0, gt=0, le=3600, description="Seconds between two looks at the alias.")
    max_batch: int = Field(32, ge=1, le=1024, description="Largest number of images that go through the model at once.")
    max_wait_ms: float = Field(2.0, ge=0, le=1000, description="Longest wait (ms) of an image for others to join it.")
    max_queue: int = Field(1024, ge=1, description="Images that may wait; a request beyond gets 503.")
    timeout_s: float = Field(60.0, gt=0, le=3600, description="Longest time for an answer (seconds); then 504.")
    max_body_bytes: int = Field(64 * 2**20, ge=1024, description="Largest request body (bytes); beyond it 413.")
    max_waiting_bytes: int = Field(
        2**29, ge=1024, description="Request bodies (bytes) that may be in memory at once; a request beyond gets 503."
    )
    max_image_pixels: int = Field(100_000_000, ge=1, description="Largest image (pixels); beyond it 413.")
    max_images: int = Field(1000, ge=1, le=1000, description="Most images in one predict_batch; beyond it 413.")
    api_keys: Path | None = Field(
        None,
        description="File of SHA-256 digests of API keys, one a line; requests then need 'Authorization: Bearer KEY'.",
    )
    access_log: bool = Field(False, description="Log each POST request as a line of JSON, on stderr of the replica.")
    shadow: ShadowConfig = ShadowConfig()
    canary: CanaryConfig = CanaryConfig()
    request_log: RequestLogConfig = RequestLogConfig()

    @model_validator(mode="after")
    def _a_request_has_room(self) -> Self:
        if self.max_waiting_bytes < self.max_body_bytes:
            raise ValueError(
                f"max_waiting_bytes {self.max_waiting_bytes} is less than max_body_bytes {self.max_body_bytes}, so a"
                " request of that size would never be served; raise it, or lower the other"
            )
        return self

    @model_validator(mode="after")
    def _second_model(self) -> Self:
        if self.shadow.fraction and self.canary.fraction and self.shadow.alias != self.canary.alias:
            raise ValueError(
                f"shadow.alias '{self.shadow.alias}' and canary.alias '{self.canary.alias}' differ, and a replica holds"
                " one model beside the one it serves; name the same, or turn one off"
            )
        return self


class ServeSettings(Settings):
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


class DemoSettings(Settings):
    """Take a model through its whole life on this machine, in a home of its own, and say PASS or FAIL a step."""

    dataset: DatasetName = Field("digits", description="Data set.")
    path: str | None = Field(None, description="Folder of a 'folder' or 'parquet' data set.")
    num_workers: int = Field(2, ge=1, description="Training processes.")
    port: int = Field(3000, ge=1, le=65535, description="TCP port of the server; a free one is taken if it is in use.")
    keep: bool = Field(False, description="Keep the demo's home (.rayapp-demo) instead of starting afresh.")


class DoctorSettings(Settings):
    """Check this machine: versions, cores, memory, disk, GPU, Ray, MLflow, data; each with what to do about it."""

    port: int = Field(3000, ge=1, le=65535, description="TCP port that a server would listen on.")
    json_output: bool = Field(False, alias="json", description="One JSON line instead of a table.")


# --- reading ----------------------------------------------------------------------------------------------------------

S = TypeVar("S", bound=Settings)


class _Parser(argparse.ArgumentParser):
    """argparse that raises ConfigError instead of printing its usage and leaving, with a help page for people."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")

    def format_help(self) -> str:
        """The help page: a short usage line, and one default an option (pydantic-settings adds a second one)."""
        metavars = {"bool": "true|false", "int": "N", "float": "X", "str": "TEXT", "Path": "PATH"}
        for action in self._actions:
            text, has_default, default = (action.help or "").removesuffix(")").partition(" (default: ")
            if not has_default:
                continue
            if "[default: " not in text:
                shown = {"True": "true", "False": "false", "None": "none", "": "none"}.get(default, default)
                text += f" [default: {shown}]"
            action.help = text
            if isinstance(action.metavar, str):
                action.metavar = metavars.get(action.metavar, action.metavar)
        positional = "".join(f" {action.metavar} [...]" for action in self._actions if not action.option_strings)
        self.usage = f"{self.prog} [--config FILE.yaml] [--option value ...]{positional}"
        return super().format_help()


def load(settings_class: type[S], argv: Sequence[str], *, prog: str) -> S:
    """The settings that argv names: --config FILE.yaml first, --section.field value over it.

    Raises ConfigError on an unknown key (naming the nearest), a value out of range or an option without effect.
    Prints the help and raises SystemExit(0) on --help.
    """
    argv = _normalised(argv, set(_flags(settings_class, only=bool)))
    parser = _Parser(prog=prog, description=settings_class.__doc__, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE.yaml", help="settings as YAML; flags win over it")
    known = set(_flags(settings_class)) | {"config", "help"}
    for word in argv:
        name = word[2:].split("=")[0]
        if word.startswith("--") and name not in known:
            raise ConfigError(f"unknown option --{name}.{did_you_mean(name, known)} See {prog} --help.")
    source: CliSettingsSource[Any] = CliSettingsSource(settings_class, root_parser=parser, cli_parse_args=list(argv))
    from_flags = source()
    config = _config_file(argv)
    values = _merged(_read_yaml(config, settings_class) if config else {}, from_flags)
    return validate(settings_class, values)


def validate(settings_class: type[S], values: dict[str, Any]) -> S:
    """The settings in values (as YAML holds them). Raises ConfigError with one sentence a fault."""
    try:
        return settings_class(**values)
    except ValidationError as error:
        raise ConfigError(" ".join(_sentence(settings_class, dict(e)) for e in error.errors())) from error


def _normalised(argv: Sequence[str], switches: set[str]) -> list[str]:
    """argv as the parser wants it: --dry-run is --dry_run, and a switch without a value is true."""
    words: list[str] = []
    for at, word in enumerate(argv):
        if not word.startswith("--"):
            words.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        words.append(f"--{name}{equals}{value}")
        following = argv[at + 1].lower() if at + 1 < len(argv) else ""
        if name in switches and not equals and following not in ("true", "false"):
            words.append("true")
    return words


def _flags(model: type[BaseModel], prefix: str = "", only: type | None = None) -> list[str]:
    names: list[str] = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names += _flags(field.annotation, f"{prefix}{name}.", only)
        elif only is None or field.annotation is only or only in get_args(field.annotation):
            names.append(prefix + (field.alias or name))
    return names


def _config_file(argv: Sequence[str]) -> Path | None:
    only_config = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    only_config.add_argument("--config", type=Path)
    config: Path | None = only_config.parse_known_args(list(argv))[0].config
    return config


def _read_yaml(path: Path, settings_class: type[BaseModel]) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read --config {path}: {error.strerror}; give a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path} is not YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        sections = ", ".join(_siblings(settings_class, ()))
        raise ConfigError(f"--config {path} holds a {type(content).__name__}, not sections; allowed: {sections}")
    return {str(key): value for key, value in content.items()}


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        out[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return out


def _siblings(model: type[BaseModel], path: tuple[str, ...]) -> list[str]:
    """The settings and sections that may stand in the section at path, with their whole names."""
    for part in path:
        section = model.model_fields[part].annotation
        assert isinstance(section, type)
        assert issubclass(section, BaseModel)
        model = section
    return [".".join((*path, field.alias or name)) for name, field in model.model_fields.items()]


def _sentence(settings_class: type[BaseModel], error: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"unknown setting '{where}'.{did_you_mean(where, _siblings(settings_class, error['loc'][:-1]))}"
    if error["type"] == "value_error":  # from our own validators: already a sentence
        return str(error["ctx"]["error"]) + "."
    if error["type"] == "literal_error":
        allowed = error["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        return f"{where} is {error['input']!r}.{did_you_mean(str(error['input']), allowed)}"
    if error["type"] == "missing":
        return f"{where} is missing."
    if error["type"] == "model_type":
        return f"{where} is {error['input']!r}: it must be a section with settings of its own."
    message = error["msg"].replace("Input should be", "it must be").partition(", unable to")[0]
    return f"{where} is {error['input']!r}: {message}."
