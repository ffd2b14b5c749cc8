"""Floating-point operations: what a model needs, what a GPU can do, and the share of it that a training uses."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

# Peak rates (operations a second) of dense matrix products, from NVIDIA's data sheets: T4 (2019), A10G (for AWS),
# L4 (2023), A100 (2021), H100 (2023), H200 (2024). Where a sheet counts with sparsity, half of it. float32 is TF32, in
# which cuDNN convolves unless told otherwise; the T4 has neither TF32 nor bfloat16. The A10G is not the A10, whose
# tensor cores are almost twice as fast.
_A100 = {torch.float16: 312e12, torch.bfloat16: 312e12, torch.float32: 156e12}
_H100_SXM = {torch.float16: 989.5e12, torch.bfloat16: 989.5e12, torch.float32: 494.5e12}
_PEAKS = {  # by torch.cuda.get_device_name(), without NVIDIA or Tesla before it
    "T4": {torch.float16: 65e12, torch.float32: 8.1e12},
    "A10G": {torch.float16: 70e12, torch.bfloat16: 70e12, torch.float32: 35e12},
    "L4": {torch.float16: 121e12, torch.bfloat16: 121e12, torch.float32: 60e12},
    "A100-SXM4-40GB": _A100,
    "A100-SXM4-80GB": _A100,
    "A100-PCIE-40GB": _A100,
    "A100 80GB PCIe": _A100,
    "H100 80GB HBM3": _H100_SXM,
    "H100 PCIe": {torch.float16: 756.5e12, torch.bfloat16: 756.5e12, torch.float32: 378e12},
    "H200": _H100_SXM,
}


def flops_per_image(model: nn.Module, image_px: int) -> int:
    """Operations of a forward pass of one uint8 image of image_px by image_px, a multiply-add as two.

    Counted are convolutions and matrix products, on a copy of model without data: model itself stays as it is.
    """
    blank = copy.deepcopy(model).to("meta").eval()
    image_nhwc = torch.empty(1, image_px, image_px, 3, dtype=torch.uint8, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        blank(image_nhwc)
    return int(counter.get_total_flops())


def peak_flops(device_name: str, precision: torch.dtype) -> float | None:
    """Operations a second that a GPU can do at most; None where the table has no such GPU (as CPUs) or precision.

    device_name: as torch.cuda.get_device_name() says; a part of a GPU (MIG) has a name of its own, and so none.
    """
    name = device_name.removeprefix("NVIDIA ").removeprefix("Tesla ")
    return _PEAKS.get(name, {}).get(precision)


def mfu(flops: int, images_per_s: float, *, num_gpus: int, peak: float) -> float:
    """Model FLOPs utilisation (0-1): the share of num_gpus times peak that training uses, of flops an image forward.

    The backward pass counts twice the forward one (Kaplan et al. 2020, arXiv 2001.08361, section 2.1); with a frozen
    backbone it does less, and this is too much.
    """
    return 3 * flops * images_per_s / (num_gpus * peak)
