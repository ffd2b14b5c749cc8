from __future__ import annotations

import pytest
import torch
import torchvision.models as tv

from rayapp.config.train import ModelConfig
from rayapp.vision.flops import flops_per_image, mfu, peak_flops
from rayapp.vision.models import Classifier, build_model


def model(name: str, px: int, classes: int = 1000) -> Classifier:
    config = ModelConfig(name=name)  # type: ignore[arg-type]
    return build_model(config, num_classes=classes, image_px=px, mean=(0.5,) * 3, std=(0.2,) * 3)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("resnet18", tv.ResNet18_Weights.IMAGENET1K_V1),
        ("mobilenet_v3_small", tv.MobileNet_V3_Small_Weights.IMAGENET1K_V1),
        ("mobilenet_v3_large", tv.MobileNet_V3_Large_Weights.IMAGENET1K_V2),
    ],
)
def test_operations_are_twice_the_multiply_adds_that_torchvision_states(name: str, weights: tv.WeightsEnum) -> None:
    stated = weights.meta["_ops"] * 1e9  # in units of 10**9 multiply-adds, at 224 pixels
    assert flops_per_image(model(name, 224), 224) == pytest.approx(2 * stated, rel=0.03)


def test_operations_of_resnet9_are_those_of_its_filters() -> None:
    places = 3 * 64 * 32**2 + 64 * 128 * 32**2 + (2 * 128**2 + 128 * 256) * 16**2 + 256 * 512 * 8**2 + 2 * 512**2 * 4**2
    assert flops_per_image(model("resnet9", 32, classes=10), 32) == 2 * (9 * places + 512 * 10)


def test_counting_changes_neither_the_model_nor_the_random_numbers() -> None:
    net = model("mobilenet_v3_small", 16)  # its last maps have one place, too few for a norm that trains
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = torch.get_rng_state()
    flops_per_image(net, 16)
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not any(parameter.is_meta for parameter in net.parameters())


def test_a_frozen_model_is_counted_whole() -> None:
    net = model("resnet9", 32)
    assert flops_per_image(net.requires_grad_(False), 32) == flops_per_image(model("resnet9", 32), 32)


@pytest.mark.parametrize(
    ("name", "precision", "tera"),
    [
        ("Tesla T4", torch.float16, 65),
        ("NVIDIA A10G", torch.bfloat16, 70),
        ("NVIDIA L4", torch.float32, 60),
        ("NVIDIA A100-SXM4-40GB", torch.bfloat16, 312),
        ("NVIDIA A100 80GB PCIe", torch.float32, 156),
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, 989.5),
        ("NVIDIA H100 PCIe", torch.float16, 756.5),
        ("NVIDIA H200", torch.bfloat16, 989.5),
    ],
)
def test_peak_rates_are_those_of_the_data_sheets(name: str, precision: torch.dtype, tera: float) -> None:
    assert peak_flops(name, precision) == tera * 1e12


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("cpu", torch.float32),
        ("Apple M3", torch.float32),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", torch.bfloat16),
        ("NVIDIA H100 NVL", torch.bfloat16),
        ("NVIDIA A10", torch.bfloat16),
        ("Tesla T4", torch.bfloat16),
    ],
)
def test_an_unknown_gpu_or_precision_has_no_peak_rate(name: str, precision: torch.dtype) -> None:
    assert peak_flops(name, precision) is None


def test_utilisation_counts_the_backward_pass_twice() -> None:
    assert mfu(1_000_000, 5_000.0, num_gpus=2, peak=30e9) == pytest.approx(0.25)
