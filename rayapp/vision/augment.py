"""Crops, flips and cutout of whole uint8 batches as tensor operations, for training only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from rayapp.config import AugmentConfig

GREY = 128


@dataclass(frozen=True)
class Augment:
    """Random changes of a batch that keep its size; a data set says through flip whether mirror images are its kind."""

    crop_padding_px: int
    flip: bool
    cutout_px: int

    @classmethod
    def from_config(cls, config: AugmentConfig, *, height_px: int, flip: bool) -> Augment:
        """The settings, with what they leave open filled in from the data set."""
        padding = height_px // 8 if config.crop_padding_px is None else config.crop_padding_px
        return cls(padding, flip if config.flip is None else config.flip, config.cutout_px)

    def __call__(self, images_nhwc: Tensor, generator: Generator) -> Tensor:
        """A changed copy of (N, H, W, 3) uint8 images, each image in its own way. generator lives on the CPU."""
        out = self._shift_and_flip(images_nhwc, generator)
        return self._cut_out(out, generator) if self.cutout_px else out

    def _shift_and_flip(self, images_nhwc: Tensor, generator: Generator) -> Tensor:
        """One gather does both: each image gets a row index and a column index into its padded self."""
        n, height, width, _ = images_nhwc.shape
        pad = self.crop_padding_px
        padded = F.pad(images_nhwc, (0, 0, pad, pad, pad, pad))
        shift_n2 = torch.randint(0, 2 * pad + 1, (n, 2), generator=generator)
        mirrored_n1 = torch.rand(n, 1, generator=generator) < (0.5 if self.flip else 0.0)
        rows_nh = shift_n2[:, :1] + torch.arange(height)
        columns_nw = shift_n2[:, 1:] + torch.arange(width)
        columns_nw = torch.where(mirrored_n1, columns_nw.flip(1), columns_nw)
        device = images_nhwc.device
        rows_nh, columns_nw = rows_nh.to(device, non_blocking=True), columns_nw.to(device, non_blocking=True)
        return padded[torch.arange(n, device=device)[:, None, None], rows_nh[:, :, None], columns_nw[:, None, :]]

    def _cut_out(self, images_nhwc: Tensor, generator: Generator) -> Tensor:
        """A grey square at a random place, clipped at the borders (DeVries and Taylor 2017, arXiv 1708.04552)."""
        n, height, width, _ = images_nhwc.shape
        centre_n1 = torch.rand(n, 2, generator=generator) * torch.tensor([height, width])
        half = self.cutout_px / 2
        in_rows_nh = (torch.arange(height) + 0.5 - centre_n1[:, :1]).abs() < half
        in_columns_nw = (torch.arange(width) + 0.5 - centre_n1[:, 1:]).abs() < half
        hole_nhw1 = (in_rows_nh[:, :, None] & in_columns_nw[:, None, :]).unsqueeze(-1)
        return images_nhwc.masked_fill(hole_nhw1.to(images_nhwc.device, non_blocking=True), GREY)
