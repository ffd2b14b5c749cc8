"""Pictures of training and evaluation, as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rayapp.vision.fonts import labels_of

if TYPE_CHECKING:  # evaluate draws without what training needs: torchvision takes 1.3 s to import
    from rayapp.vision.loop import EpochReport
    from rayapp.vision.metrics import Scores

BLUE, ORANGE, GREY = "#2b6cb0", "#dd6b20", "#a0aec0"
MAX_NAMED = 30  # more class names than this cannot be read on an axis
MAX_NUMBERED = 12  # more cells a side than this cannot hold numbers


def plot_curves(epochs: Sequence[EpochReport], path: Path) -> None:
    """Loss and accuracy by epoch, training and validation; the best epoch is marked."""
    figure, (left, right) = new_figure(10, 4, columns=2)
    x = [e.epoch for e in epochs]
    left.plot(x, [e.train_loss for e in epochs], color=GREY, label="training (smoothed labels)")
    left.plot(x, [e.val_loss for e in epochs], color=BLUE, label="validation")
    left.set(xlabel="epoch", ylabel="loss (nats)")
    right.plot(x, [e.train_accuracy for e in epochs], color=GREY, label="training (augmented)")
    right.plot(x, [e.val_accuracy for e in epochs], color=BLUE, label="validation")
    best = [e for e in epochs if e.is_best][-1]
    label = f"best: {best.val_accuracy:.4f} in epoch {best.epoch}"
    right.scatter([best.epoch], [best.val_accuracy], color=ORANGE, zorder=3, label=label)
    right.set(xlabel="epoch", ylabel="accuracy (0-1)")
    for axes in (left, right):
        axes.legend(frameon=False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    save_figure(figure, path)


def plot_confusion(scores: Scores, path: Path) -> None:
    """The confusion matrix as shares of each true class."""
    names = labels_of([c.name for c in scores.classes])
    share_kk = scores.confusion / np.maximum(scores.confusion.sum(1, keepdims=True), 1)
    figure, (axes,) = new_figure(7, 6)
    image = axes.imshow(share_kk, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class (0-1)")
    axes.set(xlabel="predicted", ylabel="true", title=f"{scores.num_images:,} images")
    if names.note:
        figure.supxlabel(names.note, fontsize=8)
    axes.spines[:].set_visible(True)
    places = range(len(names.texts))
    if len(places) <= MAX_NAMED:
        axes.set_xticks(places, names.texts, rotation=60, ha="right", rotation_mode="anchor", **names.style)
        axes.set_yticks(places, names.texts, **names.style)
    if len(places) <= MAX_NUMBERED:
        for (row, column), count in np.ndenumerate(scores.confusion):
            if count:
                shade = "white" if share_kk[row, column] > 0.5 else "#2d3748"
                axes.text(column, row, str(count), ha="center", va="center", color=shade, fontsize=8)
    save_figure(figure, path)


def plot_calibration(scores: Scores, path: Path) -> None:
    """Accuracy against confidence (a reliability diagram), and how many predictions stand behind each bar."""
    figure, (left, right) = new_figure(10, 4, columns=2)
    filled = [b for b in scores.calibration if b.count]
    middles, width = [(b.low + b.high) / 2 for b in filled], scores.calibration[0].high
    left.bar(middles, [b.accuracy for b in filled], width=width, color=BLUE, edgecolor="white")
    left.plot([0, 1], [0, 1], color=ORANGE, linestyle="--", label="as sure as right")
    left.set(xlabel="confidence (0-1)", ylabel="accuracy (0-1)", xlim=(0, 1), ylim=(0, 1))
    left.set_title(f"expected calibration error {scores.ece:.4f}")
    left.legend(frameon=False)
    right.bar(middles, [b.count for b in filled], width=width, color=GREY, edgecolor="white")
    right.set(xlabel="confidence (0-1)", ylabel="predictions", xlim=(0, 1))
    save_figure(figure, path)


def plot_classes(scores: Scores, path: Path) -> None:
    """Precision and recall of each class, the lowest F1 first (at most MAX_NAMED classes)."""
    names = labels_of([c.name for c in scores.classes])
    texts = dict(zip(scores.classes, names.texts, strict=True))
    worst = sorted(scores.classes, key=lambda c: c.f1)[:MAX_NAMED]
    figure, (axes,) = new_figure(7, 1.2 + 0.35 * len(worst))
    y = np.arange(len(worst))
    axes.barh(y - 0.2, [c.precision for c in worst], height=0.38, color=BLUE, label="precision")
    axes.barh(y + 0.2, [c.recall for c in worst], height=0.38, color=GREY, label="recall")
    axes.set_yticks(y, [texts[c] for c in worst], **names.style)
    if names.note:
        figure.supxlabel(names.note, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="0-1", title="classes, lowest F1 first")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    save_figure(figure, path)


def new_figure(width: float, height: float, *, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure without pyplot: no global state, so that any thread may draw."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
    all_axes = [figure.add_subplot(1, columns, at + 1) for at in range(columns)]
    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, all_axes


def save_figure(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path)
