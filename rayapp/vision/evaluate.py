"""A bundle and a split of its own data set -> a report: JSON and pictures."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rayapp.config.train import DataConfig
from rayapp.data.datasets import Dataset, load
from rayapp.data.preprocess import Images
from rayapp.errors import DataError
from rayapp.vision.bundle import Bundle
from rayapp.vision.metrics import Scores, score
from rayapp.vision.plots import plot_calibration, plot_classes, plot_confusion
from rayapp.vision.predictor import Float32Array, Predictor

SplitName = Literal["test", "validation"]


@dataclass(frozen=True)
class Report:
    """The scores of one bundle on one split, with the conditions they hold under."""

    scores: Scores
    split: SplitName
    bundle_digest: str
    data_digest: str
    dataset: str
    device: str

    def to_dict(self) -> dict[str, Any]:
        """All numbers of the report; fractions are 0-1, losses in nats."""
        scores = self.scores
        return {
            "split": self.split,
            "dataset": self.dataset,
            "num_images": scores.num_images,
            "accuracy": asdict(scores.accuracy) | {"interval": "95 % Wilson"},
            "loss": scores.loss,
            "expected_calibration_error": scores.ece,
            "calibration": [asdict(b) for b in scores.calibration],
            "classes": [asdict(c) for c in scores.classes],
            "confusion": scores.confusion.tolist(),
            "bundle_digest": self.bundle_digest,
            "data_digest": self.data_digest,
            "device": self.device,
            "machine": platform.machine(),
        }

    def write(self, folder: Path) -> None:
        """Write report.json, confusion.png, calibration.png and classes.png to an own folder (docs/faults.md, 19)."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        plot_confusion(self.scores, folder / "confusion.png")
        plot_calibration(self.scores, folder / "calibration.png")
        plot_classes(self.scores, folder / "classes.png")


def evaluate_bundle(predictor: Predictor, dataset: Dataset, *, split: SplitName, batch_size: int = 256) -> Report:
    """The report of a predictor on the test or validation split of its bundle's data set (see dataset_of)."""
    manifest = predictor.bundle.manifest
    images = dataset.test if split == "test" else dataset.validation(manifest.data)
    probabilities_nk = predict_all(predictor, images, batch_size=batch_size)
    return Report(
        scores=score(probabilities_nk, np.asarray(images.labels_n), manifest.class_names),
        split=split,
        bundle_digest=predictor.bundle.digest,
        data_digest=manifest.data_digest,
        dataset=manifest.data.dataset,
        device=predictor.device,
    )


def dataset_of(bundle: Bundle, data_folder: Path, *, path: str | None = None) -> Dataset:
    """The data set that the bundle was trained on: its own settings, not today's (docs/faults.md, 18).

    path says where it lies now, if it has moved. Raises DataError where it is not there or its digest has changed.
    """
    manifest = bundle.manifest
    config = manifest.data if path is None else DataConfig(**(manifest.data.model_dump() | {"path": path}))
    dataset = load(config, data_folder)
    if dataset.info.digest != manifest.data_digest:
        raise DataError(
            f"data set '{config.dataset}' at {config.path or data_folder} has the digest {dataset.info.digest}, but the"
            f" model was trained on {manifest.data_digest}; give the folder of those images with --data_path"
        )
    return dataset


def predict_all(predictor: Predictor, images: Images, *, batch_size: int) -> Float32Array:
    """(N, K) float32 probabilities of all images, batch_size at a time."""
    n = len(images.labels_n)
    parts = [predictor.predict(images.images_nhwc[at : at + batch_size]) for at in range(0, n, batch_size)]
    return np.concatenate(parts)
