"""What runs cost: kinds of nodes as Ray describes them, sums over segments, prices, and what past runs foretell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayapp.config.commands import TrainSettings
from rayapp.config.parse import load
from rayapp.config.train import CostConfig
from rayapp.errors import ConfigError
from rayapp.provenance import recipe_digest
from rayapp.registry.tracking import PastRun, Tracker, mlflow_client
from rayapp.runtime.cost import (
    LIST_USD_PER_HOUR,
    NodeUse,
    cost_usd,
    count_nodes,
    usd_per_hour,
)
from rayapp.train.estimate import Expected, expected_cost, summarise


def node(node_id: str, **resources: float) -> dict[str, Any]:
    """A node as ray.nodes() returns it; A10G=1 stands for its accelerator_type."""
    named = {f"accelerator_type:{k}" if k not in ("CPU", "GPU") else k: v for k, v in resources.items()}
    return {"NodeID": node_id, "Alive": bool(named), "Resources": named}


def settings(*flags: str) -> TrainSettings:
    return load(TrainSettings, flags, prog="rayapp train")


# --- nodes ------------------------------------------------------------------------------------------------------------


def test_each_node_of_the_workers_counts_once_by_its_accelerator() -> None:
    nodes = [
        node("a", CPU=4, GPU=1, A10G=1),
        node("b", CPU=4, GPU=1, A10G=1),
        node("c", CPU=48, GPU=4, L4=1),
        node("d", CPU=2),
        node("idle", CPU=2),
    ]
    assert count_nodes(["a", "a", "b", "c", "c", "c", "d"], nodes) == {"A10G": 2, "4xL4": 1, "cpu": 1}


def test_a_kind_that_cannot_be_known_has_no_price() -> None:
    gone, unnamed_gpu = node("gone"), node("odd", CPU=4, GPU=1)
    found = count_nodes(["gone", "odd", "never seen"], [gone, unnamed_gpu])
    assert found == {"unknown": 3}
    assert cost_usd([NodeUse("A10G", 1, 60.0), NodeUse("unknown", 3, 60.0)], LIST_USD_PER_HOUR) is None


def test_the_general_name_of_a_board_is_taken_where_a_special_one_was_set_by_hand() -> None:
    resources = {"CPU": 12, "GPU": 1, "accelerator_type:A100-80G": 1, "accelerator_type:A100": 1}
    assert count_nodes(["a"], [{"NodeID": "a", "Resources": resources}]) == {"A100": 1}


def test_an_elastic_run_is_the_sum_of_its_segments() -> None:
    uses = [NodeUse("A10G", 1, 600.0), NodeUse("A10G", 3, 600.0), NodeUse("A10G", 2, 1200.0), NodeUse("L4", 1, 1200.0)]
    assert cost_usd(uses, {"A10G": 3.0, "L4": 6.0}) == pytest.approx((600 + 1800 + 2400) / 3600 * 3.0 + 2.0)
    assert cost_usd([], LIST_USD_PER_HOUR) == 0.0


# --- money ------------------------------------------------------------------------------------------------------------


def test_a_machine_of_ones_own_has_no_price_unless_one_is_given() -> None:
    uses = [NodeUse("cpu", 1, 7200.0)]
    assert cost_usd(uses, usd_per_hour(CostConfig(), local=True)) is None
    given = CostConfig(usd_per_hour={"cpu": 0.5})
    assert cost_usd(uses, usd_per_hour(given, local=True)) == 1.0
    assert cost_usd(uses, usd_per_hour(given, local=False)) == 1.0
    assert cost_usd(uses, usd_per_hour(CostConfig(), local=False)) == pytest.approx(2 * 0.0672)


def test_ones_own_prices_go_over_the_list_and_beyond_it() -> None:
    prices = usd_per_hour(settings("--cost.usd_per_hour", "A10G=0.4,4xL4=4.6,GeForce-RTX-4090=0").cost, local=False)
    assert prices == LIST_USD_PER_HOUR | {"A10G": 0.4, "4xL4": 4.6, "GeForce-RTX-4090": 0.0}


@pytest.mark.parametrize("kind", ["a10g", "4xA10g", "4xa10g"])
def test_an_accelerator_in_other_capitals_is_not_another_accelerator(kind: str) -> None:
    with pytest.raises(ConfigError, match=f"has a price for '{kind}'. Did you mean 'A10G'"):
        usd_per_hour(CostConfig(usd_per_hour={kind: 1.0}), local=True)


def test_a_negative_price_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cost.usd_per_hour.T4 is '?-1'?: it must be greater than or equal to 0"):
        settings("--cost.usd_per_hour", "T4=-1")


# --- what past runs say -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags",
    [
        ("--seed", "3"),
        ("--name", "again"),
        ("--register", "false"),
        ("--tracking.experiment", "other"),
        ("--checkpoint.keep", "5"),
        ("--compute.max_failures", "0"),
        ("--compute.device", "cpu"),
        ("--cost.usd_per_hour", "cpu=1"),
        ("--optim.batch_size", "64"),  # as below: said, not left open
    ],
)
def test_runs_of_a_recipe_share_its_digest(flags: tuple[str, ...]) -> None:
    assert recipe_digest(settings("--optim.batch_size", "64", *flags)) == recipe_digest(
        settings("--optim.batch_size", "64")
    )


@pytest.mark.parametrize(
    "flags",
    [
        ("--data.dataset", "cifar10"),
        ("--model.name", "resnet18"),
        ("--optim.epochs", "3"),
        ("--augment.cutout_px", "8"),
        ("--compute.num_workers", "1..2"),
        ("--compute.threads_per_worker", "2"),
        ("--compute.compile", "true"),
    ],
)
def test_what_decides_about_time_changes_the_digest(flags: tuple[str, ...]) -> None:
    assert recipe_digest(settings(*flags)) != recipe_digest(settings())


def past(**metrics: float) -> PastRun:
    return PastRun("id", metrics, {})


def test_past_runs_give_a_median_and_a_range() -> None:
    runs = [past(seconds=90.0, cost_usd=0.3), past(seconds=50.0), past(seconds=60.0, cost_usd=0.1), past(loss=1.0)]
    assert summarise(runs) == Expected(seconds=60.0, cost_usd=pytest.approx(0.2), n=3, low=50.0, high=90.0)
    assert summarise([past(seconds=4.0)]) == Expected(seconds=4.0, cost_usd=None, n=1, low=4.0, high=4.0)
    assert summarise([]) is None
    assert summarise([past(loss=1.0)]) is None


TAGS = {"recipe": "0123456789abcdef", "hardware.device": "cpu", "hardware.cpu": "Xeon", "hardware.gpu": "", "seed": "1"}


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    tracker = Tracker(uri, folder / "artifacts")
    for tags in (TAGS, TAGS | {"seed": "2"}, TAGS | {"hardware.cpu": "EPYC"}, TAGS | {"recipe": "another"}):
        run_id = tracker.open_run("rayapp", "a run", {}, tags)
        with mlflow_client(uri) as client:
            client.log_metric(run_id, "seconds", 100.0 * int(tags["seed"]))
        tracker.close_run(run_id, "FINISHED")
    return tracker


def test_looking_back_counts_runs_of_the_recipe_on_this_hardware(tracker: Tracker) -> None:
    assert expected_cost(tracker, TAGS | {"seed": "9", "git_sha": "new"}) == {
        "expected": {"seconds": 150.0, "cost_usd": None, "n": 2, "low": 100.0, "high": 200.0}
    }


def test_looking_back_says_why_nothing_is_expected(tracker: Tracker, tmp_path: Path) -> None:
    on_a_gpu = TAGS | {"hardware.device": "cuda", "hardware.gpu": "NVIDIA L4"}
    none_yet = {"expected": None, "why": "no run of this recipe has finished on this hardware yet"}
    assert expected_cost(tracker, on_a_gpu) == none_yet
    assert expected_cost(Tracker(f"sqlite:///{tmp_path}/new/mlflow.db"), TAGS) == none_yet
    assert not (tmp_path / "new").exists()
    away = expected_cost(Tracker("http://127.0.0.1:1"), TAGS)
    assert away["expected"] is None
    assert away["why"].startswith("MLflow at http://127.0.0.1:1 does not answer (Connection refused)")
