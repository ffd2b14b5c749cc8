"""Settings of a sweep: what cannot work is a sentence in the first second, and every draw is a training."""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from rayapp.config.commands import TrainSettings
from rayapp.config.parse import load, validate
from rayapp.config.sweep import OPTIMIZER_SPACE, Dimension
from rayapp.config.tune import TuneSettings, check_space
from rayapp.errors import ConfigError

RATES = {"optim.lr": {"log_uniform": [1e-4, 1e-2]}}
LISTS = {"optim.lr": {"grid": [0.1, 0.2, 0.4]}, "model.name": {"choice": ["resnet9", "resnet18"]}}
# momentum goes with sgd alone
CONDITIONAL = {
    "optim.optimizer": {"choice": ["sgd", "adamw"]},
    "optim.momentum": {"uniform": [0.8, 0.99], "when": {"optim.optimizer": "sgd"}},
}
alike = hypothesis_settings(deadline=None, derandomize=True, database=None)  # the same examples each time


def sweep(**content: Any) -> TuneSettings:
    """The settings, checked as before a sweep starts."""
    settings = validate(TuneSettings, content)
    check_space(settings)
    return settings


def refusal(**content: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        sweep(**content)
    return str(caught.value)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        ({"optim.lrr": {"uniform": [0.1, 0.2]}}, "space has the unknown setting 'optim.lrr'. Did you mean 'optim.lr'?"),
        ({"lr": {"uniform": [0.1, 0.2]}}, "space has the unknown setting 'lr'. Allowed: augment.crop_padding_px,"),
        ({"compute.device": {"choice": ["cpu"]}}, "space has the unknown setting 'compute.device'. Allowed: augment."),
        ({"model": {"choice": ["resnet9"]}}, "space has the unknown setting 'model'. Did you mean 'model.name'?"),
        (
            {"optim.lr": {"uniform": [0.1, 0.2], "when": {"optim.optimiser": "sgd"}}},
            "space has the unknown setting 'optim.optimiser'. Did you mean 'optim.optimizer'?",
        ),
        (
            {"optim.lr": {"loguniform": [0.1, 0.2]}},
            "unknown setting 'space.optim.lr.loguniform'. Did you mean 'space.optim.lr.log_uniform'?",
        ),
        (
            {"optim.lr": {"uniform": [0.1, 0.2], "choice": [0.1]}},
            "space.optim.lr: a setting in space needs one of uniform, log_uniform, integer, log_integer, choice, grid;"
            " given: uniform, choice.",
        ),
        ({"optim.lr": {"when": {"model.name": "resnet9"}}}, "choice, grid; given: none."),
        ({"optim.lr": 0.1}, "space.optim.lr is 0.1: it must be a section with settings of its own."),
        ({"optim.lr": {"uniform": [0.2, 0.1]}}, "bounds [0.2, 0.1] must be [low, high] with low < high."),
        ({"optim.lr": {"uniform": [0.2, 0.2]}}, "bounds [0.2, 0.2] must be [low, high] with low < high."),
        ({"optim.lr": {"uniform": [0.2]}}, "space.optim.lr.uniform.1 is missing."),
        ({"optim.lr": {"uniform": [0.1, math.inf]}}, "space.optim.lr.uniform.1 is inf: it must be a finite number."),
        ({"optim.lr": {"log_uniform": [0, 0.1]}}, "log_uniform [0.0, 0.1] must begin above 0; say uniform or integer"),
        ({"optim.batch_size": {"log_integer": [0, 64]}}, "log_integer [0, 64] must begin above 0; say uniform or"),
        ({"optim.epochs": {"integer": [1.5, 5]}}, "space.optim.epochs.integer.0 is 1.5: it must be a valid integer"),
        ({"optim.lr": {"choice": []}}, "space.optim.lr.choice is []: "),
        ({}, "space is empty; name a setting and its values, as optim.lr: {log_uniform: [0.001, 0.1]}."),
    ],
)
def test_a_space_that_means_nothing_gets_a_sentence(space: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal(space=space)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"search": {"metric": "val_acc"}}, "search.metric is 'val_acc'. Did you mean 'val_accuracy'?"),
        ({"search": {"metric": "f1"}}, "search.metric is 'f1'. Allowed: val_accuracy, val_loss."),
        ({"search": {"algorithm": "hyperop"}}, "search.algorithm is 'hyperop'. Did you mean 'hyperopt'?"),
        ({"search": {"algorithm": "bohb"}}, "search.algorithm is 'bohb'. Allowed: grid, hyperopt, optuna, random."),
        ({"scheduler": {"name": "ashas"}}, "scheduler.name is 'ashas'. Did you mean 'asha'?"),
        ({"search": {"preset": "quickly"}}, "search.preset is 'quickly'. Did you mean 'quick'?"),
        ({"scheduler": {"reduction_factor": 1}}, "scheduler.reduction_factor is 1: it must be greater than or equal"),
        ({"budget": {"usd": 0}}, "budget.usd is 0: it must be greater than 0."),
        ({"trials": {"cpus": 0}}, "trials.cpus is 0: it must be greater than 0."),
        ({"register": False}, "unknown setting 'register'. Allowed: augment, base, budget, checkpoint,"),
        ({"resume": "a", "clean": "a"}, "resume and clean are both given; leave one out."),
        ({"yes": True}, "yes answers the question of clean; add --clean NAME, or leave it out."),
        ({"winner": {"seeds": 2}}, "winner has no effect without then_train; add --then-train."),
    ],
)
def test_a_wrong_setting_gets_a_sentence(content: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal(**content)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            {"search": {"algorithm": "hyperopt"}, "space": LISTS},
            "space has a grid, which search.algorithm 'hyperopt' does not walk; say choice, or grid.",
        ),
        (
            {"search": {"algorithm": "optuna"}, "space": LISTS},
            "space has a grid, which search.algorithm 'optuna' does not walk; say choice, or grid.",
        ),
        (
            {"search": {"algorithm": "grid"}, "space": RATES | {"model.name": LISTS["model.name"]}},
            "search.algorithm 'grid' needs lists (choice or grid) for all of space; say random.",
        ),
        ({"search": {"latency": True}}, "search.latency needs an algorithm that takes two aims, and 'hyperopt' does"),
        (
            {"search": {"latency": True, "algorithm": "optuna"}},
            "scheduler.name 'asha' stops trials by one aim; with search.latency say none.",
        ),
        (
            {"optim": {"early_stop_patience": 3}, "scheduler": {"name": "median"}},
            "optim.early_stop_patience and scheduler.name 'median' both stop early; leave one out.",
        ),
        (
            {
                "scheduler": {"name": "pbt"},
                "search": {"algorithm": "random"},
                "space": RATES | {"model.name": LISTS["model.name"]},
            },
            "scheduler.name 'pbt' changes values while a trial goes on, which model.name cannot; allowed in space:"
            " optim.lr, optim.momentum,",
        ),
        (
            {"scheduler": {"name": "pbt"}},
            "scheduler.name 'pbt' chooses new values itself; add --search.algorithm random.",
        ),
        (
            {"model": {"init": "models:/vision/1"}, "space": {"model.name": LISTS["model.name"]}},
            "model.init 'models:/vision/1' is of one model, but space has others; leave one out.",
        ),
        (
            {"search": {"algorithm": "random"}, "space": LISTS},
            "which search.algorithm 'random' does not walk; say choice",
        ),
        ({"compute": {"num_workers": "1..4"}}, "trials of compute.num_workers 1..4 keep their number"),
        ({"compute": {"num_workers": 2}, "trials": {"cpus": 0.5}}, "leave out trials.cpus and trials.gpus."),
    ],
)
def test_parts_that_do_not_go_together_get_a_sentence(content: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal(**content)


def test_what_goes_together_is_taken() -> None:
    assert sweep().space == OPTIMIZER_SPACE
    assert sweep(search={"algorithm": "grid"}, space=LISTS).search.algorithm == "grid"
    assert sweep(search={"latency": True, "algorithm": "optuna"}, scheduler={"name": "none"}).search.latency
    assert sweep(optim={"early_stop_patience": 3}, scheduler={"name": "none"}).optim.early_stop_patience == 3
    assert sweep(compute={"num_workers": 4}, trials={"at_once": 2}).compute.workers.high == 4
    assert sweep(clean="a", yes=True).yes
    assert sweep(then_train=True, winner={"seeds": 2}).winner.seeds == 2
    pbt = {"augment.mixup_alpha": {"uniform": [0.0, 1.0]}, **RATES}
    assert sweep(scheduler={"name": "pbt"}, search={"algorithm": "random"}, space=pbt).scheduler.name == "pbt"


@pytest.mark.parametrize("package", ["hyperopt", "optuna"])
def test_a_searcher_without_its_package_says_what_to_install(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # how Python itself marks what cannot be imported

    assert refusal(search={"algorithm": package}) == (
        f"search.algorithm '{package}' needs the package {package}, which is not installed: pip install {package},"
        " or say random."
    )
    assert sweep(search={"algorithm": "random"}).search.algorithm == "random"


@pytest.mark.parametrize(
    ("space", "example"),
    [
        ({"optim.lr": {"uniform": [-1.0, -0.5]}}, "as optim.lr=-0."),
        ({"optim.epochs": {"uniform": [1.1, 1.9]}}, "as optim.epochs=1."),
        ({"augment.cutout_px": {"choice": [8, 512]}}, "as augment.cutout_px=512: augment.cutout_px is 512: it must be"),
        ({"model.name": {"choice": ["resnet9", "resnet17"]}}, "as model.name=resnet17: model.name is 'resnet17'."),
        (
            {"optim.optimizer": {"choice": ["adamw", "sgd"]}, "optim.momentum": {"choice": [0.9]}},
            "as optim.optimizer=adamw, optim.momentum=0.9: optim.momentum has no effect on optim.optimizer 'adamw'",
        ),
    ],
)
def test_a_space_that_can_give_refused_settings_names_an_example(space: dict[str, Any], example: str) -> None:
    said = refusal(space=space)

    assert f"space can give settings that are refused, {example}" in said
    assert said.endswith("change its values, or say with when: which of them go together.")


# --- values -----------------------------------------------------------------------------------------------------------

FLOATS = st.floats(-1e6, 1e6)
POSITIVE = st.floats(1e-9, 1e6)
WHOLE = st.integers(-(10**6), 10**6)
POSITIVE_WHOLE = st.integers(1, 10**6)


def pairs(numbers: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.tuples(numbers, numbers).filter(lambda pair: pair[0] < pair[1])


RANGES = st.one_of(
    st.tuples(st.just("uniform"), pairs(FLOATS)),
    st.tuples(st.just("log_uniform"), pairs(POSITIVE)),
    st.tuples(st.just("integer"), pairs(WHOLE)),
    st.tuples(st.just("log_integer"), pairs(POSITIVE_WHOLE)),
)


@alike
@given(RANGES, st.integers(0, 2**32))
def test_a_draw_stays_within_its_bounds(kind_and_bounds: tuple[str, tuple[float, float]], seed: int) -> None:
    kind, (low, high) = kind_and_bounds
    dimension = Dimension(**{kind: (low, high)})
    assert (dimension.kind, dimension.bounds) == (kind, (low, high))

    drawn: Any = dimension.draw(random.Random(seed))

    assert low <= drawn <= high
    assert isinstance(drawn, int) is kind.endswith("integer")


class AtTheEnds(random.Random):
    """Draws the very ends of a range, alternately."""

    low = False

    def uniform(self, a: float, b: float) -> float:
        self.low = not self.low
        return a if self.low else b


def test_rounding_leads_no_draw_out_of_its_bounds() -> None:
    rng = AtTheEnds()
    for k in range(1, 100):  # exp(log(x)) is not always x
        low, high = 0.001 * k, 0.1 * k
        assert [Dimension(log_uniform=(low, high)).draw(rng) for _ in range(2)] == pytest.approx([low, high])
        assert all(low <= float(Dimension(log_uniform=(low, high)).draw(rng) or 0) <= high for _ in range(2))


@alike
@given(st.lists(st.one_of(st.booleans(), st.integers(), st.text(), st.none()), min_size=1), st.integers(0, 2**32))
def test_a_choice_is_one_of_its_list(values: list[Any], seed: int) -> None:
    for dimension in (Dimension(choice=values), Dimension(grid=values)):
        assert dimension.draw(random.Random(seed)) in values


@pytest.mark.parametrize("kind", ["integer", "log_integer"])
def test_whole_numbers_include_both_ends(kind: str) -> None:
    rng = random.Random(0)

    assert {Dimension(**{kind: (2, 4)}).draw(rng) for _ in range(100)} == {2, 3, 4}


def test_a_log_scale_gives_each_order_of_magnitude_alike() -> None:
    rng = random.Random(0)
    drawn = [Dimension(log_uniform=(1e-5, 1e-1)).draw(rng) for _ in range(4000)]

    orders = [sum(math.floor(math.log10(float(value or 0))) == order for value in drawn) for order in range(-5, -1)]
    assert all(850 < count < 1150 for count in orders), orders


# --- trials -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("preset", "trials"), [("quick", 5), ("default", 10), ("extensive", 50), ("hundred", 100)])
def test_presets_are_numbers_of_trials(preset: str, trials: int) -> None:
    assert sweep(search={"preset": preset}).num_trials == trials
    assert sweep(search={"preset": preset}, budget={"trials": 7}).num_trials == 7


def test_a_grid_has_each_combination_once_and_a_smaller_budget_is_refused() -> None:
    grid = {"search": {"algorithm": "grid", "preset": "quick"}, "space": LISTS}

    assert sweep(**grid).num_trials == 6
    assert "a grid runs all its 6 combinations" in refusal(**grid, budget={"trials": 4})
    assert sweep(**grid, budget={"trials": 100}).num_trials == 6


def test_a_trial_is_the_recipe_with_the_drawn_values() -> None:
    settings = sweep(
        optim={"lr": 0.3, "epochs": 4}, model={"name": "resnet9"}, seed=3, name="my-sweep", space=RATES, then_train=True
    )

    assert settings.trial({"optim.lr": 0.002}) == validate(
        TrainSettings,
        {"optim": {"lr": 0.002, "epochs": 4}, "model": {"name": "resnet9"}, "seed": 3, "register": False},
    )


def test_the_seed_can_be_searched() -> None:
    settings = sweep(seed=3, space={"seed": {"integer": [0, 9]}})

    assert settings.trial({"seed": 7}).seed == 7


def test_a_conditional_value_is_used_only_where_it_applies() -> None:
    settings = sweep(space=CONDITIONAL)
    with_sgd: dict[str, Any] = {"optim.optimizer": "sgd", "optim.momentum": 0.85}
    with_adamw: dict[str, Any] = {"optim.optimizer": "adamw", "optim.momentum": 0.85}

    assert settings.used(with_sgd) == with_sgd
    assert settings.used(with_adamw) == {"optim.optimizer": "adamw"}
    assert settings.trial(with_sgd).optim.momentum == 0.85
    assert settings.trial(with_adamw).optim.momentum is None


def test_where_a_drawn_value_does_not_apply_the_recipe_has_none_either() -> None:
    settings = sweep(space=CONDITIONAL, optim={"momentum": 0.95, "epochs": 2})  # of the recipe, refused with adamw

    trial = settings.trial({"optim.optimizer": "adamw", "optim.momentum": 0.85})

    assert (trial.optim.optimizer, trial.optim.momentum, trial.optim.epochs) == ("adamw", None, 2)


def test_a_condition_looks_at_the_recipe_where_the_space_has_no_such_setting() -> None:
    only_sgd = {"optim.momentum": CONDITIONAL["optim.momentum"], **RATES}
    drawn = {"optim.momentum": 0.9, "optim.lr": 0.001}
    third_seed = {"optim.lr": {"uniform": [0.1, 0.2], "when": {"seed": 3}}}

    assert sweep(space=only_sgd).used(drawn) == drawn  # sgd is the default
    assert "optim.momentum is never used" in refusal(space=only_sgd, optim={"optimizer": "adamw"})
    assert sweep(space=third_seed, seed=3).used({"optim.lr": 0.15}) == {"optim.lr": 0.15}
    assert "optim.lr is never used" in refusal(space=third_seed, seed=4)


def test_a_condition_takes_several_values_and_other_conditions() -> None:
    settings = sweep(
        space={
            "model.name": {"choice": ["resnet9", "resnet18", "mobilenet_v3_small"]},
            "augment.random_ops": {"choice": [0, 1, 2], "when": {"model.name": ["resnet9", "resnet18"]}},
            "augment.random_magnitude": {"uniform": [0.1, 0.9], "when": {"augment.random_ops": [1, 2]}},
        }
    )

    def used(model: str, ops: int) -> set[str]:
        return set(settings.used({"model.name": model, "augment.random_ops": ops, "augment.random_magnitude": 0.5}))

    assert used("resnet18", 2) == {"model.name", "augment.random_ops", "augment.random_magnitude"}
    assert used("resnet9", 0) == {"model.name", "augment.random_ops"}
    assert used("mobilenet_v3_small", 2) == {"model.name"}


def test_a_condition_on_a_value_that_is_left_out_does_not_look_at_the_recipe() -> None:
    settings = sweep(
        augment={"random_ops": 2},  # which trial() leaves out where it draws none
        space={
            "optim.optimizer": {"choice": ["sgd", "adamw"]},
            "augment.random_ops": {"choice": [1, 2], "when": {"optim.optimizer": "sgd"}},
            "augment.random_magnitude": {"uniform": [0.1, 0.9], "when": {"augment.random_ops": [1, 2]}},
        },
    )
    drawn: dict[str, Any] = {"augment.random_ops": 1, "augment.random_magnitude": 0.5}

    assert settings.used({"optim.optimizer": "adamw"} | drawn) == {"optim.optimizer": "adamw"}
    assert settings.used({"optim.optimizer": "sgd"} | drawn) == {"optim.optimizer": "sgd"} | drawn


def test_a_condition_stands_after_what_it_depends_on() -> None:
    backwards = dict(reversed(CONDITIONAL.items()))
    on_itself = {"optim.momentum": {"uniform": [0.8, 0.9], "when": {"optim.momentum": 0.8}}}

    assert refusal(space=backwards) == (
        "space.optim.momentum depends on optim.optimizer, which does not stand before it; put it there."
    )
    assert refusal(space=on_itself) == (
        "space.optim.momentum depends on optim.momentum, which does not stand before it; put it there."
    )


@pytest.mark.parametrize(
    ("others", "when", "sentence"),
    [
        ({}, {"optim.optimizer": "sdg"}, "optim.optimizer is never sdg"),
        ({}, {"optim.optimizer": ["adamw", "muon"]}, "optim.optimizer is never adamw or muon"),
        (
            {"optim.optimizer": {"choice": ["sgd", "adamw"]}},
            {"optim.optimizer": "adamm"},
            "optim.optimizer is never adamm",
        ),
        ({"optim.epochs": {"integer": [2, 4]}}, {"optim.epochs": 5}, "optim.epochs is never 5"),
        ({"optim.lr": {"uniform": [0.1, 0.2]}}, {"optim.lr": 0.1}, "optim.lr is never 0.1"),  # one number of so many
    ],
)
def test_a_condition_that_is_never_true_is_refused(others: dict[str, Any], when: dict[str, Any], sentence: str) -> None:
    momentum = {"uniform": [0.8, 0.9], "when": when}

    assert refusal(space=others | {"optim.momentum": momentum}) == (
        f"space.optim.momentum is never used: {sentence}; change its when."
    )


@pytest.mark.parametrize(
    ("other", "wanted"),
    [
        ({"optim.epochs": {"integer": [2, 4]}}, {"optim.epochs": 4}),
        ({"optim.epochs": {"log_integer": [2, 4]}}, {"optim.epochs": [2, 9]}),
        ({"augment.flip": {"choice": [True, False]}}, {"augment.flip": False}),
    ],
)
def test_a_condition_that_can_be_true_is_taken(other: dict[str, Any], wanted: dict[str, Any]) -> None:
    space = other | {"optim.momentum": {"uniform": [0.8, 0.9], "when": wanted}}

    assert sweep(space=space).space["optim.momentum"].when == wanted


ACCEPTED = sweep(space=CONDITIONAL | RATES | {"optim.batch_size": {"log_integer": [16, 512]}})


@alike
@given(st.integers(0, 2**32))
def test_every_draw_of_an_accepted_space_is_a_training(seed: int) -> None:
    rng, settings = random.Random(seed), ACCEPTED
    drawn = {name: dimension.draw(rng) for name, dimension in settings.space.items()}

    trial, used = settings.trial(drawn), settings.used(drawn)

    assert {name: getattr(trial.optim, name.removeprefix("optim.")) for name in used} == used
    assert ("optim.momentum" in used) == (trial.optim.optimizer == "sgd")


# --- files ------------------------------------------------------------------------------------------------------------


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def tune(*argv: object) -> TuneSettings:
    return load(TuneSettings, [str(word) for word in argv], prog="rayapp tune")


def test_a_recipe_then_the_sweep_then_flags(tmp_path: Path) -> None:
    recipe = {"data": {"dataset": "digits"}, "optim": {"lr": 0.1, "epochs": 8, "batch_size": 64}, "seed": 1}
    write(tmp_path / "recipes/digits.yaml", recipe)
    content = {"base": "../recipes/digits.yaml", "optim": {"epochs": 4, "batch_size": 32}, "space": RATES}
    file = write(tmp_path / "sweeps/s.yaml", content)

    settings = tune("--config", file, "--optim.batch_size", 16)

    assert (settings.optim.lr, settings.optim.epochs, settings.optim.batch_size) == (0.1, 4, 16)
    assert (settings.seed, list(settings.space)) == (1, ["optim.lr"])


def test_a_recipe_named_by_a_flag_lies_where_the_shell_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "here/recipe.yaml", {"seed": 1})
    write(tmp_path / "sweeps/recipe.yaml", {"seed": 2})
    file = write(tmp_path / "sweeps/s.yaml", {"base": "recipe.yaml", "space": RATES})
    monkeypatch.chdir(tmp_path / "here")

    assert tune("--config", file).seed == 2
    assert tune("--config", file, "--base", "recipe.yaml").seed == 1


def test_a_recipe_that_is_not_there_or_is_wrong_gets_a_sentence(tmp_path: Path) -> None:
    write(tmp_path / "recipe.yaml", {"optim": {"lrr": 0.1}})

    with pytest.raises(ConfigError, match=r"unknown setting 'optim\.lrr'\. Did you mean 'optim\.lr'\?"):
        tune("--base", tmp_path / "recipe.yaml")
    with pytest.raises(ConfigError, match=r"cannot read --base .*gone\.yaml: No such file or directory"):
        tune("--config", write(tmp_path / "s.yaml", {"base": "gone.yaml"}))


def test_of_a_recipe_what_is_of_one_training_is_left_out(tmp_path: Path) -> None:
    recipe = {"seed": 4, "register": False, "name": "my-run", "resume": "auto", "dry_run": True}

    settings = tune("--base", write(tmp_path / "recipe.yaml", recipe))

    assert (settings.seed, settings.name, settings.resume) == (4, None, None)
    assert tune("--base", tmp_path / "recipe.yaml", "--name", "my-sweep").name == "my-sweep"


def test_a_recipe_that_stands_on_another_one_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "first.yaml", {"seed": 9})
    second = write(tmp_path / "second.yaml", {"base": "first.yaml"})

    with pytest.raises(
        ConfigError, match=r"^--base .*second\.yaml has a base itself; name the recipe that it stands on$"
    ):
        tune("--base", second)


def test_all_of_a_sweep_can_be_read_from_what_it_recorded(tmp_path: Path) -> None:
    settings = tune("--config", write(tmp_path / "s.yaml", {"space": CONDITIONAL, "budget": {"trials": 3}}))

    assert validate(TuneSettings, settings.model_dump(mode="json", by_alias=True, exclude_unset=True)) == settings


def test_a_space_can_be_given_as_a_flag() -> None:
    settings = tune("--space", '{"optim.lr": {"log_uniform": [0.001, 0.1]}}')

    assert settings.space == {"optim.lr": Dimension(log_uniform=(0.001, 0.1))}


@pytest.mark.parametrize("text", ['{"optim.lr": {"uniform": [0.1', "3", "optim.lr=3"])
def test_a_space_that_is_no_json_gets_a_sentence(text: str) -> None:
    with pytest.raises(ConfigError, match="space"):
        tune("--space", text)
