"""Architectures by name, each with a stem that fits the image size and its own normalisation as first layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast
from urllib.error import URLError

import torch
import torchvision.models as tv
from torch import Tensor, nn

from rayapp.config.train import ModelConfig
from rayapp.errors import ConfigError, did_you_mean
from rayapp.vision.resnet9 import ResNet9

# Up to this height the ImageNet stems throw away most of the picture before the first block (docs/faults.md, 11).
SMALL_IMAGE_PX = 64
# What torchvision's weights were trained with (torchvision.transforms._presets.ImageClassification)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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
    """A Classifier in channels_last layout, on the CPU, in training mode, frozen where config says so.

    image_px is the smaller side of its images and chooses the stem; mean and std are in units of 0-1, and those of
    ImageNet where the weights are. config.init is left to the caller: load_weights. Raises ConfigError where pretrained
    weights are wanted and there are none, or they cannot be downloaded.
    """
    if config.name not in ARCHITECTURES:
        raise ConfigError(f"unknown model.name '{config.name}'.{did_you_mean(config.name, ARCHITECTURES)}")
    backbone = ARCHITECTURES[config.name](config, num_classes, image_px <= SMALL_IMAGE_PX)
    if config.pretrained:
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    model = Classifier(backbone, mean, std).to(memory_format=torch.channels_last)
    set_frozen(model, config.freeze_backbone or config.frozen_epochs > 0)
    return model


def blank_model(
    config: ModelConfig, *, num_classes: int, image_px: int, mean: Sequence[float], std: Sequence[float]
) -> Classifier:
    """The same architecture without weights worth keeping, to load a bundle's into; never downloads."""
    plain = ModelConfig(name=config.name)
    return build_model(plain, num_classes=num_classes, image_px=image_px, mean=mean, std=std)


def load_weights(model: Classifier, weights: Mapping[str, Tensor], *, same_classes: bool) -> None:
    """Take over the weights of a trained Classifier of the same architecture; its head only where same_classes.

    The normalisation comes with them (mean_3, std_3): filters and the statistics of the norms fit the numbers that they
    were trained on, so that the model starts from exactly the features that the other one ended with, also where the
    backbone stays frozen. Raises ConfigError where weights are missing, left over or of another shape.
    """
    head = f"{_head_name(model)}."
    own = {name: w for name, w in model.state_dict().items() if same_classes or not name.startswith(head)}
    given = {name: w for name, w in weights.items() if same_classes or not name.startswith(head)}
    names = {**own, **given}
    wrong = [name for name in names if _shape(own, name) != _shape(given, name)]
    if wrong:
        raise ConfigError(
            f"the weights of model.init do not fit this model: '{wrong[0]}' is {_shape(given, wrong[0])} there and"
            f" {_shape(own, wrong[0])} here ({len(wrong)} of {len(names)} differ); take the model.name, and an image"
            " size (up to 64 pixels, or above), that it was trained with"
        )
    model.load_state_dict(given, strict=same_classes)


def _shape(weights: Mapping[str, Tensor], name: str) -> str:
    return "x".join(map(str, weights[name].shape)) or "a number" if name in weights else "missing"


def set_frozen(model: nn.Module, frozen: bool) -> None:
    """Let the head alone learn, or all weights again, from the next forward pass on.

    DistributedDataParallel looks at what learns only when it is made: wrap the model anew after a change.
    """
    head = f"{_head_name(model)}."
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not frozen or name.startswith(head))


def _head_name(model: nn.Module) -> str:
    """The layer that gives the logits: in each of ARCHITECTURES the last linear one."""
    names: list[str] = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return names[-1]


def train_mode(model: nn.Module) -> None:
    """Training mode, but for norms whose weights are frozen: their statistics must not drift."""
    model.train()
    for module in model.modules():
        is_norm = isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm)
        if is_norm and module.weight is not None and not module.weight.requires_grad:
            module.eval()


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
        # He et al. 2016, section 4.2: 3x3 stride 1 and no pooling for 32x32 images. Pretrained 7x7 filters keep their
        # middle, so that the architecture does not depend on what it starts from.
        filters = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        if config.pretrained:
            filters.weight.data.copy_(net.conv1.weight.data[:, :, 2:5, 2:5])
        net.conv1 = filters
        net.maxpool = nn.Identity()
    return cast(nn.Module, net)


def _resnet9(config: ModelConfig, num_classes: int, small_images: bool) -> nn.Module:
    if config.pretrained:
        raise ConfigError(
            "model.pretrained: there are no pretrained weights for model.name 'resnet9'; leave --model.pretrained out,"
            " or take mobilenet_v3_small, mobilenet_v3_large or resnet18"
        )
    return ResNet9(num_classes, small_images=small_images)


Builder = Callable[[ModelConfig, int, bool], nn.Module]
ARCHITECTURES: dict[str, Builder] = {
    "mobilenet_v3_small": _mobilenet,
    "mobilenet_v3_large": _mobilenet,
    "resnet18": _resnet,
    "resnet9": _resnet9,
}


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
