"""ResNet9: eight convolutions and a linear layer that learn small images fast.

The network of David Page's "How to Train Your ResNet" (2018-2019, github.com/davidcpage/cifar10-fast), which held the
CIFAR-10 record of Stanford's DAWNBench, with two changes of its last part ("Bag of Tricks"): maxima are taken before
the norm, so that norm and activation see a quarter of the values, and CELU stands for ReLU.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

CELU_ALPHA = 0.3  # Page's, for norms that start at a scale of 1
LOGIT_SCALE = 0.125  # Page's: keeps the first logits small, so that a high learning rate can be borne from the start


class ResNet9(nn.Module):
    """Logits (N, K) for (N, 3, H, W) float images.

    small_images (up to 64 pixels) are convolved from the first pixel on, and H, W are 8 or more; larger ones go through
    the 7x7 stem of He et al. 2016, which keeps one in sixteen places, and H, W are 32 or more.
    """

    def __init__(self, num_classes: int, *, small_images: bool) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _layer(3, 64) if small_images else _large_stem(64),
            _layer(64, 128, halve=True),
            _Residual(128),
            _layer(128, 256, halve=True),
            _layer(256, 512, halve=True),
            _Residual(512),
        )
        self.head = nn.Linear(512, num_classes, bias=False)

    def forward(self, images_nchw: Tensor) -> Tensor:
        """Each feature's maximum over the image, then the scaled head."""
        # amax, because AdaptiveMaxPool2d has no deterministic backward pass on CUDA
        return cast(Tensor, self.head(self.features(images_nchw).amax((2, 3)))) * LOGIT_SCALE


class _Residual(nn.Module):
    """Two layers whose outcome is added to what went in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(_layer(channels, channels), _layer(channels, channels))

    def forward(self, features_nchw: Tensor) -> Tensor:
        return features_nchw + cast(Tensor, self.layers(features_nchw))


def _layer(channels_in: int, channels_out: int, *, halve: bool = False) -> nn.Sequential:
    """3x3 filters, the maxima of 2x2 places where halve, norm, activation."""
    pool = [nn.MaxPool2d(2)] if halve else []
    filters = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
    return nn.Sequential(filters, *pool, nn.BatchNorm2d(channels_out), nn.CELU(CELU_ALPHA, inplace=True))


def _large_stem(channels: int) -> nn.Sequential:
    filters = nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False)
    pool = nn.MaxPool2d(3, stride=2, padding=1)
    return nn.Sequential(filters, pool, nn.BatchNorm2d(channels), nn.CELU(CELU_ALPHA, inplace=True))
