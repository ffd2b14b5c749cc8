"""What predictions are worth: sums kept on the device, confusion, calibration, confidence intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

ECE_BINS = 15


@dataclass(frozen=True)
class Means:
    """Mean loss and accuracy (0-1) over num_images."""

    loss: float
    accuracy: float
    num_images: int


class MetricSums:
    """Sums of loss, hits and images that stay on the device until means() asks: the only sync."""

    def __init__(self, device: torch.device) -> None:
        self.sums_3 = torch.zeros(3, dtype=torch.float32, device=device)

    def add(self, logits_nk: Tensor, labels_n: Tensor, loss: Tensor | None = None) -> None:
        """Count a batch. loss is its mean loss; cross entropy without smoothing where it is left out."""
        logits_nk = logits_nk.detach().float()
        n = len(labels_n)
        total = F.cross_entropy(logits_nk, labels_n, reduction="sum") if loss is None else loss.detach().float() * n
        hits = (logits_nk.argmax(1) == labels_n).sum()
        self.sums_3 += torch.stack([total, hits.float(), torch.full_like(total, float(n))])

    def merge(self, others: MetricSums) -> None:
        """Count what others counted."""
        self.sums_3 += others.sums_3

    def means(self, *, over_ranks: bool = False) -> Means:
        """The means so far, weighted by images (docs/faults.md, 14).

        over_ranks sums over all processes and is a barrier.
        """
        sums_3 = self.sums_3.clone()
        if over_ranks and dist.is_initialized():
            dist.all_reduce(sums_3)
        loss, hits, n = sums_3.tolist()
        return Means(loss / max(n, 1), hits / max(n, 1), int(n))


@dataclass(frozen=True)
class Interval:
    """A fraction (0-1) with the bounds of its 95 % confidence interval."""

    value: float
    low: float
    high: float


def wilson_interval(hits: int, n: int, z: float = 1.959964) -> Interval:
    """The 95 % Wilson score interval of hits of n (Wilson 1927); honest near 0 and 1, unlike the normal one."""
    if n == 0:
        return Interval(0.0, 0.0, 1.0)
    p = hits / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * float(np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)))
    return Interval(p, max(0.0, centre - half), min(1.0, centre + half))


@dataclass(frozen=True)
class CalibrationBin:
    """Predictions of like confidence: how sure they were and how often they were right (0-1)."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class ClassScore:
    """Precision, recall and F1 (0-1) of one class with support images."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Scores:
    """All that evaluate reports about one set of predictions."""

    accuracy: Interval
    loss: float
    ece: float
    num_images: int
    classes: tuple[ClassScore, ...]
    confusion: NDArray[np.int64]  # (K, K): row true, column predicted
    calibration: tuple[CalibrationBin, ...]


def score(probabilities_nk: NDArray[np.float32], labels_n: NDArray[np.int64], names: tuple[str, ...]) -> Scores:
    """The Scores of (N, K) probabilities against (N,) labels; names are the K classes."""
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support  # 1 s that training has no use for

    predicted_n = probabilities_nk.argmax(1)
    hits_n = predicted_n == labels_n
    of_truth_n = probabilities_nk[np.arange(len(labels_n)), labels_n].astype(np.float64)
    every_class = np.arange(len(names))
    precision, recall, f1, support = precision_recall_fscore_support(
        labels_n, predicted_n, labels=every_class, zero_division=0.0
    )
    bins = calibration_bins(probabilities_nk.max(1), hits_n)
    return Scores(
        accuracy=wilson_interval(int(hits_n.sum()), len(labels_n)),
        loss=float(-np.log(np.clip(of_truth_n, 1e-12, None)).mean()),
        ece=sum(b.count * abs(b.accuracy - b.confidence) for b in bins) / len(labels_n),
        num_images=len(labels_n),
        classes=tuple(
            ClassScore(name, float(precision[k]), float(recall[k]), float(f1[k]), int(support[k]))
            for k, name in enumerate(names)
        ),
        confusion=confusion_matrix(labels_n, predicted_n, labels=every_class).astype(np.int64),
        calibration=bins,
    )


def calibration_bins(confidence_n: NDArray[np.float32], hits_n: NDArray[np.bool_]) -> tuple[CalibrationBin, ...]:
    """The ECE_BINS bins of equal width behind the expected calibration error (Guo et al. 2017, arXiv 1706.04599)."""
    bin_n = np.minimum((confidence_n * ECE_BINS).astype(int), ECE_BINS - 1)
    bins = []
    for at in range(ECE_BINS):
        inside = bin_n == at
        count = int(inside.sum())
        confidence = float(confidence_n[inside].mean()) if count else 0.0
        accuracy = float(hits_n[inside].mean()) if count else 0.0
        bins.append(CalibrationBin(at / ECE_BINS, (at + 1) / ECE_BINS, count, confidence, accuracy))
    return tuple(bins)
