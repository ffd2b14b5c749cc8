"""Predictor: a bundle that answers. ONNX Runtime on a CPU, torch on a GPU."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rayapp.config.base import Device
from rayapp.data.preprocess import UInt8Array
from rayapp.errors import ConfigError
from rayapp.vision.bundle import GRAPH, Bundle, onnx_session

Float32Array = NDArray[np.float32]


class _Engine(Protocol):
    """Logits (N, K) float32 for images (N, H, W, 3) uint8."""

    def __call__(self, images_nhwc: UInt8Array) -> Float32Array: ...


class Predictor:
    """Class probabilities from a bundle. May be called from several threads."""

    def __init__(self, bundle: Bundle, device: str, engine: _Engine) -> None:
        self.bundle = bundle
        self.device = device
        self._engine = engine

    @classmethod
    def load(cls, bundle: Bundle, *, device: Device = "auto", num_threads: int = 1) -> Predictor:
        """The predictor of a bundle on a device. Raises BundleError or ConfigError (no such device here)."""
        kind = resolve_device(device)
        engine = _OnnxEngine(bundle, num_threads) if kind == "cpu" else _TorchEngine(bundle, kind)
        return cls(bundle, kind, engine)

    def predict(self, images_nhwc: UInt8Array) -> Float32Array:
        """(N, K) float32 probabilities of (N, H, W, 3) uint8 images; rows sum to 1."""
        logits_nk = self._engine(np.ascontiguousarray(images_nhwc)).astype(np.float64)
        exp_nk = np.exp(logits_nk - logits_nk.max(axis=1, keepdims=True))
        probabilities_nk: Float32Array = (exp_nk / exp_nk.sum(axis=1, keepdims=True)).astype(np.float32)
        return probabilities_nk


class _OnnxEngine:
    def __init__(self, bundle: Bundle, num_threads: int) -> None:
        self._session = onnx_session(bundle.folder / GRAPH, num_threads=num_threads)

    def __call__(self, images_nhwc: UInt8Array) -> Float32Array:
        logits_nk: Float32Array = self._session.run(["logits"], {"images": images_nhwc})[0]
        return logits_nk


class _TorchEngine:
    def __init__(self, bundle: Bundle, device: str) -> None:
        import torch

        self._device = torch.device(device)
        self._model = bundle.load_model(self._device)

    def __call__(self, images_nhwc: UInt8Array) -> Float32Array:
        import torch

        with torch.inference_mode():
            logits_nk = self._model(torch.from_numpy(images_nhwc).to(self._device))
            result: Float32Array = logits_nk.float().cpu().numpy()
            return result


def resolve_device(wanted: Device) -> str:
    """cpu, cuda or mps. auto takes the first of cuda, mps, cpu that is here. Raises ConfigError for one that is not."""
    if wanted == "cpu":
        return "cpu"  # without torch, which takes seconds and 500 MB to import
    import torch

    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return next(name for name, there in here.items() if there)
    if not here[wanted]:
        raise ConfigError(
            f"device '{wanted}' is not available here (available: {', '.join(n for n, there in here.items() if there)})"
        )
    return wanted
