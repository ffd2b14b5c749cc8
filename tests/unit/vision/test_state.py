from __future__ import annotations

import pytest
import torch

from rayapp.vision.state import TrainState
from tests.unit.vision.test_loop import Small, new_state, plan_of


def state_on(*, world: int) -> TrainState:
    torch.manual_seed(0)
    return new_state(Small(), plan_of(num_workers=world))


def as_of_ranks(state: TrainState, *own_s: torch.Tensor) -> dict[str, object]:
    return state.snapshot() | {"ranks": torch.stack(own_s)}


def test_each_rank_takes_up_its_own_norm_statistics_and_sums() -> None:
    state = state_on(world=2)
    size = 3 + 2 * 8  # sums, mean and variance of 8 channels
    ranks = [torch.arange(size) + 100.0, torch.arange(size) + 200.0]
    for rank in (0, 1):
        again = state_on(world=2)
        again.restore(as_of_ranks(state, *ranks), rank=rank, world=2)
        assert again.sums.sums_3.tolist() == ranks[rank][:3].tolist()
        assert again.model.norm.running_mean.tolist() == ranks[rank][3:11].tolist()  # type: ignore[union-attr]
        assert again.model.norm.running_var.tolist() == ranks[rank][11:].tolist()  # type: ignore[union-attr]


@pytest.mark.parametrize("world", [1, 3])
def test_another_number_of_ranks_takes_the_mean_of_the_statistics_and_loses_no_image(
    world: int,
) -> None:
    state = state_on(world=2)
    ranks = [torch.full((19,), 1.0), torch.full((19,), 3.0)]
    totals = torch.zeros(3)
    for rank in range(world):
        again = state_on(world=world)
        again.restore(as_of_ranks(state, *ranks), rank=rank, world=world)
        totals += again.sums.sums_3
        assert again.model.norm.running_mean.tolist() == [2.0] * 8  # type: ignore[union-attr]
    assert totals.tolist() == pytest.approx([4.0] * 3)


def test_the_rate_of_a_restored_run_is_that_of_its_own_workers() -> None:
    one, four = state_on(world=1), state_on(world=4)
    before = four.plan.peak_lr
    four.restore(one.snapshot(), rank=0, world=4)
    assert four.plan.peak_lr == before == pytest.approx(4 * one.plan.peak_lr)
