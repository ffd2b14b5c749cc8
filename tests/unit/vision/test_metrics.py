from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rayapp.vision.metrics import MetricSums, calibration_bins, score, wilson_interval


def test_F14_means_weigh_images_not_batches() -> None:
    torch.manual_seed(0)
    logits_nk, labels_n = torch.randn(10, 3), torch.randint(0, 3, (10,))
    sums = MetricSums(torch.device("cpu"))
    sums.add(logits_nk[:8], labels_n[:8])
    sums.add(logits_nk[8:], labels_n[8:])
    means = sums.means()
    assert means.loss == pytest.approx(F.cross_entropy(logits_nk, labels_n).item(), rel=1e-6)
    assert means.accuracy == pytest.approx((logits_nk.argmax(1) == labels_n).float().mean().item())
    assert means.num_images == 10


def test_wilson_interval_matches_published_values() -> None:
    # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3: 81 of 263, 0 of 20, 1 of 29
    assert wilson_interval(81, 263).low == pytest.approx(0.2553, abs=1e-4)
    assert wilson_interval(81, 263).high == pytest.approx(0.3662, abs=1e-4)
    assert wilson_interval(0, 20).high == pytest.approx(0.1611, abs=1e-4)
    assert wilson_interval(1, 29).low == pytest.approx(0.0061, abs=1e-4)


def test_confusion_has_the_truth_in_rows_and_the_prediction_in_columns() -> None:
    probabilities_nk = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]], np.float32)
    scores = score(probabilities_nk, np.array([0, 1, 1]), ("cat", "dog"))
    assert scores.confusion.tolist() == [[1, 0], [1, 1]]
    dog = scores.classes[1]
    assert (dog.precision, dog.recall, dog.support) == (1.0, 0.5, 2)
    assert scores.accuracy.value == pytest.approx(2 / 3)
    assert scores.loss == pytest.approx(-np.mean(np.log([0.9, 0.2, 0.7])), rel=1e-5)


def test_a_class_that_is_never_predicted_scores_zero_not_nan() -> None:
    scores = score(np.array([[1.0, 0, 0], [1, 0, 0]], np.float32), np.array([0, 1]), ("a", "b", "c"))
    assert [c.f1 for c in scores.classes[1:]] == [0.0, 0.0]


def test_calibration_error_of_an_overconfident_model() -> None:
    probabilities_nk = np.tile(np.array([[0.9, 0.1]], np.float32), (100, 1))
    labels_n = np.array([0] * 60 + [1] * 40)
    assert score(probabilities_nk, labels_n, ("a", "b")).ece == pytest.approx(0.3, abs=1e-6)


def test_every_prediction_is_in_one_bin_even_at_confidence_one() -> None:
    bins = calibration_bins(np.array([0.0, 0.5, 1.0], np.float32), np.array([True, False, True]))
    assert sum(b.count for b in bins) == 3
    assert bins[-1].count == 1
