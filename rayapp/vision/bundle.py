"""The bundle: a directory that holds a trained model, all that is needed to use it, and the digests to trust it.

    manifest.json         what it is: architecture, preprocessing, classes, data, versions, metrics, file digests
    weights.safetensors   the weights, for torch
    model.onnx            the graph: "images" uint8 (N, H, W, 3) -> "logits" float32 (N, K), any N

It is the only thing that crosses from training to serving. Nothing in it is a pickle. torch is imported only where it
is used: a process that asks ONNX Runtime does without its seconds and its memory.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError

from rayapp.config.train import DataConfig, ModelConfig
from rayapp.data.preprocess import PreprocessSpec
from rayapp.errors import BundleError
from rayapp.storage import atomic_write

if TYPE_CHECKING:
    import torch

    from rayapp.vision.models import Classifier

FORMAT_VERSION = 1
MANIFEST, WEIGHTS, GRAPH = "manifest.json", "weights.safetensors", "model.onnx"
# ONNX Runtime's errors share no base class but Exception
_ORT_ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)
EXPORT_TOLERANCE = 1e-3  # largest difference between a logit of torch and of ONNX Runtime


class Manifest(BaseModel):
    """What a bundle is. mean and std are in units of 0-1; metrics hold fractions; files name -> "sha256:..."."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    format_version: int = FORMAT_VERSION
    model: ModelConfig
    preprocess: PreprocessSpec
    class_names: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    data: DataConfig
    data_digest: str
    split_digest: str
    git_sha: str
    versions: dict[str, str]
    metrics: dict[str, float]
    created: str = ""
    files: dict[str, str] = {}

    @property
    def image_px(self) -> int:
        """The smaller side of the images, which chose the model's stem."""
        return min(self.preprocess.height_px, self.preprocess.width_px)


@dataclass(frozen=True)
class Bundle:
    """A verified bundle: every file was there and had the digest that the manifest says."""

    folder: Path
    manifest: Manifest
    digest: str  # of manifest.json, and so of everything

    @classmethod
    def open(cls, folder: Path) -> Bundle:
        """The bundle in folder. Raises BundleError where a file is missing, changed or of another format."""
        path = folder / MANIFEST
        try:
            text = path.read_bytes()
        except OSError as error:
            raise BundleError(f"{folder} is no bundle: {MANIFEST} cannot be read ({error.strerror})") from error
        try:
            manifest = Manifest.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise BundleError(f"{path} is not a manifest this version reads: {where}: {first['msg']}") from error
        if manifest.format_version != FORMAT_VERSION:
            raise BundleError(
                f"{path} has format {manifest.format_version}, this version reads {FORMAT_VERSION}; train it again"
            )
        for name in (WEIGHTS, GRAPH):
            _verify(folder / name, manifest.files.get(name, "none"))
        return cls(folder, manifest, "sha256:" + hashlib.sha256(text).hexdigest())

    def load_model(self, device: torch.device | str = "cpu") -> Classifier:
        """The model with its weights, in evaluation mode. Raises BundleError where they do not fit the architecture."""
        from safetensors.torch import load_file

        from rayapp.vision.models import blank_model

        manifest = self.manifest
        model = blank_model(
            manifest.model,
            num_classes=len(manifest.class_names),
            image_px=manifest.image_px,
            mean=manifest.mean,
            std=manifest.std,
        )
        try:
            model.load_state_dict(load_file(self.folder / WEIGHTS))
        except (SafetensorError, RuntimeError) as error:
            raise BundleError(f"{self.folder / WEIGHTS} does not fit {manifest.model.name}: {error}") from error
        return model.to(device).eval()


def write_bundle(folder: Path, model: Classifier, manifest: Manifest) -> Bundle:
    """The bundle of model, written to folder. The exported graph is checked against torch before it is trusted.

    Raises BundleError where both disagree, or the folder cannot be written.
    """
    from safetensors.torch import save_file

    model = model.cpu().eval()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / WEIGHTS)
        export_onnx(model, folder / GRAPH, manifest.preprocess)
        files = {name: file_digest(folder / name) for name in (WEIGHTS, GRAPH)}
        complete = manifest.model_copy(update={"files": files, "created": datetime.now(UTC).isoformat("T", "seconds")})
        # last and at once: without it the folder is no bundle
        atomic_write(folder / MANIFEST, complete.model_dump_json(indent=2) + "\n")
    except OSError as error:
        raise BundleError(f"the bundle cannot be written to {folder} ({error.strerror}); free some space") from error
    return Bundle.open(folder)


def export_onnx(model: Classifier, path: Path, spec: PreprocessSpec) -> None:
    """Write the graph of model to path, any batch size. Raises BundleError where its logits differ from torch's."""
    import torch

    generator = torch.Generator().manual_seed(0)
    shape = (3, spec.height_px, spec.width_px, 3)
    images_nhwc = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    with torch.inference_mode():
        expected_nk = model(images_nhwc).numpy()
    with warnings.catch_warnings(), _quiet("torch.onnx", "onnxscript", "onnx_ir"):
        warnings.simplefilter("ignore")  # the exporter warns of its own deprecated calls
        program = torch.onnx.export(
            _to_export(model),
            (images_nhwc,),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None  # with dynamo=True there is always one
    program.save(path, external_data=False)
    (logits_nk,) = onnx_session(path, num_threads=1).run(["logits"], {"images": images_nhwc.numpy()})
    difference = float(np.abs(logits_nk - expected_nk).max())
    if not difference <= EXPORT_TOLERANCE:
        raise BundleError(
            f"the exported graph differs from the model by {difference:.2g} (allowed: {EXPORT_TOLERANCE})"
        )


def _to_export(model: Classifier) -> Classifier:
    """A copy of model with the same logits whose export is quick, and its graph too.

    torch 2.14 exports AdaptiveAvgPool2d(1) as ReduceMean, Range and Gather, which took a fifth of MobileNetV3's time in
    ONNX Runtime. Gradients and activations in place would be traced and then taken out again: 8.1 s of CPU for
    MobileNetV3-small, 5.0 s without (2.4 and 1.5 s for ResNet-9).
    """
    from torch import nn

    from rayapp.vision.pools import PoolAll

    copied = copy.deepcopy(model).requires_grad_(False)
    for parent in list(copied.modules()):
        if hasattr(parent, "inplace"):
            parent.inplace = False  # type: ignore[assignment]  # torch says that it were a tensor
        for name, child in parent.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size in (1, (1, 1)):
                setattr(parent, name, PoolAll())
    return copied


def onnx_session(path: Path, *, num_threads: int) -> Any:  # onnxruntime has no types
    """An ONNX Runtime session on the CPU with so many threads. Raises BundleError where path holds no graph."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except _ORT_ERRORS as error:
        raise BundleError(f"{path} cannot be loaded by ONNX Runtime: {error}") from error


def file_digest(path: Path) -> str:
    """ "sha256:..." of a file."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def _verify(path: Path, expected: str) -> None:
    try:
        actual = file_digest(path)
    except OSError as error:
        raise BundleError(f"the bundle lacks {path.name}: {path} cannot be read ({error.strerror})") from error
    if actual != expected:
        raise BundleError(
            f"{path} has the digest {actual}, its manifest says {expected}; the file was changed: refused"
        )


class _quiet:  # noqa: N801 - reads as a with statement
    """Loggers that speak only of errors inside the with block."""

    def __init__(self, *names: str) -> None:
        self._loggers = [logging.getLogger(name) for name in names]

    def __enter__(self) -> None:
        self._levels = [logger.level for logger in self._loggers]
        for logger in self._loggers:
            logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        for logger, level in zip(self._loggers, self._levels, strict=True):
            logger.setLevel(level)
