from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from rayapp.config.train import AugmentConfig, ModelConfig, OptimConfig
from rayapp.data.preprocess import Images
from rayapp.errors import TrainingError
from rayapp.vision.augment import Augment
from rayapp.vision.loaders import InMemoryLoader, Loader
from rayapp.vision.loop import EpochReport, StepReport, evaluate, fit
from rayapp.vision.models import build_model
from rayapp.vision.optim import TrainPlan, build_optimizer, resolve_precision
from rayapp.vision.state import TrainState, from_bytes, to_bytes
from tests.support.images import coloured_squares

CPU = torch.device("cpu")
STILL = Augment.from_config(AugmentConfig(crop_padding_px=0, flip=False), height_px=8, flip=False, num_classes=3)
AUGMENT = Augment.from_config(AugmentConfig(crop_padding_px=1), height_px=8, flip=True, num_classes=3)


class Small(nn.Module):
    """A network with a norm and dropout, so that both are tested, on uint8 NHWC images."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.drop, self.head = nn.Dropout(0.1), nn.Linear(8, classes)

    def forward(self, images_nhwc: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(images_nhwc.permute(0, 3, 1, 2).float() / 128 - 1)).relu()
        return self.head(self.drop(x.mean((2, 3))))


def plan_of(*, num_workers: int = 1, **changes: object) -> TrainPlan:
    optim = {"epochs": 4, "batch_size": 16, "lr": 1.0, "label_smoothing": 0.0} | changes
    return TrainPlan.of(OptimConfig(**optim), num_images=96, num_workers=num_workers)  # type: ignore[arg-type]


def new_state(model: nn.Module, plan: TrainPlan) -> TrainState:
    return TrainState.create(model, build_optimizer(model, plan), plan)


def setting(images: Images, plan: TrainPlan) -> tuple[TrainState, Loader, Loader]:
    torch.manual_seed(0)
    train = InMemoryLoader(images, np.arange(80), batch_size=plan.batch_size, device=CPU, augment=AUGMENT)
    validation = InMemoryLoader(images, np.arange(80, 96), batch_size=16, device=CPU)
    return new_state(Small(), plan), train, validation


def run(state: TrainState, train: Loader, validation: Loader, **kw: int) -> list[EpochReport]:
    return [r for r in fit(state, train, validation, **kw) if isinstance(r, EpochReport)]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("schedule", ["one_cycle", "cosine"])
def test_it_learns(squares: Images, optimizer: str, schedule: str) -> None:
    lr = {"sgd": 1.0, "adamw": 0.3}[optimizer]
    plan = plan_of(optimizer=optimizer, schedule=schedule, lr=lr, epochs=10)
    state, train, validation = setting(squares, plan)
    reports = run(state, train, validation)
    assert [r.epoch for r in reports] == list(range(1, 11))
    assert reports[-1].val_accuracy == 1.0
    assert reports[-1].val_loss < reports[0].val_loss / 2
    assert reports[-1].is_last


def test_reports_come_every_n_steps_and_name_the_global_step(squares: Images) -> None:
    plan = plan_of(epochs=2)
    state, train, validation = setting(squares, plan)
    steps = [r for r in fit(state, train, validation, report_every_steps=2) if isinstance(r, StepReport)]
    assert [r.step for r in steps] == [2, 4, 6, 8, 10]
    assert [r.epoch for r in steps] == [1, 1, 2, 2, 2]
    assert all(r.num_steps == 10 for r in steps)


def test_F5_the_best_weights_are_kept_not_the_last(squares: Images) -> None:
    plan = plan_of(epochs=6)
    state, train, validation = setting(squares, plan)
    best = None
    for report in fit(state, train, validation):
        if isinstance(report, EpochReport) and report.is_best:
            best = {k: v.clone() for k, v in state.model.state_dict().items()}
            accuracy = report.val_accuracy
    assert best is not None
    assert all(torch.equal(state.best_weights[k], best[k]) for k in best)
    state.model.load_state_dict(state.best_weights)
    assert evaluate(state, validation).accuracy == accuracy == state.best_accuracy


def copied(state: TrainState) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in state.model.state_dict().items()}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_F43_a_run_resumed_at_any_step_ends_with_the_same_bits(
    squares: Images, optimizer: str, accumulate: int
) -> None:
    plan = plan_of(epochs=3, optimizer=optimizer, lr=0.3, accumulate_steps=accumulate)
    whole, train, validation = setting(squares, plan)
    snapshots = []
    for report in fit(whole, train, validation, report_every_steps=1):
        snapshots.append(to_bytes(whole.snapshot()))
        last = report
    assert isinstance(last, EpochReport)
    expected = copied(whole)
    for content in snapshots[:-1]:
        again, train, validation = setting(squares, plan)
        with torch.no_grad():
            again.model.head.weight.zero_()  # type: ignore[union-attr, operator]  # whatever it starts from
        again.restore(from_bytes(content))
        ended = run(again, train, validation, report_every_steps=1)[-1]
        assert all(torch.equal(expected[name], tensor) for name, tensor in copied(again).items())
        assert (ended.train_loss, ended.train_accuracy) == (last.train_loss, last.train_accuracy)
        assert (again.best_epoch, again.step) == (whole.best_epoch, whole.step)
        assert all(torch.equal(tensor, again.best_weights[name]) for name, tensor in whole.best_weights.items())


def test_a_snapshot_does_not_change_while_training_goes_on(squares: Images) -> None:
    plan = plan_of(epochs=2)
    state, train, validation = setting(squares, plan)
    reports = fit(state, train, validation, report_every_steps=1)
    next(reports)
    snapshot = state.snapshot()
    before = to_bytes(snapshot)
    for _ in reports:
        pass
    assert to_bytes(snapshot) == before


def test_weights_that_are_not_finite_are_never_snapshot(squares: Images) -> None:
    state, *_ = setting(squares, plan_of())
    with torch.no_grad():
        state.model.head.bias.fill_(math.nan)  # type: ignore[union-attr, operator]
    with pytest.raises(TrainingError, match=r"weights are not finite at step 0; lower --optim\.lr"):
        state.snapshot()


def test_the_backbone_thaws_after_its_frozen_epochs(squares: Images) -> None:
    plan = plan_of(epochs=3)
    torch.manual_seed(0)
    train = InMemoryLoader(squares, np.arange(80), batch_size=16, device=CPU, augment=AUGMENT)
    model = build_model(ModelConfig(name="resnet9"), num_classes=3, image_px=8, mean=(0.5,) * 3, std=(0.25,) * 3)
    state = new_state(model, plan)
    wrapped, before = [], copied(state)
    changed: list[set[str]] = []

    def distribute(network: nn.Module) -> nn.Module:
        wrapped.append(sum(p.requires_grad for p in network.parameters()))
        return network

    for report in fit(state, train, train, distribute=distribute, frozen_epochs=2):
        if isinstance(report, EpochReport):
            now = copied(state)
            changed.append({name for name in now if not torch.equal(now[name], before[name])})
    assert len(wrapped) == 2  # DDP has to learn of the thawed parameters
    assert wrapped[0] < wrapped[1] == len(list(model.parameters()))
    head = changed[0]
    assert changed[1] == head
    assert 0 < len(head) <= 2
    assert len(changed[2]) > len(head)


def test_gradient_accumulation_is_the_same_as_a_larger_batch() -> None:
    images = coloured_squares(96)
    results = []
    for batch_size, accumulate in ((32, 1), (16, 2)):
        plan = plan_of(epochs=2, batch_size=batch_size, accumulate_steps=accumulate)
        torch.manual_seed(0)
        train = InMemoryLoader(images, np.arange(96), batch_size=batch_size, device=CPU, augment=STILL)
        model = nn.Sequential(nn.Flatten(), Scale(), nn.Linear(8 * 8 * 3, 3))  # no norm: batches do not interact
        state = new_state(model, plan)
        run(state, train, train)
        results.append(model[2].weight.detach().clone())
        assert state.step == 6
    assert torch.allclose(results[0], results[1], atol=1e-5)


class Scale(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float() / 255


def test_early_stopping_ends_after_patience_epochs_without_gain(squares: Images) -> None:
    plan = replace(plan_of(epochs=50, early_stop_patience=3), lr=0.0)
    state, train, validation = setting(squares, plan)
    for module in state.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    reports = run(state, train, validation)  # nothing changes, so only the first epoch is a gain
    assert len(reports) == 4
    assert reports[-1].is_last


def test_F25_norms_and_biases_have_no_weight_decay(squares: Images) -> None:
    state, *_ = setting(squares, plan_of(weight_decay=0.1))
    decayed = {id(p) for g in state.optimizer.param_groups if g["weight_decay"] > 0 for p in g["params"]}
    model = state.model
    assert isinstance(model, Small)
    assert decayed == {id(model.conv.weight), id(model.head.weight)}


@pytest.mark.parametrize(("schedule", "start"), [("one_cycle", 1 / 25), ("cosine", 0.0)])
def test_schedules_rise_to_the_peak_and_fall_to_zero(schedule: str, start: float) -> None:
    plan = plan_of(schedule=schedule)
    rates = [plan.lr_at(step / 1000) / plan.peak_lr for step in range(1001)]
    assert max(rates) == pytest.approx(1.0, abs=1e-3)
    assert rates[0] == start
    assert rates[-1] < 1e-5
    top = int(np.argmax(rates))
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_the_learning_rate_follows_the_world_batch() -> None:
    plan = plan_of(lr=0.4, accumulate_steps=2)
    for world in (1, 2, 4):
        assert plan.shared_by(world).peak_lr == pytest.approx(0.4 * 16 * world * 2 / 256)


@pytest.mark.parametrize(("num_images", "epochs"), [(45_000, 13), (1_300, 20), (200_000, 8)])
def test_epochs_follow_the_number_of_images(num_images: int, epochs: int) -> None:
    assert TrainPlan.of(OptimConfig(), num_images).epochs == epochs
    assert TrainPlan.of(OptimConfig(epochs=2), num_images).epochs == 2


def test_a_set_smaller_than_a_batch_is_one_smaller_batch_of_each_worker() -> None:
    assert TrainPlan.of(OptimConfig(batch_size=128), num_images=100, num_workers=2).batch_size == 50
    assert TrainPlan.of(OptimConfig(), num_images=1_300, num_workers=2).batch_size == 32


def test_defaults_of_the_optimiser_follow_its_name() -> None:
    sgd = TrainPlan.of(OptimConfig(), 45_000)
    adamw = TrainPlan.of(OptimConfig(optimizer="adamw", schedule="cosine"), 45_000)

    assert (sgd.lr, sgd.weight_decay, sgd.warmup) == (0.4, 5e-4, 0.25)
    assert (adamw.lr, adamw.weight_decay, adamw.warmup) == (0.003, 0.05, 0.05)
    assert TrainPlan.of(OptimConfig(lr=0.1, weight_decay=0, warmup_fraction=0), 45_000).weight_decay == 0


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(squares: Images) -> None:
    plan = plan_of(lr=1e30, epochs=3)
    state, train, validation = setting(squares, plan)
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step \d+; lower --optim.lr"):
        run(state, train, validation, report_every_steps=1)


def test_a_checkpoint_of_another_model_is_refused_with_a_sentence(squares: Images) -> None:
    state, *_ = setting(squares, plan_of())
    other = new_state(Small(classes=5), plan_of())
    with pytest.raises(TrainingError, match="does not fit this run"):
        other.restore(state.snapshot())


def test_half_precision_is_refused_on_a_cpu() -> None:
    assert resolve_precision("auto", CPU) == torch.float32
    with pytest.raises(TrainingError, match="for CUDA devices"):
        resolve_precision("bf16", CPU)


def test_F36_the_device_is_waited_for_once_a_report_not_once_a_batch(
    squares: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs = 0
    real = torch.Tensor.tolist

    def counting(self: torch.Tensor) -> object:
        nonlocal syncs
        syncs += 1
        return real(self)

    def forbidden(self: torch.Tensor) -> float:
        raise AssertionError("item() waits for the device")

    plan = plan_of(epochs=2)
    state, train, validation = setting(squares, plan)
    monkeypatch.setattr(torch.Tensor, "tolist", counting)
    monkeypatch.setattr(torch.Tensor, "item", forbidden)
    run(state, train, validation, report_every_steps=5)
    assert syncs == 2 * 3  # an epoch: one step report, training means, validation means
    assert math.isfinite(state.best_loss)
