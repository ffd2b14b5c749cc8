"""The benchmark of tuning: its figures, the commands it runs, and that its peer searches the same space as ours."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from benchmarks import training, tuning
from benchmarks import tuning_report as report
from benchmarks.peers import optuna_loop
from benchmarks.tuning_report import Finding, Measured
from rayapp.config.parse import load
from rayapp.config.sweep import Dimension
from rayapp.config.tune import TuneSettings
from rayapp.errors import TrainingError
from rayapp.registry.tracking import Tracker

NUM_IMAGES = 120

# 10 trials of 9 epochs, two at once, that ran 30 epochs of 5 s
SWEEP = Measured(
    "any", seed=0, at_once=2, trials=10, failed=0, epochs=30, full_epochs=90, best=0.50, fit_s=150.0,
    search_s=79.0, command_s=90.0, others_cpu=0.0, recorded=10,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.parquet and test.parquet of 120 images each in Hugging Face's layout: noise whose mean is its class."""
    made, rng = tmp_path_factory.mktemp("cifar10"), np.random.default_rng(0)
    for part in ("train", "test"):
        rows = [{"image": {"bytes": _png(rng, n % 10), "path": None}, "label": n % 10} for n in range(NUM_IMAGES)]
        pq.write_table(pa.Table.from_pylist(rows), made / f"{part}.parquet")
    return made


def _png(rng: np.random.Generator, label: int) -> bytes:
    buffer = io.BytesIO()
    pixels = rng.integers(20 * label, 20 * label + 60, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def bench_of(folder: Path, *words: str) -> tuning.Bench:
    """As the command line with these words makes it, with folder for its files."""
    options = tuning._options().parse_args(["--data", "any", *words])
    return tuning.Bench(options, folder, Console())


# --- figures ----------------------------------------------------------------------------------------------------------


def test_the_overhead_of_a_trial_is_what_its_core_did_beside_fit():
    assert SWEEP.overhead_s(SWEEP.search_s) == pytest.approx((2 * 79 - 150) / 10)
    assert SWEEP.overhead_s(SWEEP.command_s) == pytest.approx(3.0)
    assert SWEEP.rate(SWEEP.command_s) == pytest.approx(10 / 1.5)


def _verdicts(asha: Measured, random: Measured) -> dict[str, bool | None]:
    return {finding.what.split(",")[0]: finding.met for finding in report.search_findings(asha, random)}


def test_a_search_is_judged_by_what_stopping_saved_and_lost():
    good = replace(SWEEP, command_s=79.5)
    bad = replace(good, epochs=37, best=0.4949, recorded=9, search_s=90.0)

    assert set(_verdicts(good, replace(SWEEP, best=0.5049)).values()) == {True}
    assert [f.met for f in report.search_findings(bad, SWEEP)] == [False, False, True, False, False]


def test_epochs_are_a_part_of_those_of_all_trials_in_full():
    _, part, *_ = report.search_findings(replace(SWEEP, epochs=36), SWEEP)

    assert (part.value, part.met) == (0.4, True)


def test_rates_are_compared_pair_by_pair_with_and_without_the_start():
    pairs = []
    for slow in (1.0, 3.0, 1.0):  # the second pair met a slow minute of the machine
        theirs = replace(SWEEP, search_s=80 * slow, command_s=81 * slow, fit_s=150 * slow)
        pairs.append((replace(SWEEP, search_s=64 * slow, command_s=90 * slow, fit_s=120 * slow), theirs))

    whole, alone, epochs, epoch_s, _ = report.optuna_findings(pairs)

    assert (whole.value, whole.met) == (pytest.approx(0.9), False)
    assert (alone.value, alone.met) == (pytest.approx(1.25), True)
    assert (epochs.value, epochs.met) == (1.0, None)
    assert (epoch_s.value, epoch_s.met) == (pytest.approx(0.8), None)


def test_paired_differences_have_a_mean_and_its_standard_error():
    mean, error = report.paired([0.01, 0.03, -0.01, 0.01])

    assert mean == pytest.approx(0.01)
    assert error == pytest.approx(0.01633 / 2, abs=1e-5)
    assert report.paired([0.02]) == (0.02, None)


@pytest.mark.parametrize(
    ("differences", "met"),
    [([-0.01, 0.03, -0.03], True), ([-0.02, -0.03, -0.01], False), ([0.0, 0.0, 0.0], True), ([-0.02], None)],
)
def test_the_best_may_be_worse_by_one_standard_error(differences: list[float], met: bool | None):
    pairs = [(replace(SWEEP, best=0.5 + d), SWEEP) for d in differences]

    *_, best = report.optuna_findings(pairs)

    assert best.met is met


def test_the_json_says_whether_all_targets_are_met_and_the_machine_was_calm():
    told = Finding("told", 0.1, "0.1")
    found = [told, Finding("met", 2.0, "2.0", 1.0)]
    disturbed = replace(SWEEP, others_cpu=0.3)

    good, bad = (
        report.as_json([SWEEP], found),
        report.as_json([SWEEP, disturbed], [*found, Finding("missed", 2.0, "2.0", 1.0, at_most=True)]),
    )

    assert [(f["met"], f["calm"]) for f in (good, bad)] == [(True, True), (False, False)]
    assert [t["met"] for t in bad["targets"]] == [None, True, False]
    assert "DISTURBED: other programs used 30% of the machine" in report.line(disturbed)


def test_tables_hold_every_contestant_and_target():
    console = Console(width=200, record=True, file=io.StringIO())

    report.show(console, [SWEEP, replace(SWEEP, name="other", best=0.6)], report.search_findings(SWEEP, SWEEP))

    shown = console.export_text()
    assert "0.5000 (0.5000-0.5000)" in shown
    assert "0.6000" in shown
    assert shown.count("met") == 4
    assert shown.count("MISSED") == 1


# --- commands ---------------------------------------------------------------------------------------------------------


def _settings(words: list[str]) -> TuneSettings:
    assert words[1:4] == ["-m", "rayapp.cli", "tune"]
    return load(TuneSettings, words[4:], prog="rayapp tune")


@pytest.mark.parametrize("algorithm", ["hyperopt", "optuna"])
def test_our_sweep_is_what_rayapp_accepts(algorithm: str, tmp_path: Path):
    bench = bench_of(tmp_path, "--epochs", "7", "--at-once", "3")

    settings = _settings(tuning.tune_words(bench, "any-0", 12, 4, tuning._asha(algorithm)))

    assert (settings.search.algorithm, settings.scheduler.name) == (algorithm, "asha")
    assert (settings.scheduler.reduction_factor, settings.scheduler.grace_epochs) == (3, 1)
    assert (settings.num_trials, settings.trials.at_once) == (12, 3)
    assert (settings.optim.epochs, settings.optim.batch_size) == (7, 128)
    assert (settings.seed, settings.search.seed) == (4, 4)
    assert (settings.data.path, settings.compute.device) == (str(tmp_path / "data"), "cpu")
    assert settings.space == {name: Dimension(**dimension) for name, dimension in tuning.SPACE.items()}


def test_few_trials_take_fewer_processes(tmp_path: Path):
    bench = bench_of(tmp_path, "--at-once", "8")

    ours = _settings(tuning.tune_words(bench, "any", 3, 0, []))
    theirs = optuna_loop.command_line().parse_args(tuning.loop_words(bench, 3, 0)[2:])

    assert (ours.trials.at_once, theirs.processes) == (3, 3)


def test_the_peer_gets_the_same_recipe(tmp_path: Path):
    bench = bench_of(tmp_path, "--epochs", "5", "--batch-size", "64", "--model", "resnet9", "--at-once", "2")
    ours = _settings(tuning.tune_words(bench, "any", 20, 3, tuning._asha("optuna")))

    theirs = optuna_loop.command_line().parse_args(tuning.loop_words(bench, 20, 3)[2:])

    assert (str(theirs.data), theirs.model) == (ours.data.path, ours.model.name)
    assert (theirs.epochs, theirs.batch_size) == (ours.optim.epochs, ours.optim.batch_size)
    assert (theirs.trials, theirs.processes, theirs.seed) == (ours.num_trials, ours.trials.at_once, ours.seed)


def test_each_part_has_its_number_of_trials(tmp_path: Path):
    usual, given = bench_of(tmp_path), bench_of(tmp_path, "--trials", "6")

    assert [usual.trials(part) for part in (tuning.SEARCH, tuning.OPTUNA)] == [100, 20]
    assert [given.trials(part) for part in (tuning.SEARCH, tuning.OPTUNA)] == [6, 6]


@pytest.mark.parametrize("word", ["0", "-2", "1.5", "many"])
def test_a_number_of_nothing_is_refused(word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        bench_of(tmp_path, f"--seeds={word}")

    assert f"'{word}' is not a number of things; give 1 or more" in capsys.readouterr().err


def test_a_folder_without_data_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert tuning.main(["--data", str(tmp_path)]) == 1
    assert "train.parquet is not there; give --data" in capsys.readouterr().err


def test_runs_in_mlflow_count_once_they_ended(tmp_path: Path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracker = Tracker(uri)
    sweep, other = (tracker.open_run("any", name, {}, {}) for name in ("sweep", "other"))
    for parent, status in ((sweep, "FINISHED"), (sweep, "KILLED"), (sweep, None), (other, "FINISHED")):
        run_id = tracker.open_run("any", "trial", {}, {"mlflow.parentRunId": parent})
        if status:
            tracker.close_run(run_id, status)

    assert tuning.ended_runs(uri, sweep) == 2


# --- the peer ---------------------------------------------------------------------------------------------------------


def test_the_peer_searches_our_space():
    study = optuna.create_study()
    trial = study.ask()

    optuna_loop.suggest(trial)

    theirs = {
        f"optim.{name}": (d.low, d.high, "log_uniform" if d.log else "uniform")  # type: ignore[attr-defined]
        for name, d in trial.distributions.items()
    }
    ours = {name: Dimension(**dimension) for name, dimension in tuning.SPACE.items()}
    assert theirs == {name: (*d.bounds, d.kind) for name, d in ours.items()}


def test_the_peer_stops_what_is_not_among_the_best_third(tmp_path: Path):
    study = optuna_loop.open_study(tmp_path / "journal")
    for accuracy in (0.5, 0.6):  # as other processes report them
        other = optuna_loop.open_study(tmp_path / "journal").ask()
        other.report(accuracy, 1)
        other.should_prune()

    stopped = []
    for accuracy in (0.4, 0.7):
        trial = study.ask()
        trial.report(accuracy, 1)
        stopped.append(trial.should_prune())

    assert stopped == [True, False]


def test_the_peers_trials_have_seeds_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    study = optuna_loop.open_study(tmp_path / "journal")
    process = optuna_loop.Process(Namespace(seed=2), study, None, None)
    monkeypatch.setattr(optuna_loop, "_process", process, raising=False)
    monkeypatch.setattr(optuna_loop, "objective", lambda _, trial: optuna_loop.suggest(trial)["lr"])

    for number in (0, 1, 0):
        optuna_loop.run_trial(number)

    first, second, again = (trial.params for trial in study.trials)
    assert first == again
    assert first["lr"] != second["lr"]


def test_a_loss_that_is_not_finite_fails_one_trial_of_the_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    study = optuna_loop.open_study(tmp_path / "journal")
    monkeypatch.setattr(
        optuna_loop, "_process", optuna_loop.Process(Namespace(seed=0), study, None, None), raising=False
    )

    def diverges(_: optuna_loop.Process, trial: optuna.Trial) -> float:
        trial.report(0.9, 1)
        raise TrainingError("loss nan")

    monkeypatch.setattr(optuna_loop, "objective", diverges)
    optuna_loop.run_trial(0)
    monkeypatch.setattr(optuna_loop, "objective", lambda _, trial: trial.report(0.4, 1) or 0.4)
    optuna_loop.run_trial(1)

    assert optuna_loop.figures(study.trials) == {"trials": 2, "failed": 1, "epochs": 2, "best_val_accuracy": 0.4}


def test_the_peers_best_is_of_the_best_epoch_even_of_a_stopped_trial():
    whole = optuna.trial.create_trial(value=0.5, intermediate_values={1: 0.4, 2: 0.6, 3: 0.5})
    stopped = optuna.trial.create_trial(state=optuna.trial.TrialState.PRUNED, intermediate_values={1: 0.7})

    assert optuna_loop.figures([whole])["best_val_accuracy"] == 0.6
    assert optuna_loop.figures([whole, stopped])["best_val_accuracy"] == 0.7
    assert optuna_loop.figures([whole, stopped])["epochs"] == 4


def test_the_peer_runs_its_trials_in_two_processes(folder: Path):
    words = f"--data {folder} --batch-size 16 --trials 3 --epochs 2 --processes 2".split()

    done = subprocess.run(
        [sys.executable, str(training.PEERS / "optuna_loop.py"), *words], capture_output=True, text=True, timeout=250
    )

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["trials"] == 3
    assert 3 <= found["epochs"] + found["failed"] <= 6
    assert 0 < found["best_val_accuracy"] <= 1
    assert 0 < found["fit_seconds"] <= 2 * found["seconds"]
