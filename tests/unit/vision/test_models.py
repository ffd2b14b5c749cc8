from __future__ import annotations

import pytest
import torch

from rayapp.config import ModelConfig
from rayapp.vision.models import ARCHITECTURES, Classifier, build_model, count_parameters, train_mode

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)


def model(name: str, *, px: int = 32, **settings: bool) -> Classifier:
    config = ModelConfig(name=name, **settings)  # type: ignore[arg-type]
    return build_model(config, num_classes=7, image_px=px, mean=MEAN, std=STD)


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
