"""What each process of a training sets up: device, loaders, model, and what the driver gives them."""

from __future__ import annotations

from typing import Any, TypeVar

import ray.train.torch
import torch
from torch import Tensor, nn

from rayapp.config.commands import Recipe, TrainSettings
from rayapp.config.env import Home
from rayapp.config.train import ModelConfig
from rayapp.data.datasets import Dataset, DatasetInfo, Split
from rayapp.data.preprocess import Images
from rayapp.errors import ConfigError
from rayapp.registry.models import Registry
from rayapp.storage import absolute_uri, is_remote
from rayapp.train.streaming import StreamingLoader
from rayapp.vision.augment import Augment
from rayapp.vision.loaders import InMemoryLoader, Loader, Shard
from rayapp.vision.memory import keep_freed_memory
from rayapp.vision.models import Classifier, blank_model, build_model, load_weights
from rayapp.vision.optim import TrainPlan

R = TypeVar("R", bound=Recipe)
Weights = dict[str, Tensor]
VALIDATION_BATCH = 512


def initial_weights(settings: Recipe, info: DatasetInfo, home: Home) -> Weights | None:
    """What the model starts from; None for random weights. Got here, so that what cannot be had is said at once."""
    if settings.model.pretrained:
        return build_model_for(settings.model, info).state_dict()
    if not settings.model.init:
        return None
    registry = Registry(home.tracking_uri)
    bundle = registry.download(registry.resolve(settings.model.init), home.bundles)
    name = bundle.manifest.model.name
    if name != settings.model.name:
        raise ConfigError(
            f"model.init '{settings.model.init}' is a {name}, but model.name is '{settings.model.name}';"
            f" say --model.name {name}"
        )
    model = build_model_for(settings.model, info)
    same_classes = bundle.manifest.class_names == info.class_names
    load_weights(model, bundle.load_model().state_dict(), same_classes=same_classes)
    return model.state_dict()


def absolute_paths(settings: R) -> R:
    """Workers run in folders of their own, where a relative path means something else."""

    def absolute(path: str | None) -> str | None:
        return path if path is None or is_remote(path) else absolute_uri(path)

    data = settings.data.model_copy(update={"path": absolute(settings.data.path)})
    compute = settings.compute.model_copy(update={"storage_path": absolute(settings.compute.storage_path)})
    return settings.model_copy(update={"data": data, "compute": compute})


def build_model_for(config: ModelConfig, info: DatasetInfo, *, blank: bool = False) -> Classifier:
    """The model of a data set before training; blank: without pretrained weights, which are then given to it."""
    return (blank_model if blank else build_model)(
        config,
        num_classes=info.num_classes,
        image_px=min(info.height_px, info.width_px),
        mean=info.mean,
        std=info.std,
    )


def setup_device(settings: TrainSettings, device: torch.device) -> torch.device:
    """The device, with torch set up for it in this process."""
    torch.set_num_threads(settings.compute.threads_per_worker)
    keep_freed_memory()
    torch.manual_seed(settings.seed)
    # TF32 in matrix products and convolutions: what is lost is less than bf16 loses, and on CPUs it changes nothing
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = not settings.compute.deterministic
    torch.use_deterministic_algorithms(settings.compute.deterministic)
    return device


def make_loaders(
    dataset: Dataset, split: Split, settings: TrainSettings, plan: TrainPlan, shard: Shard, device: torch.device
) -> tuple[Loader, Loader]:
    """Training and validation batches of this rank."""
    info = dataset.info
    shape: dict[str, Any] = {"height_px": info.height_px, "flip": info.flip, "num_classes": info.num_classes}
    training: dict[str, Any] = {
        "batch_size": plan.batch_size,
        "augment": Augment.from_config(settings.augment, **shape),
        "seed": settings.seed,
    }
    placed: dict[str, Any] = {"device": device, "shard": shard}
    images, rows = dataset.train, (split.train_indices, split.validation_indices)
    if isinstance(images, Images):
        train = InMemoryLoader(images, rows[0], **training, **placed)
        return train, InMemoryLoader(images, rows[1], batch_size=VALIDATION_BATCH, **placed)
    data = settings.data
    placed |= {"preprocess": info.preprocess, "memory_bytes": data.memory_bytes, "on_error": data.on_error}
    streamed = StreamingLoader(images.subset(rows[0]), **training, **placed)
    return streamed, StreamingLoader(images.subset(rows[1]), batch_size=VALIDATION_BATCH, **placed)


def wrap_ddp(model: nn.Module, settings: TrainSettings, shard: Shard, device: torch.device) -> nn.Module:
    """The model as the loop calls it: compiled where wanted, gradients averaged over the ranks."""
    network = model
    if shard.world_size > 1:
        if settings.optim.sync_batch_norm:
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        network = ray.train.torch.prepare_model(
            network,
            move_to_device=device,
            parallel_strategy_kwargs={
                # norm statistics are averaged once an epoch by fit(): with every batch it would be a second exchange
                "broadcast_buffers": False,
                "gradient_as_bucket_view": True,
                # this keeps DDP from forming its buckets anew after the first step, which with 3 ranks and more changes
                # the order of sums, so that a resumed run would differ in the last bit
                "find_unused_parameters": settings.compute.deterministic,
            },
        )
    return torch.compile(network) if settings.compute.compile else network  # type: ignore[return-value]  # its stub
