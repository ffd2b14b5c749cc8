"""Random changes of whole uint8 batches, for training only: crop, flip, RandAugment, cutout, mixup.

All are tensor operations on the device of the images, where the random numbers are drawn too: nothing is copied from
or to the host and nothing waits for the device.

Suffixes of tensors: n images, h and w pixels, c channels, k classes, o operations; 1 for a size of 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from rayapp.config.train import AugmentConfig

GREY = 128
# The list of RandAugment (Cubuk et al. 2019, arXiv 1909.13719, section 3) without equalize and autocontrast, which
# have no strength. What each does at full strength is in table 6 of Cubuk et al. 2018 (arXiv 1805.09501):
RANDOM_OPS = (
    "identity",
    *("rotate", "shear_x", "shear_y", "translate_x", "translate_y"),
    *("brightness", "contrast", "colour", "sharpness", "solarize", "posterize"),
)
MAX_ANGLE = math.radians(30)
MAX_SHEAR = 0.3
MAX_SHIFT = 150 / 331  # of the height or width
MAX_BLEND = 0.9  # PIL's enhancement factors go from 0.1 to 1.9
MAX_BITS = 4  # posterize leaves 8 - 4 bits


@dataclass(frozen=True)
class Augment:
    """Random changes of a batch that keep its size; a data set says through flip whether mirror images are its kind."""

    crop_padding_px: int
    flip: bool
    cutout_px: int
    random_ops: int = 0
    magnitude: float = 0.0
    mixup_alpha: float = 0.0
    num_classes: int = 0  # needed by mixup alone

    @classmethod
    def from_config(cls, config: AugmentConfig, *, height_px: int, flip: bool, num_classes: int) -> Augment:
        """The settings, with what they leave open filled in from the data set."""
        return cls(
            crop_padding_px=height_px // 8 if config.crop_padding_px is None else config.crop_padding_px,
            flip=flip if config.flip is None else config.flip,
            cutout_px=config.cutout_px,
            random_ops=config.random_ops,
            magnitude=config.magnitude,
            mixup_alpha=config.mixup_alpha,
            num_classes=num_classes,
        )

    def __call__(self, images_nhwc: Tensor, labels_n: Tensor, generator: Generator) -> tuple[Tensor, Tensor | None]:
        """A batch changed, each image in its own way, and its mixed labels (N, K) float32; None without mixup.

        images_nhwc: (N, H, W, 3) uint8, contiguous, left as they are; labels_n: int64; generator: of their device.
        """
        if self.crop_padding_px or self.flip:
            images_nhwc = self._crop_and_flip(images_nhwc, generator)
        if self.random_ops:
            images_nhwc = self._change_randomly(images_nhwc, generator)
        if self.cutout_px:
            images_nhwc = self._cut_out(images_nhwc, generator)
        if not self.mixup_alpha:
            return images_nhwc, None
        return mixup(images_nhwc, labels_n, generator, num_classes=self.num_classes, alpha=self.mixup_alpha)

    def _crop_and_flip(self, images_nhwc: Tensor, generator: Generator) -> Tensor:
        """One gather does both: each pixel of each image gets its place among all pixels of the padded batch."""
        n, height, width, channels = images_nhwc.shape
        device, pad = images_nhwc.device, self.crop_padding_px
        padded_nhwc = F.pad(images_nhwc, (0, 0, pad, pad, pad, pad))
        shift_n2 = torch.randint(0, 2 * pad + 1, (n, 2), generator=generator, device=device)
        mirrored_n1 = torch.rand(n, 1, generator=generator, device=device) < (0.5 if self.flip else 0.0)
        columns_w = torch.arange(width, device=device)
        first_n1 = torch.arange(n, device=device)[:, None] * (height + 2 * pad)
        rows_nh = first_n1 + shift_n2[:, :1] + torch.arange(height, device=device)
        columns_nw = shift_n2[:, 1:] + torch.where(mirrored_n1, columns_w.flip(0), columns_w)
        places_nhw = rows_nh[:, :, None] * (width + 2 * pad) + columns_nw[:, None, :]
        # whole pixels by one index each: on a CPU three times as fast as padded_nhwc[images, rows, columns]
        return padded_nhwc.view(-1, channels).index_select(0, places_nhw.flatten()).view(images_nhwc.shape)

    def _change_randomly(self, images_nhwc: Tensor, generator: Generator) -> Tensor:
        n, device = len(images_nhwc), images_nhwc.device
        strength = draw_strengths(n, generator, device, num_ops=self.random_ops, magnitude=self.magnitude)
        return apply_ops(images_nhwc, strength)

    def _cut_out(self, images_nhwc: Tensor, generator: Generator) -> Tensor:
        """A grey square at a random place, clipped at the borders (DeVries and Taylor 2017, arXiv 1708.04552)."""
        n, height, width, _ = images_nhwc.shape
        device, half = images_nhwc.device, self.cutout_px / 2
        centre_n2 = torch.rand(n, 2, generator=generator, device=device)
        in_rows_nh = (torch.arange(height, device=device) + 0.5 - centre_n2[:, :1] * height).abs() < half
        in_columns_nw = (torch.arange(width, device=device) + 0.5 - centre_n2[:, 1:] * width).abs() < half
        hole_nhw1 = (in_rows_nh[:, :, None] & in_columns_nw[:, None, :]).unsqueeze(-1)
        return images_nhwc.masked_fill(hole_nhw1, GREY)


def draw_strengths(
    n: int, generator: Generator, device: torch.device, *, num_ops: int, magnitude: float
) -> dict[str, Tensor]:
    """(N, 1, 1, 1) for each of RANDOM_OPS: plus or minus magnitude (0-1) where an image drew it, else 0.

    An image draws num_ops different ones (the paper: with replacement).
    """
    size = (n, len(RANDOM_OPS))
    drawn_no = torch.rand(size, generator=generator, device=device).argsort(1) < num_ops
    sign_no = torch.randint(0, 2, size, generator=generator, device=device) * 2 - 1
    strength_no = magnitude * sign_no * drawn_no
    return dict(zip(RANDOM_OPS, strength_no.T[..., None, None, None], strict=True))


def apply_ops(images_nhwc: Tensor, strength: Mapping[str, Tensor]) -> Tensor:
    """A copy of uint8 images, changed by each of RANDOM_OPS with its strength: (N, 1, 1, 1) in -1 to 1, 0 for nothing.

    All images go through all operations, because picking out those that drew one would wait for the device. So the
    order is fixed, and the paper's is random.
    """
    images_nhwc = _posterized(_solarized(images_nhwc, strength["solarize"]), strength["posterize"])
    images_nchw = _moved(images_nhwc.permute(0, 3, 1, 2), strength)
    _blend(images_nchw, 0.0, strength["brightness"])
    _blend(images_nchw, _grey(images_nchw).mean((2, 3), keepdim=True), strength["contrast"])
    _blend(images_nchw, _grey(images_nchw), strength["colour"])
    _blend(images_nchw, _smoothed(images_nchw), strength["sharpness"])
    return images_nchw.round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _solarized(images_nhwc: Tensor, strength_n111: Tensor) -> Tensor:
    """Values above a threshold inverted; it falls from 255 at strength 0 to 0 at 1 or -1."""
    threshold_n111 = (255 * (1 - strength_n111.abs())).round().to(torch.uint8)
    inverted_nhwc = (images_nhwc > threshold_n111).to(torch.uint8) * 255
    return images_nhwc ^ inverted_nhwc  # v ^ 255 is 255 - v


def _posterized(images_nhwc: Tensor, strength_n111: Tensor) -> Tensor:
    """The lowest 0 to 4 bits set to 0."""
    num_bits_n111 = (MAX_BITS * strength_n111.abs()).round().to(torch.int32)
    kept_n111 = torch.full_like(num_bits_n111, 255) >> num_bits_n111 << num_bits_n111
    return images_nhwc & kept_n111.to(torch.uint8)


def _moved(images_nchw: Tensor, strength: Mapping[str, Tensor]) -> Tensor:
    """Float images sheared, turned about their centre and shifted in one bilinear step, grey where nothing was."""
    height, width = images_nchw.shape[2:]
    x_w = torch.arange(width, device=images_nchw.device) - (width - 1) / 2
    y_h1 = torch.arange(height, device=images_nchw.device)[:, None] - (height - 1) / 2
    cos, sin = torch.cos(MAX_ANGLE * strength["rotate"]), torch.sin(MAX_ANGLE * strength["rotate"])
    sheared_x = x_w + MAX_SHEAR * strength["shear_x"] * y_h1
    sheared_y = y_h1 + MAX_SHEAR * strength["shear_y"] * x_w
    # written out and not as a matrix product, which GPUs may round to TF32: identity would then move pixels
    from_x = (cos * sheared_x - sin * sheared_y) * (2 / width) + 2 * MAX_SHIFT * strength["translate_x"]
    from_y = (sin * sheared_x + cos * sheared_y) * (2 / height) + 2 * MAX_SHIFT * strength["translate_y"]
    from_nhw2 = torch.stack((from_x, from_y), -1).squeeze(1)
    # grid_sample fills with 0, so grey has to be 0
    return F.grid_sample(images_nchw.float() - GREY, from_nhw2, align_corners=False).add_(GREY)


def _blend(images_nchw: Tensor, other: Tensor | float, strength_n111: Tensor) -> None:
    """Move images in place away from other, or toward it where strength is negative: PIL's ImageEnhance."""
    images_nchw.addcmul_(strength_n111, images_nchw - other, value=MAX_BLEND).clamp_(0, 255)


def _grey(images_nchw: Tensor) -> Tensor:
    """(N, 1, H, W) luma by ITU-R BT.601, as PIL's mode L."""
    return 0.299 * images_nchw[:, :1] + 0.587 * images_nchw[:, 1:2] + 0.114 * images_nchw[:, 2:]


def _smoothed(images_nchw: Tensor) -> Tensor:
    """PIL's SMOOTH: of 3x3 pixels the middle one counts 5 of 13; those of the border stay."""
    rows = images_nchw[:, :, :-2] + images_nchw[:, :, 1:-1] + images_nchw[:, :, 2:]
    nine = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smoothed_nchw = images_nchw.clone()
    smoothed_nchw[:, :, 1:-1, 1:-1].mul_(4).add_(nine).div_(13)
    return smoothed_nchw


def mixup(
    images_nhwc: Tensor, labels_n: Tensor, generator: Generator, *, num_classes: int, alpha: float
) -> tuple[Tensor, Tensor]:
    """Each image blended with the one before it in the batch, and both labels by their shares: (N, K) float32.

    One share a batch (Zhang et al. 2018, arXiv 1710.09412). Batches come in random order, so a neighbour is as random a
    partner as a permutation gives. labels_n remain those of the larger shares.
    """
    share_1 = larger_shares(1, alpha, generator, images_nhwc.device)
    own_nk = (labels_n[:, None] == torch.arange(num_classes, device=labels_n.device)).float()
    mixed_nhwc = torch.lerp(images_nhwc.roll(1, 0).float(), images_nhwc.float(), share_1)
    return mixed_nhwc.round_().to(torch.uint8), torch.lerp(own_nk.roll(1, 0), own_nk, share_1)


def larger_shares(n: int, alpha: float, generator: Generator, device: torch.device) -> Tensor:
    """(N,) values of max(x, 1 - x) with x from Beta(alpha, alpha), in 0.5-1.

    Two uniform numbers give Student's t with 2 alpha degrees of freedom (Bailey 1994, Math. Comp. 62, p. 779), and that
    the symmetric beta (Devroye 1996, "Random Variate Generation in One Line of Code"). It is exact and rejects nothing,
    so no number has to reach the host; torch's own beta takes no generator.
    """
    u_2n = torch.rand(2, n, generator=generator, device=device)
    ratio_n = (u_2n[0] ** (-1 / alpha) - 1) * torch.cos(2 * math.pi * u_2n[1]) ** 2  # t**2 over degrees of freedom
    return 0.5 + 0.5 * torch.rsqrt(1 + 1 / ratio_n)
