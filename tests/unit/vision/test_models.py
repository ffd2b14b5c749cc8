from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rayapp.config.train import ModelConfig
from rayapp.data.preprocess import PreprocessSpec
from rayapp.errors import ConfigError
from rayapp.vision.bundle import export_onnx
from rayapp.vision.models import (
    ARCHITECTURES,
    Classifier,
    build_model,
    count_parameters,
    load_weights,
    set_frozen,
    train_mode,
)

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
HEADS = {"resnet18": "fc", "resnet9": "head"}  # of the others "classifier.3"


def model(name: str, *, px: int = 32, classes: int = 7, mean: tuple[float, ...] = MEAN, **settings: Any) -> Classifier:
    config = ModelConfig(name=name, **settings)  # type: ignore[arg-type]
    return build_model(config, num_classes=classes, image_px=px, mean=mean, std=STD)


def images(n: int = 4, px: int = 32) -> Tensor:
    return torch.randint(0, 256, (n, px, px, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def head_weights(name: str) -> set[str]:
    """The names of the head's weights, spelt out: what the code finds by itself."""
    head = f"backbone.{HEADS.get(name, 'classifier.3')}"
    return {f"{head}.weight", f"{head}.bias"} - ({"backbone.head.bias"} if name == "resnet9" else set())


@pytest.mark.parametrize("px", [28, 32, 96])
@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_architecture_takes_uint8_images_of_every_size(name: str, px: int) -> None:
    images_nhwc = torch.randint(0, 256, (2, px, px, 3), dtype=torch.uint8)
    assert model(name, px=px)(images_nhwc).shape == (2, 7)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_F11_small_images_keep_more_than_one_pixel_to_the_last_block(name: str) -> None:
    net = model(name).eval()
    sizes = []
    last = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size[0] > 1][-1]
    last.register_forward_hook(lambda *args: sizes.append(args[2].shape[-1]))
    net(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))
    assert sizes[0] >= 2


def test_F1_normalisation_is_the_first_layer_and_travels_with_the_weights() -> None:
    net = model("mobilenet_v3_small")
    seen = []
    net.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    net.eval()(torch.full((1, 32, 32, 3), 128, dtype=torch.uint8))
    expected = [(128 / 255 - m) / s for m, s in zip(MEAN, STD, strict=True)]
    assert seen[0][0, :, 5, 5].tolist() == pytest.approx(expected, rel=1e-5)
    assert {"mean_3", "std_3"} <= set(net.state_dict())


def test_batches_reach_the_backbone_in_channels_last_order() -> None:
    net = model("resnet18").eval()
    seen = []
    net.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    net(torch.zeros(2, 32, 32, 3, dtype=torch.uint8))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


@pytest.fixture
def local_weights(tmp_path, monkeypatch):  # type: ignore[no-untyped-def]
    """torchvision's download cache with (random) weight files in it: what a machine that was online once has."""
    import torchvision.models as tv

    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    torch.manual_seed(1)
    for build, weights in (
        (tv.resnet18, tv.ResNet18_Weights.IMAGENET1K_V1),
        (tv.mobilenet_v3_small, tv.MobileNet_V3_Small_Weights.IMAGENET1K_V1),
    ):
        torch.save(build(weights=None).state_dict(), folder / weights.url.rsplit("/", 1)[-1])
    # the hash in the file name is checked only after a download
    return folder


def test_F9_pretrained_weights_are_kept_but_for_the_head(local_weights) -> None:  # type: ignore[no-untyped-def]
    net = model("mobilenet_v3_small", pretrained=True)
    saved = torch.load(next(local_weights.glob("mobilenet*")), weights_only=True)
    assert torch.equal(net.backbone.classifier[0].weight, saved["classifier.0.weight"])
    assert net.backbone.classifier[-1].out_features == 7


def test_a_frozen_backbone_trains_the_head_alone_and_keeps_its_statistics(local_weights) -> None:  # type: ignore[no-untyped-def]
    net = model("resnet18", pretrained=True, freeze_backbone=True)
    assert count_parameters(net) == 512 * 7 + 7
    before = net.backbone.bn1.running_mean.clone()
    train_mode(net)
    net(torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8))
    assert torch.equal(net.backbone.bn1.running_mean, before)


def test_norms_of_a_model_trained_from_scratch_do_learn_their_statistics() -> None:
    net = model("resnet18")
    before = net.backbone.bn1.running_mean.clone()
    train_mode(net)
    net(torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8))
    assert not torch.equal(net.backbone.bn1.running_mean, before)


def test_there_are_no_pretrained_weights_for_resnet9() -> None:
    with pytest.raises(ConfigError, match=r"no pretrained weights for model.name 'resnet9'; leave --model.pretrained"):
        model("resnet9", pretrained=True)


# --- resnet9 ----------------------------------------------------------------------------------------------------------


def test_resnet9_has_eight_convolutions_and_a_head_without_bias() -> None:
    net = model("resnet9", classes=10)
    assert sum(isinstance(m, nn.Conv2d) for m in net.modules()) == 8
    filters = 9 * (3 * 64 + 64 * 128 + 2 * 128**2 + 128 * 256 + 256 * 512 + 2 * 512**2)
    norms = 2 * (64 + 3 * 128 + 256 + 3 * 512)
    assert count_parameters(net) == filters + norms + 512 * 10


@pytest.mark.parametrize(("px", "last_px"), [(28, 3), (32, 4), (64, 8), (96, 3), (224, 7)])
def test_resnet9_keeps_a_few_places_to_the_last_block_at_any_size(px: int, last_px: int) -> None:
    net = model("resnet9", px=px).to("meta")
    last = [m for m in net.modules() if isinstance(m, nn.Conv2d)][-1]
    sizes = []
    last.register_forward_hook(lambda *args: sizes.append(args[2].shape[-2:]))
    net(torch.zeros(2, px, px, 3, dtype=torch.uint8, device="meta"))
    assert sizes == [(last_px, last_px)]


def test_resnet9_exports_to_a_graph_with_the_same_logits(tmp_path: Path) -> None:
    net = model("resnet9", px=28)
    net(images(16, 28))  # statistics that are not those of the first step
    export_onnx(net.eval(), tmp_path / "model.onnx", PreprocessSpec(height_px=28, width_px=28))  # checks the logits
    assert (tmp_path / "model.onnx").stat().st_size > 4 * count_parameters(net)


def test_resnet9_learns_two_colours_in_a_few_steps() -> None:
    torch.manual_seed(0)
    net = model("resnet9", px=8, classes=2)
    images_nhwc = images(32, 8) // 2
    labels_n = torch.arange(32) % 2
    images_nhwc[labels_n == 1] += 100
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    losses = []
    for _ in range(5):
        loss = nn.functional.cross_entropy(net(images_nhwc), labels_n)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_resnet9_computes_in_bfloat16_nearly_the_same() -> None:
    net = model("resnet9", px=16).eval()
    with torch.inference_mode():
        expected_nk = net(images(2, 16))
        with torch.autocast("cpu", torch.bfloat16):
            logits_nk = net(images(2, 16))
    assert torch.allclose(logits_nk.float(), expected_nk, atol=0.05 * float(expected_nk.abs().max()))


# --- fine-tuning ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_weights_of_the_same_classes_give_the_same_model(name: str) -> None:
    old, new = model(name, px=28), model(name, px=28, mean=(0.1, 0.2, 0.3))
    load_weights(new, old.state_dict(), same_classes=True)
    assert torch.equal(new.eval()(images(2, 28)), old.eval()(images(2, 28)))  # with the old normalisation too


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_weights_of_other_classes_leave_the_head_alone(name: str) -> None:
    old, new = model(name, px=28, classes=7), model(name, px=28, classes=5)
    own = {key: tensor.clone() for key, tensor in new.state_dict().items()}
    load_weights(new, old.state_dict(), same_classes=False)
    for key, tensor in new.state_dict().items():
        assert torch.equal(tensor, own[key] if key in head_weights(name) else old.state_dict()[key]), key


def test_as_many_other_classes_leave_the_head_alone_too() -> None:
    old, new = model("resnet9"), model("resnet9")
    own_kc = new.backbone.head.weight.detach().clone()  # type: ignore[union-attr,operator]
    load_weights(new, old.state_dict(), same_classes=False)
    assert torch.equal(new.backbone.head.weight, own_kc)  # type: ignore[union-attr,arg-type]


def test_loaded_weights_are_copies_in_channels_last_order() -> None:
    old, new = model("resnet9"), model("resnet9")
    load_weights(new, {k: v.contiguous() for k, v in old.state_dict().items()}, same_classes=True)
    filters = [m for m in new.modules() if isinstance(m, nn.Conv2d)][1].weight
    assert filters.is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        filters.zero_()
    assert [m for m in old.modules() if isinstance(m, nn.Conv2d)][1].weight.abs().sum() > 0


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (("resnet18", 32, 7), ("resnet9", 32, 7), r"'backbone.features.0.0.weight' is missing there and 64x3x3x3 here"),
        (
            ("resnet18", 96, 7),
            ("resnet18", 32, 7),
            r"'backbone.conv1.weight' is 64x3x7x7 there and 64x3x3x3 here \(1",
        ),
        (("resnet9", 32, 5), ("resnet9", 32, 7), r"'backbone.head.weight' is 5x512 there and 7x512 here"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    old: tuple[str, int, int], new: tuple[str, int, int], sentence: str
) -> None:
    (old_name, old_px, old_classes), (new_name, new_px, new_classes) = old, new
    weights = model(old_name, px=old_px, classes=old_classes).state_dict()
    net = model(new_name, px=new_px, classes=new_classes)
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    with pytest.raises(ConfigError, match=f"the weights of model.init do not fit this model: {sentence}"):
        load_weights(net, weights, same_classes=True)
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_freezing_leaves_the_head_to_learn_and_can_be_undone(name: str) -> None:
    net = model(name)
    weights = dict(net.named_parameters())
    set_frozen(net, True)
    assert {key for key, weight in weights.items() if weight.requires_grad} == head_weights(name)
    set_frozen(net, False)
    assert all(weight.requires_grad for weight in weights.values())


@pytest.mark.parametrize("settings", [{"freeze_backbone": True}, {"frozen_epochs": 2}])
def test_a_model_that_is_to_be_frozen_is_built_frozen(settings: dict[str, Any]) -> None:
    net = model("resnet9", init="models:/vision@champion", **settings)
    assert count_parameters(net) == 512 * 7


def test_norms_keep_their_statistics_while_frozen_and_learn_them_afterwards() -> None:
    net = model("resnet9")
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    set_frozen(net, True)
    train_mode(net)
    net(images())
    assert all(int(norm.num_batches_tracked) == 0 for norm in norms)
    set_frozen(net, False)
    train_mode(net)
    net(images())
    assert all(int(norm.num_batches_tracked) == 1 for norm in norms)


def test_synchronised_norms_are_frozen_too() -> None:
    net = nn.SyncBatchNorm.convert_sync_batchnorm(model("resnet9"))
    set_frozen(net, True)
    train_mode(net)
    norms = [m for m in net.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert len(norms) == 8
    assert not any(norm.training for norm in norms)


def test_an_optimiser_made_while_frozen_moves_the_backbone_once_it_is_not() -> None:
    net = model("resnet9", px=8)
    set_frozen(net, True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    backbone = next(net.backbone.parameters())
    for frozen in (True, False):
        set_frozen(net, frozen)
        before = backbone.detach().clone()
        nn.functional.cross_entropy(net(images(4, 8)), torch.arange(4)).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert torch.equal(backbone, before) == frozen
