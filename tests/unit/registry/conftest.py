"""A fresh sqlite store a test, and bundles that take a moment to make: their graph is written by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from rayapp.config.train import DataConfig, ModelConfig
from rayapp.data.preprocess import PreprocessSpec
from rayapp.registry.models import ModelVersion, Registry
from rayapp.registry.tracking import Tracker
from rayapp.vision.bundle import GRAPH, MANIFEST, WEIGHTS, Manifest, file_digest

PARAMS = {"model.name": "resnet18", "data.dataset": "digits", "data.path": "/secret/place", "plan.batch_size": "128"}
PARAMS |= {"plan.peak_lr": "0.4", "plan.epochs": "8", "seed": "0", "compute.storage_path": "s3://secret"}
TAGS = {"model_architecture": "resnet18", "git_sha": "abc", "mlflow.user": "alice", "hardware.cpu": "secret"}


@pytest.fixture
def tracker(uri: str, home: Path) -> Tracker:
    return Tracker(uri, home / "artifacts")


@pytest.fixture
def registry(uri: str) -> Registry:
    return Registry(uri)


@pytest.fixture
def run_id(tracker: Tracker) -> str:
    return new_run(tracker)


@pytest.fixture
def bundle_folder(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "bundle")


def new_run(tracker: Tracker) -> str:
    return tracker.open_run("rayapp", "a run", PARAMS, TAGS)


def registered(tracker: Tracker, registry: Registry, folder: Path) -> ModelVersion:
    """A new version with a run and a bundle of its own."""
    run = new_run(tracker)
    return registry.register(run, registry.log_bundle(run, folder), tags={"val_accuracy": "0.900000"})


def write_tiny_bundle(folder: Path, *, bias: float = 0.0, data_digest: str = "sha256:1") -> Path:
    """A sound bundle of two classes for 8x8 images: the logits are mean brightness + bias, and 0."""
    folder.mkdir()
    weight = np.array([[1.0, 0.0]], np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["floats", "axes"], ["mean"], keepdims=0),
            helper.make_node("Unsqueeze", ["mean", "last"], ["column"]),
            helper.make_node("MatMul", ["column", "weight"], ["product"]),
            helper.make_node("Add", ["product", "bias"], ["logits"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", 8, 8, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])],
        [
            numpy_helper.from_array(np.array([1, 2, 3]), "axes"),
            numpy_helper.from_array(np.array([1]), "last"),
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(np.array([bias, 0.0], np.float32), "bias"),
        ],
    )
    onnx.save_model(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), folder / GRAPH
    )
    save_file({"weight": weight}, folder / WEIGHTS)
    manifest = Manifest(
        model=ModelConfig(name="resnet18"),
        preprocess=PreprocessSpec(height_px=8, width_px=8),
        class_names=("dark", f"bright{bias:g}"),
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        data=DataConfig(),
        data_digest=data_digest,
        split_digest="sha256:2",
        git_sha="abc",
        versions={},
        metrics={"val_accuracy": 0.9},
        files={name: file_digest(folder / name) for name in (WEIGHTS, GRAPH)},
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json())
    return folder
