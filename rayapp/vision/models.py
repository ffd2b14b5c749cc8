"""Architectures by name, each with a stem that fits the image size and its own normalisation as first layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast
from urllib.error import URLError

import torch
import torchvision.models as tv
from torch import Tensor, nn

from rayapp.config import ModelConfig
from rayapp.errors import ConfigError, did_you_mean

# Up to this height the ImageNet stems throw away most of the picture before the first block (FAULTS 11).
SMALL_IMAGE_PX = 64


class Classifier(nn.Module):
    """Logits for uint8 images: normalisation, then a backbone.

    mean_3 and std_3, in units of 0-1, are buffers, so weights without their normalisation cannot exist.
    """

    mean_3: Tensor
    std_3: Tensor

    def __init__(self, backbone: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("mean_3", torch.tensor(mean, dtype=torch.float32) * 255)
        self.register_buffer("std_3", torch.tensor(std, dtype=torch.float32) * 255)

    def forward(self, images_nhwc: Tensor) -> Tensor:
        """(N, K) float logits for (N, H, W, 3) uint8 RGB images."""
        # seen as NCHW the memory is already in channels_last order: no copy, and the fast kernels; and seen so while it
        # is uint8, an exported graph moves a quarter of the bytes
        images_nchw = images_nhwc.permute(0, 3, 1, 2).float()
        return cast(Tensor, self.backbone((images_nchw - self.mean_3[:, None, None]) / self.std_3[:, None, None]))


def build_model(
    config: ModelConfig, *, num_classes: int, image_px: int, mean: Sequence[float], std: Sequence[float]
) -> Classifier:
    """A Classifier in channels_last layout, on the CPU, in training mode.

    image_px is the smaller side of its images and chooses the stem; mean and std are in units of 0-1.
    Raises ConfigError where pretrained weights are wanted and cannot be downloaded.
    """
    if config.name not in ARCHITECTURES:
        raise ConfigError(f"unknown model.name '{config.name}'.{did_you_mean(config.name, ARCHITECTURES)}")
    backbone = ARCHITECTURES[config.name](config, num_classes, image_px <= SMALL_IMAGE_PX)
    if config.freeze_backbone:
        _freeze_all_but_head(backbone, num_classes)
    return Classifier(backbone, mean, std).to(memory_format=torch.channels_last)


def blank_model(
    config: ModelConfig, *, num_classes: int, image_px: int, mean: Sequence[float], std: Sequence[float]
) -> Classifier:
    """The same architecture without weights worth keeping, to load a bundle's into; never downloads."""
    plain = ModelConfig(name=config.name)
    return build_model(plain, num_classes=num_classes, image_px=image_px, mean=mean, std=std)


def count_parameters(model: nn.Module) -> int:
    """The number of weights that are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _mobilenet(config: ModelConfig, num_classes: int, small_images: bool) -> nn.Module:
    build, weights = {
        "mobilenet_v3_small": (tv.mobilenet_v3_small, tv.MobileNet_V3_Small_Weights.IMAGENET1K_V1),
        "mobilenet_v3_large": (tv.mobilenet_v3_large, tv.MobileNet_V3_Large_Weights.IMAGENET1K_V2),
    }[config.name]
    net: Any  # torchvision types every child as Tensor | Module
    if config.pretrained:
        net = _pretrained(build, weights)
        net.classifier[-1] = nn.Linear(net.classifier[-1].in_features, num_classes)
    else:
        net = build(weights=None, num_classes=num_classes)
        _quick_batch_norm(net)
    if small_images:
        net.features[0][0].stride = (1, 1)
    return cast(nn.Module, net)


def _resnet(config: ModelConfig, num_classes: int, small_images: bool) -> nn.Module:
    net: Any  # torchvision types every child as Tensor | Module
    if config.pretrained:
        net = _pretrained(tv.resnet18, tv.ResNet18_Weights.IMAGENET1K_V1)
        net.fc = nn.Linear(net.fc.in_features, num_classes)
    else:
        net = tv.resnet18(weights=None, num_classes=num_classes)
    if small_images:
        # He et al. 2016, section 4.2: 3x3 stride 1 and no pooling for 32x32 images. Pretrained 7x7 filters are kept.
        net.conv1 = _unstrided(net.conv1) if config.pretrained else nn.Conv2d(3, 64, 3, padding=1, bias=False)
        net.maxpool = nn.Identity()
    return cast(nn.Module, net)


Builder = Callable[[ModelConfig, int, bool], nn.Module]
ARCHITECTURES: dict[str, Builder] = {
    "mobilenet_v3_small": _mobilenet,
    "mobilenet_v3_large": _mobilenet,
    "resnet18": _resnet,
}


def _unstrided(conv: nn.Conv2d) -> nn.Conv2d:
    conv.stride = (1, 1)
    return conv


def _quick_batch_norm(net: nn.Module) -> None:
    """torchvision's momentum of 0.01 is for ImageNet's half a million steps: after 200 its averages are useless."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1


def _pretrained(build: Callable[..., nn.Module], weights: tv.WeightsEnum) -> nn.Module:
    try:
        return build(weights=weights)
    except (URLError, OSError) as error:
        file = weights.url.rsplit("/", 1)[-1]
        raise ConfigError(
            f"model.pretrained needs {file}, which could not be downloaded ({error}); put it into"
            f" {torch.hub.get_dir()}/checkpoints/, or leave --model.pretrained out"
        ) from error


def _freeze_all_but_head(net: nn.Module, num_classes: int) -> None:
    """Only the last linear layer learns. Frozen batch norms keep their ImageNet statistics (see freeze_norms)."""
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    head = [m for m in net.modules() if isinstance(m, nn.Linear) and m.out_features == num_classes][-1]
    for parameter in head.parameters():
        parameter.requires_grad_(True)


def train_mode(model: nn.Module) -> None:
    """Training mode, but for norms whose weights are frozen: their statistics must not drift."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.weight is not None and not module.weight.requires_grad:
            module.eval()
