"""Writes the model of a BentoML service as a rayapp bundle, so that the same weights stand behind all servers.

Run it in the peers' environment, in the root of the repository:
    python -m benchmarks.peers.export --service benchmarks/peers/bento_service.py --bundle FOLDER
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from benchmarks.peers.network import CIFAR10_CLASSES, IMAGE_PX, IMAGENET_MEAN, IMAGENET_STD
from rayapp.config.train import DataConfig, ModelConfig
from rayapp.data.preprocess import PreprocessSpec
from rayapp.vision.bundle import Bundle, Manifest, write_bundle
from rayapp.vision.models import Classifier


def export(backbone: nn.Module, folder: Path) -> Bundle:
    """The bundle of a network for normalised 32x32 images, written to folder."""
    manifest = Manifest(
        model=ModelConfig(),
        preprocess=PreprocessSpec(height_px=IMAGE_PX, width_px=IMAGE_PX),
        class_names=CIFAR10_CLASSES,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        data=DataConfig(),
        data_digest="sha256:none",
        split_digest="sha256:none",
        git_sha="unknown",
        versions={},
        metrics={},
    )
    return write_bundle(folder, Classifier(backbone, IMAGENET_MEAN, IMAGENET_STD), manifest)


def main(argv: Sequence[str] | None = None) -> None:
    """Export the model that a service's build_model() returns."""
    parser = argparse.ArgumentParser(description="Write the model of a BentoML service as a bundle.")
    parser.add_argument("--service", type=Path, required=True, help="file with build_model()")
    parser.add_argument("--bundle", type=Path, required=True, help="folder to write")
    options = parser.parse_args(argv)
    sys.path.insert(0, str(options.service.resolve().parent))
    service = importlib.import_module(options.service.stem)
    export(service.build_model(), options.bundle)


if __name__ == "__main__":
    main()
