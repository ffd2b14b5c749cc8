"""The recipes of jobs/configs: complete, of models that fit their data, and each with its place in docs/results.md.

And the sweeps beside them, each over one of these recipes.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from rayapp.config.commands import TrainSettings
from rayapp.config.parse import load
from rayapp.config.sweep import OPTIMIZER_SPACE
from rayapp.config.train import ModelConfig
from rayapp.config.tune import TuneSettings, check_space
from rayapp.errors import ConfigError
from rayapp.vision.models import build_model

ROOT = Path(__file__).parents[3]
SWEEPS = sorted((ROOT / "jobs/configs").glob("sweep-*.yaml"))
RECIPES = sorted({*(ROOT / "jobs/configs").glob("*.yaml")} - {*SWEEPS})
RESULTS = (ROOT / "docs/results.md").read_text(encoding="utf-8")
# Classes and pixels of the named data sets; of a folder what may lie in one.
SHAPES = {"digits": (10, 32), "cifar10": (10, 32), "cifar100": (100, 32), "fashion_mnist": (10, 28), "folder": (2, 224)}
OPTIM = {"optimizer", "schedule", "lr", "weight_decay", "epochs", "batch_size", "label_smoothing"}


def recipe(path: Path) -> TrainSettings:
    """The settings of a file; a folder is named for the recipes that leave it to their user."""
    folder = ["--data.path", "my-images"] if path.name.startswith("folder-") else []
    return load(TrainSettings, ["--config", str(path), *folder], prog="rayapp train")


@pytest.fixture(params=RECIPES, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


def test_there_is_a_recipe_for_each_data_set_and_model() -> None:
    models = ("mobilenet_v3_small", "mobilenet_v3_large", "resnet18", "resnet9")
    assert {path.stem for path in RECIPES} == {f"{dataset}-{model}" for dataset in SHAPES for model in models}


def test_a_recipe_leaves_nothing_of_the_training_open(path: Path) -> None:
    settings = recipe(path)
    assert path.stem == f"{settings.data.dataset}-{settings.model.name}"
    assert settings.optim.model_fields_set == OPTIM
    shifts = {"crop_padding_px"} if settings.data.dataset != "folder" else set()  # an eighth of whatever size they have
    assert settings.augment.model_fields_set == {"flip", "cutout_px"} | shifts
    assert settings.model_fields_set == {"data", "model", "optim", "augment"}


def test_its_model_fits_its_data(path: Path) -> None:
    settings = recipe(path)
    num_classes, px = SHAPES[settings.data.dataset]
    px = settings.data.image_px or px
    model = build_model(
        ModelConfig(name=settings.model.name),  # with pretrained weights it has the same shape
        num_classes=num_classes,
        image_px=px,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )
    with torch.inference_mode():
        logits_nk = model.eval()(torch.zeros(1, px, px, 3, dtype=torch.uint8))
    assert logits_nk.shape == (1, num_classes)


def test_a_recipe_for_a_folder_asks_for_it() -> None:
    for path in RECIPES:
        if path.name.startswith("folder-"):
            with pytest.raises(ConfigError, match=r"data.dataset 'folder' needs its folder: add --data.path FOLDER"):
                load(TrainSettings, ["--config", str(path)], prog="rayapp train")


def test_results_list_each_recipe_once_where_its_first_line_says() -> None:
    measured, _, not_measured = RESULTS.partition("\n## Not measured\n")
    for ending, part in ((" Measured.", measured), (" Derived, not run.", not_measured)):
        listed = re.findall(r"^\| `([\w-]+)` \|", part, re.MULTILINE)
        assert sorted(listed) == [p.stem for p in RECIPES if p.read_text().splitlines()[0].endswith(ending)]
        assert len(listed) == len(set(listed))
    assert all(re.match(r"# .* (Measured|Derived, not run)\.\n", path.read_text()) for path in RECIPES)


# --- sweeps -----------------------------------------------------------------------------------------------------------


def sweep(path: Path) -> TuneSettings:
    return load(TuneSettings, ["--config", str(path)], prog="rayapp tune")


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_sweep_is_of_a_recipe_and_says_how_long_it_takes(path: Path) -> None:
    settings = sweep(path)
    check_space(settings)
    assert settings.base in RECIPES
    assert {"space", "search", "scheduler"} <= settings.model_fields_set
    about = path.read_text(encoding="utf-8").splitlines()[0]
    said = re.fullmatch(r"# .*: (\d+) trials.*(minutes?|hours?|not run).*\.", about)
    assert said, about
    assert int(said[1]) == settings.num_trials
    assert ("downloaded once" in about) == (settings.data.dataset != "digits")


def test_sweep_optimizer_is_what_the_replaced_system_searched() -> None:
    settings = sweep(ROOT / "jobs/configs/sweep-optimizer.yaml")
    assert settings.space == OPTIMIZER_SPACE
    assert {name: (d.kind, tuple(d.bounds)) for name, d in settings.space.items()} == {
        "optim.lr": ("log_uniform", (1e-4, 1e-2)),
        "optim.weight_decay": ("log_uniform", (1e-5, 1e-3)),
        "optim.momentum": ("uniform", (0.8, 0.99)),
    }
    assert (settings.search.metric, settings.scheduler.name, settings.num_trials) == ("val_accuracy", "asha", 10)
