"""The kind of BentoML service that rayapp replaces: eager torch, one image decoded and predicted at a time.

Run it in the peers' environment: bentoml serve bento_service:VisionClassifier --working-dir benchmarks/peers
"""

from __future__ import annotations

from typing import Any

import bentoml
import torch
from network import CIFAR10_CLASSES, IMAGE_PX, IMAGENET_MEAN, IMAGENET_STD, build_model
from PIL.Image import Image
from torch import Tensor
from torchvision.transforms import Compose, Normalize, Resize, ToTensor

__all__ = ["CIFAR10_CLASSES", "IMAGENET_MEAN", "IMAGENET_STD", "VisionClassifier", "build_model"]


@bentoml.service(traffic={"timeout": 60})
class VisionClassifier:
    """Classifies images."""

    def __init__(self) -> None:
        torch.set_num_threads(1)  # two threads on two cores that the client shares are slower
        self._model = build_model()
        size = (IMAGE_PX, IMAGE_PX)
        self._transform = Compose([Resize(size), ToTensor(), Normalize(IMAGENET_MEAN, IMAGENET_STD)])

    @bentoml.api
    def predict_image(self, image: Image) -> dict[str, Any]:
        """The prediction for one image."""
        return self._predict([image])[0]

    @bentoml.api
    def predict_batch(self, images: list[Image]) -> list[dict[str, Any]]:
        """The predictions for several images, in order."""
        return self._predict(images)

    @bentoml.api
    def get_model_info(self) -> dict[str, Any]:
        """What is served."""
        return {
            "model_metadata": {"name": "vision", "params": {"model_name": "mobilenet_v3_small"}},
            "device": "cpu",
            "classes": CIFAR10_CLASSES,
            "num_classes": len(CIFAR10_CLASSES),
        }

    @bentoml.api
    def health(self) -> dict[str, str]:
        """A sign of life."""
        return {"status": "healthy", "service": "mlflow_vision_classifier"}

    def _predict(self, images: list[Image]) -> list[dict[str, Any]]:
        batch_nchw = torch.stack([self._transform(image) for image in images])
        with torch.no_grad():
            return [_answer(row_k) for row_k in torch.softmax(self._model(batch_nchw), dim=1)]


def _answer(row_k: Tensor) -> dict[str, Any]:
    index = int(row_k.argmax())
    return {
        "predicted_class": CIFAR10_CLASSES[index],
        "predicted_index": index,
        "confidence": float(row_k[index]),
        "probabilities": {name: float(p) for name, p in zip(CIFAR10_CLASSES, row_k, strict=True)},
    }
