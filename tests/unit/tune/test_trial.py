"""What a trial reports survives its way through Ray Tune."""

from __future__ import annotations

import math

from rayapp.tune.trial import WORST, TrialReport


def test_a_report_comes_back_as_it_was_from_what_ray_tune_makes_of_it() -> None:
    steps = [{"step": 5.0, "loss": 0.5, "time_ms": 1.7e12}]
    report = TrialReport(2, 9, False, 0.75, 0.5, 0.7499, 3.5, 1.25, "", steps, {"train_loss": 0.25})

    result = report.as_dict() | {"training_iteration": 2, "pid": 1, "config": {"optim.lr": 0.1}}

    assert TrialReport.from_dict(result) == report
    assert result["done"] is False


def test_a_breakdown_ends_the_trial_with_figures_that_all_searchers_take() -> None:
    """It had no latency, which a search for two aims could not do without: the whole sweep ended with the trial."""
    result = TrialReport.of_breakdown("the loss is nan", 0.5).as_dict()

    assert result["done"]
    assert result["error"] == "the loss is nan"
    assert all(math.isfinite(result[name]) for name in WORST)
