"""Heat maps: on a small network that has learned to tell colours, and on every architecture."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from rayapp.config.train import ModelConfig
from rayapp.data.preprocess import PreprocessSpec
from rayapp.errors import BundleError, ImageError
from rayapp.vision.bundle import GRAPH, MANIFEST, WEIGHTS, Bundle, file_digest
from rayapp.vision.explain import Explainer, Explanation, overlay
from rayapp.vision.models import ARCHITECTURES, Classifier, build_model
from tests.support.bundles import tiny_manifest
from tests.support.images import coloured_squares

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
PX = 32  # side of the images that the colour network sees
QUADRANTS = [(0, 0), (0, 1), (1, 0), (1, 1)]


# --- a network that has learned to tell colours -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def colours() -> Classifier:
    """A network with maps of 16, 8 and 4 cells a side, which knows red, green and blue noise."""
    torch.manual_seed(0)
    widths = (3, 8, 16, 32)
    blocks = [
        nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1), nn.BatchNorm2d(b), nn.ReLU(inplace=True))
        for a, b in pairwise(widths)
    ]
    model = Classifier(nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3)), MEAN, STD)
    data = coloured_squares(48, px=PX)
    images_nhwc, labels_n = torch.tensor(data.images_nhwc), torch.tensor(data.labels_n)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.02)
    for _ in range(25):
        loss = nn.functional.cross_entropy(model(images_nhwc), labels_n)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.1
    optimiser.zero_grad(set_to_none=True)
    return model.eval()


def mosaic(colour: int, quadrant: tuple[int, int], *, elsewhere: int) -> np.ndarray:
    """An image that has one colour in a quadrant and another in the other three."""
    (image_hwc,) = coloured_squares(1, px=PX, seed=1).images_nhwc - np.array([100, 0, 0], dtype=np.uint8)
    rows, columns = (slice(at * PX // 2, (at + 1) * PX // 2) for at in quadrant)
    image_hwc[..., elsewhere] += 100
    image_hwc[rows, columns, elsewhere] -= 100
    image_hwc[rows, columns, colour] += 100
    return image_hwc


@pytest.mark.parametrize("colour", [0, 1, 2])
@pytest.mark.parametrize("quadrant", QUADRANTS)
def test_the_heat_of_a_class_lies_where_the_image_shows_it(
    colours: Classifier, colour: int, quadrant: tuple[int, int]
) -> None:
    elsewhere = (colour + 1) % 3
    image_hwc = mosaic(colour, quadrant, elsewhere=elsewhere)
    explainer = Explainer(colours, (PX, PX))

    heat_hw = explainer.explain(image_hwc, colour).heat_hw
    other_hw = explainer.explain(image_hwc, elsewhere).heat_hw

    assert tuple(np.array(np.unravel_index(heat_hw.argmax(), heat_hw.shape)) // (PX // 2)) == quadrant
    rows, columns = (slice(at * PX // 2, (at + 1) * PX // 2) for at in quadrant)
    assert heat_hw[rows, columns].sum() > 0.88 * heat_hw.sum()  # 0.25 is chance, 0.85 what the map of 4x4 cells gives
    assert other_hw[rows, columns].sum() < 0.1 * other_hw.sum()


@pytest.mark.parametrize("colour", [0, 1, 2])
def test_a_class_that_nothing_speaks_for_has_no_heat(colours: Classifier, colour: int) -> None:
    image_hwc = mosaic(colour, (0, 0), elsewhere=colour)
    explainer = Explainer(colours, (PX, PX))

    assert [explainer.explain(image_hwc, index).heat_hw.max() for index in range(3)] == list(np.eye(3)[colour])


def test_the_most_probable_class_is_explained_unless_another_is_named(colours: Classifier) -> None:
    image_hwc = mosaic(0, (0, 0), elsewhere=2)
    explainer = Explainer(colours, (PX, PX))

    first = explainer.explain(image_hwc)

    assert first.index == first.probabilities_k.argmax() == 2
    assert np.array_equal(first.heat_hw, explainer.explain(image_hwc, 2).heat_hw)
    assert explainer.explain(image_hwc, 0).index == 0
    with torch.inference_mode():
        expected_k = colours(torch.tensor(image_hwc[None])).softmax(1)[0].numpy()
    assert first.probabilities_k == pytest.approx(expected_k, abs=1e-6)
    assert first.probabilities_k.dtype == np.float32


def test_nothing_is_left_in_the_model(colours: Classifier) -> None:
    Explainer(colours, (PX, PX)).explain(mosaic(0, (1, 1), elsewhere=1))

    assert [name for name, p in colours.named_parameters() if p.grad is not None or p.requires_grad] == []
    assert [name for name, module in colours.named_modules() if module._forward_hooks] == []


def test_several_threads_get_their_own_answers(colours: Classifier) -> None:
    explainer = Explainer(colours, (PX, PX))
    asked = [(mosaic(c, q, elsewhere=(c + 2) % 3), c) for c in range(3) for q in QUADRANTS] * 4
    expected = [explainer.explain(*question) for question in asked]

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda question: explainer.explain(*question), asked))

    for got, wanted in zip(answers, expected, strict=True):
        assert got.index == wanted.index
        assert got.heat_hw == pytest.approx(wanted.heat_hw, abs=1e-5)
    assert len({answer.heat_hw.tobytes() for answer in expected}) == 12  # they could be told apart


# --- every architecture -----------------------------------------------------------------------------------------------


def untrained(name: str, px: int) -> Classifier:
    torch.manual_seed(0)
    config = ModelConfig(name=name)  # type: ignore[arg-type]
    return build_model(config, num_classes=7, image_px=px, mean=MEAN, std=STD).eval()


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def check(answer: Explanation, height: int, width: int) -> None:
    assert answer.heat_hw.shape == (height, width)
    assert answer.heat_hw.dtype == np.float32
    assert np.isfinite(answer.heat_hw).all()
    assert answer.heat_hw.min() >= 0
    assert answer.heat_hw.max() in (0, 1)
    assert answer.probabilities_k.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("height", "width"), [(28, 28), (32, 32), (224, 224), (40, 96)])
@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_architecture_is_explained_at_every_size(name: str, height: int, width: int) -> None:
    explainer = Explainer(untrained(name, min(height, width)), (height, width))

    answers = [explainer.explain(noise(height, width), index) for index in range(7)]

    for answer in answers:
        check(answer, height, width)
    assert max(answer.heat_hw.max() for answer in answers) == 1  # not all of them are empty


def test_an_image_that_cannot_be_written_to_is_explained_as_well() -> None:
    image_hwc = np.asarray(Image.fromarray(noise(32, 32)))  # as decoding gives it
    assert not image_hwc.flags.writeable

    check(Explainer(untrained("mobilenet_v3_small", 32), (32, 32)).explain(image_hwc), 32, 32)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_dead_maps_give_no_heat(name: str) -> None:
    model = untrained(name, 32)
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.zero_()

    answer = Explainer(model, (32, 32)).explain(noise(32, 32))

    check(answer, 32, 32)
    assert answer.heat_hw.max() == 0


# --- bundles ----------------------------------------------------------------------------------------------------------


def bundle(folder: Path, *, px: int = 32) -> Bundle:
    """A bundle without a graph, which explaining has no use for."""
    save_file({k: v.contiguous() for k, v in untrained("resnet18", px).state_dict().items()}, folder / WEIGHTS)
    return sealed(folder, px)


def sealed(folder: Path, px: int = 32) -> Bundle:
    (folder / GRAPH).write_bytes(b"")
    manifest = tiny_manifest(
        model=ModelConfig(name="resnet18"),
        preprocess=PreprocessSpec(height_px=px, width_px=px),
        class_names=tuple("abcdefg"),
        mean=MEAN,
        std=STD,
        files={name: file_digest(folder / name) for name in (WEIGHTS, GRAPH)},
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(), encoding="utf-8")
    return Bundle.open(folder)


def test_a_bundle_is_explained_with_its_weights(tmp_path: Path) -> None:
    explainer = Explainer.load(bundle(tmp_path))

    answer = explainer.explain(noise(32, 32))

    check(answer, 32, 32)
    with torch.inference_mode():
        expected_k = untrained("resnet18", 32)(torch.tensor(noise(32, 32)[None])).softmax(1)[0].numpy()
    assert answer.probabilities_k == pytest.approx(expected_k, abs=1e-5)


def test_weights_that_are_none_are_a_bundle_error(tmp_path: Path) -> None:
    (tmp_path / WEIGHTS).write_bytes(b"no weights")

    with pytest.raises(BundleError, match=f"{WEIGHTS} does not fit resnet18"):
        Explainer.load(sealed(tmp_path))


def test_images_too_small_for_a_map_are_a_bundle_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="1x1 images have one cell"):
        Explainer.load(bundle(tmp_path, px=1))


# --- pictures ---------------------------------------------------------------------------------------------------------


def opened(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png))
    assert (image.format, image.mode) == ("PNG", "RGB")
    return image


def ramp(height: int, width: int) -> np.ndarray:
    """Heat that rises from left to right."""
    return np.broadcast_to(np.linspace(0, 1, width, dtype=np.float32), (height, width)).copy()


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((32, 32), (224, 224)),
        ((28, 56), (112, 224)),
        ((224, 100), (224, 100)),
        ((300, 200), (300, 200)),
        ((512, 512), (512, 512)),
        ((2000, 1000), (512, 256)),
        ((3, 3000), (1, 512)),
        ((1, 1), (224, 224)),
    ],
)
def test_the_picture_has_a_size_that_people_can_look_at(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert opened(overlay(Image.new("RGB", size, "teal"), ramp(32, 32))).size == expected


def test_pixels_of_tiny_images_stay_squares() -> None:
    picture = np.asarray(opened(overlay(Image.fromarray(noise(28, 28)), np.zeros((28, 28), np.float32))))

    blocks = picture.reshape(28, 8, 28, 8, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 700


@pytest.mark.parametrize("grey", [0, 60, 128, 255])
def test_more_heat_is_brighter_and_none_is_the_image_but_darker(grey: int) -> None:
    picture = np.asarray(opened(overlay(Image.new("L", (256, 16), grey), ramp(16, 256))).convert("L")).astype(int)
    row = picture[8]

    if grey < 100:
        assert (np.diff(row) >= -1).all()
        assert row[-1] - row[0] > 100
    assert row[0] <= grey
    assert np.corrcoef(row, np.arange(256))[0, 1] > 0


def test_the_image_is_seen_under_the_heat() -> None:
    shown = [
        np.asarray(opened(overlay(Image.new("RGB", (64, 64), c), ramp(8, 8)))).astype(int) for c in ("black", "white")
    ]

    assert (shown[1] - shown[0]).min() >= 60


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr"])
@pytest.mark.parametrize("side", [20, 700])
def test_images_of_every_mode_have_a_picture(mode: str, side: int) -> None:
    image = Image.fromarray(noise(side, side))
    image = image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)

    assert opened(overlay(image, ramp(32, 32))).size == ((224, 224) if side == 20 else (512, 512))


def test_images_of_more_than_8_bits_are_refused() -> None:
    with pytest.raises(ImageError, match="more than 8 bits"):
        overlay(Image.new("I;16", (32, 32)), ramp(32, 32))
