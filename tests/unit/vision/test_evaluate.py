from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rayapp.config.train import DataConfig
from rayapp.data.datasets import load
from rayapp.errors import DataError
from rayapp.vision.bundle import Bundle
from rayapp.vision.evaluate import dataset_of, evaluate_bundle, predict_all
from rayapp.vision.predictor import Predictor
from tests.support.bundles import digits_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """An untrained model of the digits that knows its data set."""
    data = load(DataConfig(), tmp_path_factory.mktemp("data"))
    return digits_bundle(tmp_path_factory.mktemp("digits"), data.info)


def test_the_report_counts_every_test_image_once_and_agrees_with_its_confusion(bundle: Bundle, tmp_path: Path) -> None:
    report = evaluate_bundle(Predictor.load(bundle, device="cpu"), dataset_of(bundle, tmp_path), split="test")
    scores = report.scores
    assert scores.num_images == scores.confusion.sum() == 360
    assert scores.accuracy.value == pytest.approx(np.trace(scores.confusion) / 360)
    assert scores.accuracy.low < scores.accuracy.value < scores.accuracy.high or scores.accuracy.value in (0.0, 1.0)


def test_the_batch_size_does_not_change_the_answer(bundle: Bundle, tmp_path: Path) -> None:
    predictor, images = Predictor.load(bundle, device="cpu"), dataset_of(bundle, tmp_path).test
    one, many = (predict_all(predictor, images, batch_size=n) for n in (7, 360))
    assert np.abs(one - many).max() < 1e-5


def test_F18_a_data_set_that_is_not_the_models_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    other = bundle.manifest.model_copy(update={"data_digest": "sha256:other"})
    with pytest.raises(DataError, match="but the model was trained on sha256:other; give the folder"):
        dataset_of(Bundle(bundle.folder, other, bundle.digest), tmp_path)


def test_F19_files_are_written_to_a_folder_of_their_own_and_pictures_are_pictures(
    bundle: Bundle, tmp_path: Path
) -> None:
    report = evaluate_bundle(Predictor.load(bundle, device="cpu"), dataset_of(bundle, tmp_path), split="validation")
    report.write(tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "report.json",
        "confusion.png",
        "calibration.png",
        "classes.png",
    }
    for picture in (tmp_path / "out").glob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    assert content["accuracy"]["value"] == report.scores.accuracy.value
    assert content["bundle_digest"] == bundle.digest
    assert len(content["classes"]) == 10
