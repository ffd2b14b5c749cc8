"""The sections of a training's settings: frozen pydantic models.

A function is given the section that it needs, never a global. How a verb's settings are put together of sections is in
commands.py, how they are read from a YAML file and flags in parse.py; here nothing but pydantic is needed.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, Self

from pydantic import BeforeValidator, Field, model_validator

from rayapp.config.base import DatasetName, Device, ModelName, Section

ALL_EPOCHS = 10**9


class DataConfig(Section):
    """Which images, and how they are split."""

    dataset: DatasetName = Field("digits", description="Data set; digits needs no download.")
    path: str | None = Field(
        None,
        description="Folder (local or s3://) of a 'folder' or 'parquet' data set; for others, where downloads lie.",
    )
    validation_fraction: float | None = Field(
        None,
        gt=0,
        lt=0.5,
        description="Part of the training images kept for validation (0-0.5), stratified by class; not for a data set"
        " that has validation images of its own [default: 0.1].",
    )
    split_seed: int | None = Field(None, ge=0, description="Seed of that train/validation split [default: 0].")
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
    image_column: str = Field(
        "image", min_length=1, description="Column of the images of a 'parquet' data set, a struct of bytes and path."
    )
    label_column: str = Field(
        "label", min_length=1, description="Column of the labels of a 'parquet' data set, whole numbers."
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

    @model_validator(mode="after")
    def _columns_fit_dataset(self) -> Self:
        for name, value, default in (("image", self.image_column, "image"), ("label", self.label_column, "label")):
            if value != default and self.dataset != "parquet":
                raise ValueError(
                    f"data.{name}_column has no effect on data.dataset '{self.dataset}', which has no columns;"
                    " leave it out, or say --data.dataset parquet"
                )
        if self.image_column == self.label_column:
            raise ValueError(
                f"data.image_column and data.label_column are both '{self.image_column}'; name two columns"
            )
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
        description="Training processes (DDP); one per GPU, or one per CPU core. A range as 1..4 starts with as many as"
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

    usd_per_hour: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict,
        description="Price of a node-hour (USD) by accelerator, over the table of runtime/cost.py.",
    )
