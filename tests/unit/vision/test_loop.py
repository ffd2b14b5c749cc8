from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rayapp.config import OptimConfig
from rayapp.errors import TrainingError
from rayapp.vision.augment import Augment
from rayapp.vision.batches import Batches
from rayapp.vision.datasets import Images
from rayapp.vision.loop import EpochReport, StepReport, TrainState, evaluate, fit, resolve_precision
from tests.unit.vision.conftest import coloured_squares

CPU = torch.device("cpu")
AUGMENT = Augment(crop_padding_px=1, flip=True, cutout_px=0)


class Small(nn.Module):
    """A network with a norm and dropout, so that both are tested, on uint8 NHWC images."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.drop, self.head = nn.Dropout(0.1), nn.Linear(8, classes)

    def forward(self, images_nhwc: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(images_nhwc.permute(0, 3, 1, 2).float() / 128 - 1)).relu()
        return self.head(self.drop(x.mean((2, 3))))


def optim(**changes: object) -> OptimConfig:
    return OptimConfig(**({"epochs": 4, "batch_size": 16, "lr": 1.0, "label_smoothing": 0.0} | changes))  # type: ignore[arg-type]


def setting(images: Images, config: OptimConfig) -> tuple[TrainState, Batches, Batches]:
    torch.manual_seed(0)
    train = Batches(images, np.arange(80), batch_size=config.batch_size, device=CPU, augment=AUGMENT)
    validation = Batches(images, np.arange(80, 96), batch_size=16, device=CPU)
    return TrainState.create(Small(), train, config), train, validation


def run(state: TrainState, train: Batches, validation: Batches, config: OptimConfig, **kw: int) -> list[EpochReport]:
    return [r for r in fit(state, train, validation, config, **kw) if isinstance(r, EpochReport)]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("schedule", ["one_cycle", "cosine"])
def test_it_learns(squares: Images, optimizer: str, schedule: str) -> None:
    lr = {"sgd": 1.0, "adamw": 0.3}[optimizer]
    config = optim(optimizer=optimizer, schedule=schedule, lr=lr, epochs=10)
    state, train, validation = setting(squares, config)
    reports = run(state, train, validation, config)
    assert [r.epoch for r in reports] == list(range(1, 11))
    assert reports[-1].val_accuracy == 1.0
    assert reports[-1].val_loss < reports[0].val_loss / 2
    assert reports[-1].is_last


def test_reports_come_every_n_steps_and_name_the_global_step(squares: Images) -> None:
    config = optim(epochs=2)
    state, train, validation = setting(squares, config)
    steps = [r for r in fit(state, train, validation, config, report_every_steps=2) if isinstance(r, StepReport)]
    assert [r.step for r in steps] == [2, 4, 6, 8, 10]
    assert [r.epoch for r in steps] == [1, 1, 2, 2, 2]
    assert all(r.num_steps == 10 for r in steps)


def test_F5_the_best_weights_are_kept_not_the_last(squares: Images) -> None:
    config = optim(epochs=6)
    state, train, validation = setting(squares, config)
    best = None
    for report in fit(state, train, validation, config):
        if isinstance(report, EpochReport) and report.is_best:
            best = {k: v.clone() for k, v in state.model.state_dict().items()}
            accuracy = report.val_accuracy
    assert best is not None
    assert all(torch.equal(state.best_weights[k], best[k]) for k in best)
    state.model.load_state_dict(state.best_weights)
    assert evaluate(state, validation).accuracy == accuracy == state.best_accuracy


def test_F43_a_resumed_run_ends_with_the_same_weights(squares: Images, tmp_path: Path) -> None:
    config = optim(epochs=5)
    whole, train, validation = setting(squares, config)
    run(whole, train, validation, config)

    first, train, validation = setting(squares, config)
    for report in fit(first, train, validation, config):
        if isinstance(report, EpochReport) and report.epoch == 2:
            first.save(tmp_path)
            break
    second, train, validation = setting(squares, config)
    with torch.no_grad():
        second.model.head.weight.zero_()  # whatever it starts from, restore() replaces it
    second.restore(tmp_path)
    reports = run(second, train, validation, config)
    assert [r.epoch for r in reports] == [3, 4, 5]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name
    assert second.best_epoch == whole.best_epoch


def test_gradient_accumulation_is_the_same_as_a_larger_batch() -> None:
    images = coloured_squares(96)
    results = []
    for batch_size, accumulate in ((32, 1), (16, 2)):
        config = optim(epochs=2, batch_size=batch_size, accumulate_steps=accumulate)
        torch.manual_seed(0)
        still = Augment(0, False, 0)
        train = Batches(images, np.arange(96), batch_size=batch_size, device=CPU, augment=still)
        model = nn.Sequential(nn.Flatten(), Scale(), nn.Linear(8 * 8 * 3, 3))  # no norm: batches do not interact
        state = TrainState.create(model, train, config)
        run(state, train, train, config)
        results.append(model[2].weight.detach().clone())
        assert state.schedule.last_epoch == 6
    assert torch.allclose(results[0], results[1], atol=1e-5)


class Scale(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float() / 255


def test_early_stopping_ends_after_patience_epochs_without_gain(squares: Images) -> None:
    config = optim(epochs=50, early_stop_patience=3)
    state, train, validation = setting(squares, config)
    for group in state.optimizer.param_groups:
        group["lr"] = group["initial_lr"] = 0.0
    state.schedule.base_lrs = [0.0, 0.0]
    for module in state.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    reports = run(state, train, validation, config)  # nothing changes, so only the first epoch is a gain
    assert len(reports) == 4
    assert reports[-1].is_last


def test_F25_norms_and_biases_have_no_weight_decay(squares: Images) -> None:
    state, *_ = setting(squares, optim(weight_decay=0.1))
    decayed = {id(p) for g in state.optimizer.param_groups if g["weight_decay"] > 0 for p in g["params"]}
    model = state.model
    assert isinstance(model, Small)
    assert decayed == {id(model.conv.weight), id(model.head.weight)}


def test_schedules_rise_to_the_peak_and_fall_to_zero(squares: Images) -> None:
    for schedule, start in (("one_cycle", 1 / 25), ("cosine", 0.0)):
        config = optim(schedule=schedule, epochs=40, lr=256 / 16)  # peak rate 1.0 at this batch size
        state, *_ = setting(squares, config)
        factor = state.schedule.lr_lambdas[0]
        rates = [factor(step) for step in range(200)]
        assert max(rates) == pytest.approx(1.0, abs=1e-3)
        assert start <= rates[0] < start + 0.15
        assert rates[-1] < 1e-3
        top = int(np.argmax(rates))
        assert rates[:top] == sorted(rates[:top])
        assert rates[top:] == sorted(rates[top:], reverse=True)


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(squares: Images) -> None:
    config = optim(lr=1e30, epochs=3)
    state, train, validation = setting(squares, config)
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step \d+; lower --optim.lr"):
        run(state, train, validation, config, report_every_steps=1)


def test_a_checkpoint_of_another_model_is_refused_with_a_sentence(squares: Images, tmp_path: Path) -> None:
    state, *_ = setting(squares, optim())
    state.save(tmp_path)
    other = TrainState.create(Small(classes=5), setting(squares, optim())[1], optim())
    with pytest.raises(TrainingError, match="does not fit this run"):
        other.restore(tmp_path)


def test_a_failed_save_leaves_the_checkpoint_before_it(
    squares: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, *_ = setting(squares, optim())
    state.save(tmp_path)
    good = (tmp_path / "state.pt").read_bytes()

    def full_disk(content: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        state.save(tmp_path)
    assert (tmp_path / "state.pt").read_bytes() == good


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

    config = optim(epochs=2)
    state, train, validation = setting(squares, config)
    monkeypatch.setattr(torch.Tensor, "tolist", counting)
    monkeypatch.setattr(torch.Tensor, "item", forbidden)
    run(state, train, validation, config, report_every_steps=5)
    assert syncs == 2 * 3  # an epoch: one step report, training means, validation means
    assert math.isfinite(state.best_loss)
