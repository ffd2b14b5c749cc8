"""The network behind all servers that are compared. torch and torchvision only."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v3_small

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGE_PX = 32


def build_model(seed: int = 0) -> nn.Module:
    """mobilenet_v3_small with random weights, in evaluation mode, whose answers differ from image to image.

    It takes (N, 3, H, W) floats, normalised. Untrained, its batch norms would squash every image to nearly the same
    logits; so their statistics are taken from noise of several scales, and the last layer is made steeper.
    """
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        model: nn.Module = mobilenet_v3_small(num_classes=len(CIFAR10_CLASSES)).train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the plain average over all batches
        for _ in range(4):
            model(torch.cat([_noise(grain_px) for grain_px in (1, 4, 16, 32)]))
        head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        head.weight.mul_(4)
    return model.eval()


def _noise(grain_px: int) -> Tensor:
    """(8, 3, 32, 32) random images of patches of so many pixels."""
    cells = IMAGE_PX // grain_px
    return nn.functional.interpolate(torch.randn(8, 3, cells, cells), size=IMAGE_PX, mode="bilinear")
