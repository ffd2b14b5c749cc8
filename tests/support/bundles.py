"""Bundles that are real and small, and a registry in memory.

The graph of a tiny one is one matrix product over the pixels, built with onnx alone, so that it takes milliseconds.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from rayapp.config.train import DataConfig, ModelConfig
from rayapp.data.preprocess import PreprocessSpec
from rayapp.errors import RegistryError, RegistryUnavailable
from rayapp.registry.uris import ModelVersion
from rayapp.serve.replica import LoadedModel
from rayapp.vision.bundle import GRAPH, MANIFEST, WEIGHTS, Bundle, Manifest, file_digest
from rayapp.vision.predictor import Predictor

if TYPE_CHECKING:
    from rayapp.data.datasets import DatasetInfo

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay")
SIDE_PX = 32


def write_tiny_bundle(
    folder: Path,
    *,
    seed: int = 0,
    classes: tuple[str, ...] = CLASSES,
    num_logits: int = 0,
    side_px: int = SIDE_PX,
    **changes: Any,
) -> Bundle:
    """A bundle whose weights come from seed; num_logits other than the number of classes makes a broken one.

    changes: what else its manifest says.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_graph(folder / GRAPH, seed, num_logits or len(classes), side_px)
    (folder / WEIGHTS).write_bytes(b"not used on a CPU")
    files = {name: file_digest(folder / name) for name in (WEIGHTS, GRAPH)}
    preprocess = PreprocessSpec(height_px=side_px, width_px=side_px)
    usual = {"class_names": classes, "preprocess": preprocess, "metrics": {"val_accuracy": 0.5}, "files": files}
    manifest = tiny_manifest(**(usual | changes))
    (folder / MANIFEST).write_text(manifest.model_dump_json(), encoding="utf-8")
    return Bundle.open(folder)


def digits_bundle(folder: Path, info: DatasetInfo) -> Bundle:
    """A tiny bundle for the digits, whose info this is."""
    told = {"data": DataConfig(), "data_digest": info.digest, "mean": info.mean, "std": info.std}
    return write_tiny_bundle(folder, classes=info.class_names, side_px=info.height_px, **told)


def tiny_manifest(**changes: Any) -> Manifest:
    """What a bundle for SIDE_PX images says of itself."""
    usual: dict[str, Any] = {
        "model": ModelConfig(),
        "preprocess": PreprocessSpec(height_px=SIDE_PX, width_px=SIDE_PX),
        "class_names": CLASSES,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
        "data": DataConfig(),
        "data_digest": "sha256:data",
        "split_digest": "sha256:split",
        "git_sha": "unknown",
        "versions": {},
        "metrics": {},
        "created": datetime.now(UTC).isoformat(),
    }
    return Manifest(**{**usual, **changes})


def _write_graph(path: Path, seed: int, num_logits: int, side_px: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = side_px * side_px * 3
    weights = (rng.standard_normal((pixels, num_logits)) / 255 / np.sqrt(pixels) * 8).astype(np.float32)
    constants = {"shape": np.array([-1, pixels], dtype=np.int64), "weights": weights}
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Reshape", ["floats", "shape"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", side_px, side_px, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", num_logits])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, path)


def tiny_version(version: int = 1, *, alias: str | None = "champion") -> ModelVersion:
    """What a registry would say of a version."""
    return ModelVersion(
        name="vision",
        version=version,
        run_id=hashlib.md5(str(version).encode(), usedforsecurity=False).hexdigest(),
        aliases=(alias,) if alias else (),
        alias=alias,
        stage=None,
        source=f"models:/m-{version}",
        status="READY",
        tags={},
        created=datetime.now(UTC),
    )


class Shelf:
    """A registry in memory: bundles by version, and two aliases that the tests move."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.champion = 1
        self.challenger: int | None = None
        self.down = False
        self.num_downloads = 0

    def add(self, version: int, **bundle: Any) -> Path:
        """The folder of a new version's bundle."""
        return write_tiny_bundle(self.folder / str(version), seed=version, **bundle).folder

    def resolve(self, uri: str) -> ModelVersion:
        """The version that models:/vision@ALIAS or models:/vision/VERSION names."""
        if self.down:
            raise RegistryUnavailable("MLflow does not answer")
        _, at, alias = uri.partition("@")
        if not at:
            return tiny_version(int(uri.rsplit("/", 1)[1]), alias=None)
        version = {"champion": self.champion, "challenger": self.challenger}[alias]
        if version is None:
            raise RegistryError(f"alias '{alias}' of 'vision' not found")
        return tiny_version(version, alias=alias)

    def download(self, version: ModelVersion, cache: Path) -> Bundle:
        """The verified bundle of a version."""
        self.num_downloads += 1
        if self.down and not (cache / str(version.version)).exists():
            raise RegistryUnavailable("MLflow does not answer")
        return Bundle.open(self.folder / str(version.version))

    def metadata(self, version: ModelVersion) -> dict[str, Any]:
        """model_metadata of the contract."""
        if self.down:
            raise RegistryUnavailable("MLflow does not answer")
        return {
            "name": version.name,
            "version": str(version.version),
            "alias": version.alias,
            "aliases": list(version.aliases),
            "run_id": version.run_id,
            "status": version.status,
            "source": version.source,
            "params": {"epochs": "3"},
            "metrics": {"val_accuracy": 0.5, "val_loss": float("nan")},
            "tags": {},
        }


def tiny_served(folder: Path, *, version: int = 1) -> LoadedModel:
    """A loaded tiny model."""
    shelf = Shelf(folder)
    shelf.add(version)
    found = tiny_version(version)
    return LoadedModel(Predictor.load(shelf.download(found, folder), device="cpu"), found, shelf.metadata(found))
