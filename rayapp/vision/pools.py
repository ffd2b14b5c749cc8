"""PoolAll: a layer that ONNX Runtime has a fast kernel for."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class PoolAll(nn.Module):
    """What AdaptiveAvgPool2d(1) does, as a pooling over the whole map."""

    def forward(self, features_nchw: Tensor) -> Tensor:
        """(N, C, 1, 1) means of (N, C, H, W)."""
        return F.avg_pool2d(features_nchw, features_nchw.shape[2:])
