"""Bundles of real networks. Apart from the tiny ones, because these need torch."""

from __future__ import annotations

from pathlib import Path

import torch

from rayapp.config.train import DataConfig, ModelConfig
from rayapp.data.datasets import DatasetInfo
from rayapp.vision.bundle import Bundle, Manifest, write_bundle
from rayapp.vision.models import build_model


def written_for(folder: Path, info: DatasetInfo) -> Bundle:
    """A bundle for a data set, of an untrained model that does react to its input."""
    torch.manual_seed(0)
    config = ModelConfig(name="resnet18")
    px = info.height_px
    model = build_model(config, num_classes=info.num_classes, image_px=px, mean=info.mean, std=info.std)
    with torch.no_grad():
        model.train()(torch.randint(0, 256, (16, px, px, 3), dtype=torch.uint8))
        model.backbone.fc.weight.mul_(5)  # type: ignore[union-attr,operator]
    manifest = Manifest(
        model=config,
        preprocess=info.preprocess,
        class_names=info.class_names,
        mean=info.mean,
        std=info.std,
        data=DataConfig(dataset=info.name),
        data_digest=info.digest,
        split_digest="sha256:2",
        git_sha="unknown",
        versions={"torch": torch.__version__},
        metrics={"val_accuracy": 0.5},
    )
    return write_bundle(folder, model, manifest)
