"""That the benchmarks compare like with like: the peers' model, recipe, split and space are ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

from benchmarks import accuracy, data, training, tuning
from benchmarks.peers import optuna_loop, plain
from rayapp.config.commands import TrainSettings
from rayapp.config.parse import load
from rayapp.config.train import DataConfig, ModelConfig, OptimConfig
from rayapp.config.tune import TuneSettings
from rayapp.data import datasets
from rayapp.vision.models import build_model
from rayapp.vision.optim import TrainPlan

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of a bare start."""
    made = tmp_path_factory.mktemp("bench") / "data"
    data.write(training.parser().parse_args(["--images", "120"]), made)
    return made


@pytest.mark.parametrize("name", plain.MODELS)
def test_the_plain_script_has_our_model(name: str):
    ours = build_model(ModelConfig(name=name), num_classes=10, image_px=32, mean=plain.MEAN, std=plain.STD)
    theirs = plain.build_model(name)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.backbone.state_dict().values(), strict=True)))
    images_nhwc = torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8)
    mean_c, std_c = (torch.tensor(values)[:, None, None] for values in (plain.MEAN, plain.STD))
    normalised_nchw = (images_nhwc.permute(0, 3, 1, 2) / 255 - mean_c) / std_c

    for model, images in ((ours, images_nhwc), (theirs, normalised_nchw)):
        torch.manual_seed(0)  # dropout
        model.train()(images)  # norms remember it, by their momentum
        model.eval()

    assert torch.allclose(ours(images_nhwc), theirs(normalised_nchw), atol=1e-3, rtol=1e-3)


def test_the_plain_script_has_our_optimiser_and_schedule():
    config, steps, rates = TrainPlan.of(OptimConfig(batch_size=256), num_images=45_000), 400, []
    optimizer, schedule = plain.build_optimizer(plain.build_model("resnet9"), peak_lr=config.peak_lr, num_steps=steps)
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()

    ours = [config.lr_at((step + 0.5) / steps) for step in range(steps)]

    assert rates == pytest.approx(ours, abs=0.01 * config.peak_lr)
    groups = [(g["weight_decay"], {p.ndim for p in g["params"]} <= {1}) for g in optimizer.param_groups]
    assert groups == [(config.weight_decay, False), (0.0, True)]
    assert {(g["momentum"], g["nesterov"]) for g in optimizer.param_groups} == {(config.momentum, True)}
    assert config.label_smoothing == plain.SMOOTHING


def test_the_plain_script_has_our_split(folder: Path, tmp_path: Path):
    config = DataConfig(dataset="parquet", path=str(folder))
    dataset = datasets.load(config, tmp_path)
    train, validation = plain.datasets(folder)

    ours, theirs = dataset.validation(config).images_nhwc, validation.images_nhwc
    assert sorted(image.tobytes() for image in theirs) == sorted(image.tobytes() for image in ours)
    assert len(train) == len(dataset.split(config).train_indices)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_target_of_training_has_its_contestants(device: str, tmp_path: Path):
    words = ["--device", device, "--processes", "1", "2", "--only", "rayapp", "fit", "plain"]
    contestants = training.contestants_of(training.parser().parse_args(words), tmp_path)

    wanted = {name for target in training.TARGETS[device] for name in (target.ours, *target.theirs)}
    assert wanted <= {contestant.name for contestant in contestants}
    for contestant in contestants:
        if contestant.name == training.RAYAPP_2:
            settings = load(TrainSettings, list(contestant.words[4:]), prog="rayapp train")
            assert settings.optim.batch_size == 128


@pytest.mark.parametrize("algorithm", ["hyperopt", "optuna"])
def test_our_sweep_is_what_rayapp_accepts_and_the_peer_gets_the_same_recipe(algorithm: str, tmp_path: Path):
    options = tuning.parser().parse_args(
        ["--epochs", "7", "--at-once", "3", "--batch-size", "64", "--model", "resnet9"]
    )
    words = tuning.tune_words(options, tmp_path, 12, 4, tuning.asha_flags(algorithm))

    ours = load(TuneSettings, words[4:], prog="rayapp tune")
    theirs = optuna_loop.command_line().parse_args(tuning.loop_words(options, tmp_path, 12, 4)[2:])

    assert (ours.search.algorithm, ours.scheduler.name, ours.scheduler.reduction_factor) == (algorithm, "asha", 3)
    trial = optuna.create_study().ask()
    optuna_loop.suggest(trial)
    drawn: dict[str, Any] = dict(trial.distributions)
    searched = {f"optim.{name}": (d.low, d.high) for name, d in drawn.items()}
    assert searched == {name: dimension.bounds for name, dimension in ours.space.items()}
    assert {f"optim.{name}" for name, d in drawn.items() if d.log} == {
        name for name, dimension in ours.space.items() if dimension.kind == "log_uniform"
    }
    assert (str(theirs.data), theirs.model) == (ours.data.path, ours.model.name)
    assert (theirs.epochs, theirs.batch_size) == (ours.optim.epochs, ours.optim.batch_size) == (7, 64)
    assert (theirs.trials, theirs.processes, theirs.seed) == (ours.num_trials, ours.trials.at_once, ours.seed)


def test_accuracy_takes_the_recipes_of_train_and_its_settings_over_them(tmp_path: Path):
    config = ROOT / "jobs" / "configs" / "cifar10-resnet9.yaml"
    words = ["--config", str(config), "--data", str(tmp_path), "--optim.lr", "0.7"]

    found = accuracy.settings_of(accuracy.parser().parse_args(words))

    given = ["--config", str(config), "--data.dataset", "parquet", "--data.path", str(tmp_path), "--optim.lr", "0.7"]
    assert found == load(TrainSettings, given, prog="rayapp train")
