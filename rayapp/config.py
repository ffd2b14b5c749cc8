"""The sections of all settings: frozen pydantic models, and what the environment says.

A function is given the section that it needs, never a global. How a verb's settings are put together of sections and
read from a YAML file and flags is in settings.py; here nothing but pydantic is needed. This is the one file that reads
the environment: RAYAPP_HOME, MLFLOW_TRACKING_URI, RAYAPP_API_KEY, RAY_ADDRESS and where else Ray's own rules have to be
known; AWS_* and the like are read by the libraries that own them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from rayapp.errors import ConfigError

ImagesKind = Literal["folder", "parquet"]
DatasetName = Literal["digits", "cifar10", "cifar100", "fashion_mnist", "folder", "parquet"]
ModelName = Literal["mobilenet_v3_small", "mobilenet_v3_large", "resnet18", "resnet9"]
Device = Literal["auto", "cpu", "cuda", "mps"]
REGISTERED_MODEL = "vision"
ALL_EPOCHS = 10**9


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
    def sweeps(self) -> Path:
        """Rows and state of sweeps, a folder a sweep."""
        return self.folder / "sweeps"

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
        folder = Path(os.environ.get("RAYAPP_HOME", "") or ".rayapp").expanduser()
        if not folder.is_absolute():
            folder = cls._base(os.environ.get("RAYAPP_HOME", "")) / folder
        uri = os.environ.get("MLFLOW_TRACKING_URI", "") or f"sqlite:///{folder / 'mlflow.db'}"
        return cls(folder=folder, tracking_uri=uri)

    @staticmethod
    def _base(given: str) -> Path:
        try:
            here = Path.cwd()
        except FileNotFoundError as error:
            raise ConfigError(
                "the working folder was deleted, and RAYAPP_HOME is in it; cd to another one, or set RAYAPP_HOME to an"
                " absolute path"
            ) from error
        return Path.home() if not given and "/runtime_resources/working_dir_files/" in f"{here}/" else here


def ray_address() -> str | None:
    """The cluster that RAY_ADDRESS names (Ray reads it itself); None where Ray is to be started in this process."""
    address = os.environ.get("RAY_ADDRESS") or "local"
    return None if address == "local" else address


def ray_uses_tls() -> bool:
    """Whether Ray's own connections are encrypted: RAY_USE_TLS, as Ray reads it."""
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")


def ray_folder() -> Path:
    """Where Ray keeps its sessions and their sockets unless it is told otherwise, by Ray's own rule."""
    temporary = os.environ.get("TMPDIR", "/tmp") if sys.platform == "linux" else "/tmp"  # noqa: S108 - Ray's default
    return Path(os.environ.get("RAY_TMPDIR", temporary)) / "ray"


def built_git_sha() -> str | None:
    """The commit that an image was built from, RAYAPP_GIT_SHA: an image is no checkout. None elsewhere."""
    return os.environ.get("RAYAPP_GIT_SHA") or None


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
    stream: bool = Field(
        False,
        description="Read and decode the images of a 'folder' or 'parquet' data set anew in each epoch (Ray Data),"
        " instead of keeping them all in the memory of the device.",
    )
    memory_mb: int | None = Field(
        None,
        ge=64,
        description="Memory (MB) that the images of one streaming worker may take; goes with stream [default: 1024].",
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
        if self.dataset not in ("folder", "parquet") and self.stream:
            raise ValueError(
                f"data.stream has no effect on data.dataset '{self.dataset}', which fits into memory; leave it out"
            )
        if self.memory_mb is not None and not self.stream:
            raise ValueError("data.memory_mb limits a stream; add --data.stream true, or leave it out")
        return self

    @property
    def memory_bytes(self) -> int:
        """Memory that the images of one streaming worker may take."""
        return (self.memory_mb or 1024) * 2**20


class ModelConfig(Section):
    """Which architecture, and what it starts from."""

    name: ModelName = Field("mobilenet_v3_small", description="Architecture.")
    pretrained: bool = Field(False, description="Start from torchvision's ImageNet weights (downloaded once).")
    init: str | None = Field(
        None,
        description="Start from the weights of a registered model: models:/vision@ALIAS, models:/vision/VERSION,"
        " runs:/RUN_ID/model; the classifier too where the classes are the same.",
    )
    freeze_backbone: bool = Field(False, description="Train the classifier alone; goes with pretrained or init.")
    frozen_epochs: int = Field(
        0, ge=0, description="Train the classifier alone for so many epochs, then all; goes with pretrained or init."
    )

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.pretrained and self.init:
            raise ValueError(f"model.pretrained and model.init '{self.init}' are both given; leave one out")
        frozen = "freeze_backbone" if self.freeze_backbone else "frozen_epochs" if self.frozen_epochs else ""
        if frozen and not (self.pretrained or self.init):
            raise ValueError(
                f"model.{frozen} would freeze random weights; add --model.pretrained true or --model.init MODEL"
            )
        if self.freeze_backbone and self.frozen_epochs:
            raise ValueError(
                "model.freeze_backbone freezes for all epochs, model.frozen_epochs for some; leave one out"
            )
        return self

    @property
    def epochs_frozen(self) -> int:
        """Epochs in which the classifier alone is trained."""
        return ALL_EPOCHS if self.freeze_backbone else self.frozen_epochs


class OptimConfig(Section):
    """How the weights are found."""

    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="SGD with Nesterov momentum, or AdamW.")
    lr: float | None = Field(
        None,
        gt=0,
        description="Peak learning rate for a world batch of 256 images; scaled linearly with the world batch"
        " [default: 0.4 for sgd, 0.003 for adamw].",
    )
    momentum: float | None = Field(None, ge=0, lt=1, description="Momentum of sgd (0-1) [default: 0.9].")
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
    sync_batch_norm: bool = Field(
        False, description="Batch norm over the batches of all workers; on GPUs, for batches of few images."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="Arithmetic: auto is bf16 on GPUs that have it, fp32 elsewhere (bf16 is slower on CPUs)."
    )

    @model_validator(mode="after")
    def _momentum_is_used(self) -> Self:
        if self.optimizer == "adamw" and self.momentum is not None:
            raise ValueError("optim.momentum has no effect on optim.optimizer 'adamw'; leave it out, or say sgd")
        return self

    @property
    def peak_lr(self) -> float:
        """The learning rate for a world batch of 256."""
        return self.lr if self.lr is not None else {"sgd": 0.4, "adamw": 0.003}[self.optimizer]

    @property
    def sgd_momentum(self) -> float:
        """The momentum in force."""
        return self.momentum if self.momentum is not None else 0.9

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
    random_ops: int = Field(
        0, ge=0, le=4, description="Random changes of shape or colour an image (as RandAugment's); 0 is none."
    )
    random_magnitude: float | None = Field(None, ge=0, le=1, description="Strength of random_ops (0-1) [default: 0.3].")
    mixup_alpha: float = Field(
        0.0, ge=0, le=10, description="Blend pairs of images, their shares from Beta(alpha, alpha); 0 is none."
    )

    @model_validator(mode="after")
    def _magnitude_is_used(self) -> Self:
        if self.random_magnitude is not None and not self.random_ops:
            raise ValueError("augment.random_magnitude has no effect without augment.random_ops; add or leave out")
        return self

    @property
    def magnitude(self) -> float:
        """The strength of random_ops in force."""
        return self.random_magnitude if self.random_magnitude is not None else 0.3


class Workers(NamedTuple):
    """How many training processes: at least low, at most high."""

    low: int
    high: int

    @property
    def is_elastic(self) -> bool:
        """Whether the number may change while training."""
        return self.low < self.high


class ComputeConfig(Section):
    """Workers and devices."""

    num_workers: Annotated[str, BeforeValidator(str)] = Field(
        "1",
        description="Training processes (DDP); one a GPU, or one a CPU core. A range as 1..4 starts with as many as"
        " there is room for and follows the cluster.",
    )
    device: Device = Field("auto", description="auto takes cuda, then mps, then cpu.")
    threads_per_worker: int = Field(1, ge=1, description="CPU threads of a worker; more workers beat more threads.")
    storage_path: str | None = Field(
        None, description="Folder (local, shared or s3://) of checkpoints [default: RAYAPP_HOME/runs]."
    )
    max_failures: int = Field(2, ge=0, description="Restarts from the last checkpoint after a worker is lost.")
    deterministic: bool = Field(
        False, description="The same bits from the same settings on the same kind of machine; slower on GPUs."
    )
    compile: bool = Field(False, description="torch.compile the model: minutes at the start, faster steps on GPUs.")
    resize_every_s: float | None = Field(
        None,
        ge=1,
        description="Seconds between two looks for room for more workers; goes with a range of workers [default: 60].",
    )

    @model_validator(mode="after")
    def _workers_are_a_number_or_a_range(self) -> Self:
        words = self.num_workers.split("..")
        numbers = [int(word) if word.isascii() and word.isdecimal() else 0 for word in words]
        if len(numbers) > 2 or not 1 <= numbers[0] <= numbers[-1]:
            raise ValueError(
                f"compute.num_workers is {self.num_workers!r}: it must be a number from 1, or a range as 1..4"
            )
        if self.resize_every_s is not None and not self.workers.is_elastic:
            raise ValueError("compute.resize_every_s has no effect on a fixed number of workers; say a range as 1..4")
        return self

    @property
    def workers(self) -> Workers:
        """What num_workers says."""
        words = self.num_workers.split("..")
        return Workers(int(words[0]), int(words[-1]))


class ImagesConfig(Section):
    """Which images are predicted."""

    path: str = Field("", description="Folder (local or s3://) of image or Parquet files, folders in it included.")
    dataset: ImagesKind | None = Field(
        None,
        description="folder: every image file. parquet: every row, in the Hugging Face layout"
        " [default: what lies there].",
    )


class PredictorsConfig(Section):
    """Processes that predict, and their device."""

    num_workers: int | None = Field(
        None, ge=1, description="Processes, one a GPU or one a CPU core [default: as many as the cluster has]."
    )
    device: Device = Field("auto", description="auto takes cuda, then mps, then cpu.")


class CheckpointConfig(Section):
    """When the state of a training is kept; at the end of each epoch it is in any case."""

    every_steps: int | None = Field(None, ge=1, description="Checkpoint every so many optimiser steps too.")
    every_minutes: float | None = Field(10.0, gt=0, description="Checkpoint after so many minutes without one too.")
    keep: int = Field(2, ge=1, description="Latest checkpoints that are kept; each holds the best weights as well.")
    notice_every_steps: int = Field(
        20, ge=1, description="Optimiser steps between two looks for the notice that a spot node will go away."
    )


class TrackingConfig(Section):
    """What MLflow is told."""

    experiment: str = Field("rayapp", min_length=1, description="MLflow experiment.")
    log_every_steps: int = Field(20, ge=1, description="A batch metric every so many optimiser steps.")


class CostConfig(Section):
    """What a node costs by its accelerator, as Ray names it (cpu where it has none): fills in cost_usd of a run."""

    usd_per_hour: dict[str, float] = Field(
        default_factory=dict,
        description="Price of a node-hour (USD) by accelerator, over the table of compute/cost.py.",
    )


# --- serving ----------------------------------------------------------------------------------------------------------

MODEL_URI = "Model: models:/vision@ALIAS, models:/vision/VERSION, runs:/RUN_ID/model."


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
