"""Explainer: which parts of an image spoke for a class, as a heat map. Torch only, for it needs gradients.

The method is Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391): the channels of the last feature map, weighted by how
much each would raise the logit of the class, summed, and cut off at zero. It tells classes apart well, but the last map
of a model for 32x32 images may have no more than 2x2 cells. Then it is multiplied with a finer one, as the paper does
in section 3.3; the finer one is LayerCAM (Jiang et al. 2021, doi:10.1109/TIP.2021.3089943), made for earlier maps.

Shapes: n images; h, w pixels; c channels; y, x cells of a feature map; k classes.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from rayapp.data.preprocess import UInt8Array, to_rgb
from rayapp.errors import BundleError
from rayapp.vision.bundle import Bundle
from rayapp.vision.models import Classifier
from rayapp.vision.predictor import Float32Array

LAST_PX, FINE_PX = 2, 7  # fewest cells a side: of a map that says where at all, and of the last one for 224x224 images
MIN_SIDE_PX, MAX_SIDE_PX = 224, 512  # of the picture that people look at, its longer side
COLOURS = "inferno"  # gets brighter with the heat, so colour-blind people and grey prints tell it apart
COLD, HOT = 0.25, 0.75  # opacity of no heat and of the most


@dataclass(frozen=True)
class Explanation:
    """What spoke for a class."""

    heat_hw: Float32Array  # 0-1, at the image's size, its maximum 1; zeros where nothing spoke for the class
    index: int  # of the class
    probabilities_k: Float32Array  # of all classes


class Explainer:
    """Heat maps from a model in evaluation mode, whose weights are frozen by it. Several threads may use it in turns.

    size is (height, width) of its images. Raises BundleError where no feature map of those has more than one cell.
    """

    def __init__(self, model: Classifier, size: tuple[int, int], device: torch.device | str = "cpu") -> None:
        blank_nhwc = torch.zeros(1, *size, 3, dtype=torch.uint8, device=device)
        layers = [_last_map(model, blank_nhwc, cells) for cells in (LAST_PX, FINE_PX)]
        if layers[0] is None:
            raise BundleError(
                f"feature maps of {size[1]}x{size[0]} images have one cell, which tells no place; take larger images"
            )
        self._model = model.requires_grad_(False)  # activations alone get gradients
        self._device = device
        self._layers = [layer for layer in dict.fromkeys(layers) if layer]
        self._lock = threading.Lock()

    @classmethod
    def load(cls, bundle: Bundle, device: torch.device | str = "cpu") -> Explainer:
        """The explainer of a bundle. Raises BundleError where its weights do not fit, or its images are too small."""
        spec = bundle.manifest.preprocess
        return cls(bundle.load_model(device), (spec.height_px, spec.width_px), device)

    def explain(self, image_hwc: UInt8Array, index: int | None = None) -> Explanation:
        """What spoke for a class, the most probable one unless index names it. image_hwc: (H, W, 3) uint8, RGB."""
        images_nhwc = torch.tensor(image_hwc[None], device=self._device)
        logits_k, maps = self._forward(images_nhwc)
        chosen = int(logits_k.argmax()) if index is None else index
        assert 0 <= chosen < len(logits_k), f"class {chosen} of {len(logits_k)}"
        gradients = torch.autograd.grad(logits_k[chosen], maps)
        heat_hw = torch.ones(images_nhwc.shape[1:3], device=self._device)
        for combine, map_ncyx, gradient_ncyx in zip((_grad_cam, _layer_cam), maps, gradients, strict=False):
            heat_hw *= _enlarged(combine(map_ncyx.detach(), gradient_ncyx), heat_hw.shape)
        return Explanation(
            heat_hw=_to_one(heat_hw).cpu().numpy(),
            index=chosen,
            probabilities_k=logits_k.detach().cpu().double().softmax(0).float().numpy(),
        )

    def _forward(self, images_nhwc: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (K,) of one image, and the maps (1, C, Y, X) of self._layers that they can be differentiated by."""
        maps: dict[nn.Module, Tensor] = {}

        def keep(layer: nn.Module, _: object, output: Tensor) -> Tensor:
            maps[layer] = output if output.requires_grad else output.detach().requires_grad_()
            return maps[layer]

        with self._lock:  # hooks see the images of every thread
            handles = [layer.register_forward_hook(keep) for layer in self._layers]
            try:
                logits_nk = self._model(images_nhwc)
            finally:
                for handle in handles:
                    handle.remove()
        return logits_nk[0], [maps[layer] for layer in self._layers]


def overlay(image: Image.Image, heat_hw: Float32Array) -> bytes:
    """A PNG of the image with the heat over it, enlarged or reduced until its longer side is 224 to 512 pixels.

    Raises ImageError on images of more than 8 bits a sample.
    """
    picture = _handy(to_rgb(image))
    heat = np.asarray(Image.fromarray(heat_hw).resize(picture.size, Image.Resampling.BILINEAR))[..., None]
    colours_hwc = matplotlib.colormaps[COLOURS](heat[..., 0])[..., :3] * 255
    opacity = COLD + (HOT - COLD) * heat
    blended_hwc = (1 - opacity) * np.asarray(picture) + opacity * colours_hwc
    file = io.BytesIO()
    Image.fromarray(blended_hwc.round().astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def _handy(image: Image.Image) -> Image.Image:
    longest = max(image.size)
    wanted = min(max(longest, MIN_SIDE_PX), MAX_SIDE_PX)
    if wanted == longest:
        return image
    size = [max(1, round(side * wanted / longest)) for side in image.size]
    kind = Image.Resampling.NEAREST if wanted > longest else Image.Resampling.BOX
    return image.resize((size[0], size[1]), kind)


def _last_map(model: Classifier, images_nhwc: Tensor, cells: int) -> nn.Module | None:
    """The module that gives the last (N, C, Y, X) map of so many cells a side, if there is one."""
    found: nn.Module | None = None

    def note(module: nn.Module, _: object, output: Any) -> None:
        nonlocal found
        if isinstance(output, Tensor) and output.dim() == 4 and min(output.shape[2:]) >= cells:
            found = module

    handles = [module.register_forward_hook(note) for module in model.modules()]
    with torch.inference_mode():
        model(images_nhwc)
    for handle in handles:
        handle.remove()
    return found


def _grad_cam(map_ncyx: Tensor, gradient_ncyx: Tensor) -> Tensor:
    """(1, 1, Y, X): one weight a channel."""
    return (gradient_ncyx.mean((2, 3), keepdim=True) * map_ncyx).sum(1, keepdim=True).relu()


def _layer_cam(map_ncyx: Tensor, gradient_ncyx: Tensor) -> Tensor:
    """(1, 1, Y, X): a weight for each cell of each channel, where it is positive."""
    return (gradient_ncyx.relu() * map_ncyx).sum(1, keepdim=True).relu()


def _enlarged(heat_ncyx: Tensor, size: Sequence[int]) -> Tensor:
    return _to_one(F.interpolate(heat_ncyx, tuple(size), mode="bilinear", align_corners=False)[0, 0])


def _to_one(heat_hw: Tensor) -> Tensor:
    """The heat with a maximum of 1; one that is zero everywhere stays so."""
    return heat_hw / heat_hw.max().clamp_min(torch.finfo(heat_hw.dtype).tiny)
