"""evaluate: measures a registered model on its own data set and writes the report to the model version."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayapp.config.commands import EvaluateSettings
from rayapp.config.env import Home
from rayapp.registry.models import ModelVersion, Registry
from rayapp.registry.tracking import Tracker
from rayapp.vision.bundle import Bundle
from rayapp.vision.evaluate import Report, dataset_of, evaluate_bundle
from rayapp.vision.predictor import Predictor

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """A report, the version it is about and the folder it was written to."""

    version: ModelVersion
    report: Report
    folder: Path

    def to_dict(self) -> dict[str, Any]:
        """The fields that scripts rely on; accuracies are 0-1."""
        scores, split = self.report.scores, self.report.split
        return {
            "model_uri": self.version.uri,
            "model_version": self.version.version,
            f"{split}_accuracy": scores.accuracy.value,
            f"{split}_accuracy_low": scores.accuracy.low,
            f"{split}_accuracy_high": scores.accuracy.high,
            f"{split}_loss": scores.loss,
            "expected_calibration_error": scores.ece,
            "n": scores.num_images,
            "split": split,
            "report": str(self.folder),
        }


def evaluate_version(settings: EvaluateSettings, home: Home) -> Evaluation:
    """The Evaluation of settings.model on a split of the data set its bundle names.

    Opening the test split is recorded on the version. Raises RegistryError, BundleError or DataError.
    """
    registry = Registry(home.tracking_uri)
    version = registry.resolve(settings.model)
    bundle = registry.download(version, home.bundles)
    predictor = Predictor.load(bundle, num_threads=1)
    log.info("evaluating %s on the %s split of %s", version.uri, settings.split, bundle.manifest.data.dataset)
    dataset = dataset_of(bundle, home.data, path=settings.data_path)
    report = evaluate_bundle(predictor, dataset, split=settings.split, batch_size=settings.batch_size)
    folder = settings.output or home.folder / "evaluations" / f"{bundle.digest[7:19]}-{settings.split}"
    report.write(folder)
    _record(registry, Tracker(home.tracking_uri, home.artifacts), version, bundle, report, folder)
    return Evaluation(version, report, folder)


def _record(
    registry: Registry, tracker: Tracker, version: ModelVersion, bundle: Bundle, report: Report, folder: Path
) -> None:
    """Files and table go to the run, figures to the version: never into the run's metrics, where a search by metric

    would select on the test split (docs/faults.md, 23).
    """
    scores, split = report.scores, report.split
    place = f"evaluation/{split}-{bundle.digest[7:19]}"
    tracker.log_artifacts(version.run_id, folder, place)
    columns = ("name", "precision", "recall", "f1", "support")
    table = {column: [getattr(c, column) for c in scores.classes] for column in columns}
    tracker.log_table(version.run_id, table, f"{place}/classes_table.json")
    if version.version is None:
        return
    opened = int(version.tags.get(f"{split}_opened", "0")) + 1
    if split == "test" and opened > 1:
        log.warning("the test split is opened for %s for the %d. time; choose on validation", version.uri, opened)
    registry.tag(
        version,
        {
            f"{split}_accuracy": repr(scores.accuracy.value),
            f"{split}_accuracy_low": repr(scores.accuracy.low),
            f"{split}_accuracy_high": repr(scores.accuracy.high),
            f"{split}_loss": repr(scores.loss),
            f"{split}_ece": repr(scores.ece),
            f"{split}_n": str(scores.num_images),
            f"{split}_opened": str(opened),
            "data_digest": report.data_digest,
            "bundle_digest": report.bundle_digest,
        },
    )
