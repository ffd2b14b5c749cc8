from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor

from rayapp.config.train import AugmentConfig
from rayapp.vision.augment import (
    GREY,
    MAX_SHIFT,
    RANDOM_OPS,
    Augment,
    apply_ops,
    draw_strengths,
    larger_shares,
    mixup,
)

CPU = torch.device("cpu")
ALL = Augment(
    crop_padding_px=4, flip=True, cutout_px=8, random_ops=3, magnitude=0.7, mixup_alpha=0.4, num_classes=5
)  # every change at once


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(n: int = 8, height: int = 16, width: int = 12) -> Tensor:
    return torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8, generator=generator(9))


def labels(n: int) -> Tensor:
    return torch.arange(n) % 5


def changed(augment: Augment, images_nhwc: Tensor, seed: int = 0) -> Tensor:
    return augment(images_nhwc, labels(len(images_nhwc)), generator(seed))[0]


def only(n: int, **strengths: float) -> dict[str, Tensor]:
    """The same strengths for n images; of the other operations 0."""
    return {op: torch.full((n, 1, 1, 1), strengths.get(op, 0.0)) for op in RANDOM_OPS}


# --- crop, flip, cutout -----------------------------------------------------------------------------------------------


def test_crop_and_flip_move_pixels_but_invent_none() -> None:
    images_nhwc = noise() | 1  # no black pixel: the padding is known by its zeros
    before_nhwc = images_nhwc.clone()
    changed_nhwc = changed(Augment(crop_padding_px=2, flip=True, cutout_px=0), images_nhwc)
    assert changed_nhwc.shape == images_nhwc.shape
    assert changed_nhwc.dtype == torch.uint8
    assert changed_nhwc.is_contiguous()
    assert not torch.equal(changed_nhwc, images_nhwc)
    assert torch.equal(images_nhwc, before_nhwc)  # a copy was changed, not the data set
    known = {tuple(pixel) for pixel in images_nhwc[5].reshape(-1, 3).tolist()} | {(0, 0, 0)}
    assert {tuple(pixel) for pixel in changed_nhwc[5].reshape(-1, 3).tolist()} <= known


def test_a_crop_takes_every_place_within_the_padding_equally_often() -> None:
    images_nhwc = torch.zeros(9000, 5, 7, 3, dtype=torch.uint8)
    images_nhwc[:, 2, 3] = 255
    changed_nhwc = changed(Augment(crop_padding_px=1, flip=False, cutout_px=0), images_nhwc)
    _, rows_n, columns_n = torch.nonzero(changed_nhwc[..., 0], as_tuple=True)
    counts = torch.bincount((rows_n - 1) * 3 + columns_n - 2, minlength=9)
    assert counts.sum() == 9000
    assert counts.min() > 850
    assert counts.max() < 1150


def test_a_flip_without_a_crop_is_the_mirror_image_or_the_image() -> None:
    images_nhwc = torch.arange(8 * 3 * 5 * 3, dtype=torch.uint8).reshape(8, 3, 5, 3)
    changed_nhwc = changed(Augment(0, True, 0), images_nhwc, seed=3)
    mirrored = [torch.equal(c, i.flip(1)) for c, i in zip(changed_nhwc, images_nhwc, strict=True)]
    kept = [torch.equal(c, i) for c, i in zip(changed_nhwc, images_nhwc, strict=True)]
    assert all(m or k for m, k in zip(mirrored, kept, strict=True))
    assert any(mirrored)
    assert any(kept)


def test_a_crop_without_a_flip_mirrors_nothing() -> None:
    images_nhwc = torch.full((64, 6, 6, 3), 10, dtype=torch.uint8)
    images_nhwc[:, :, 3:] = 200
    changed_nhw = changed(Augment(1, False, 0), images_nhwc)[..., 0].int()
    assert (changed_nhw[:, :, 4].amax(1) > changed_nhw[:, :, 1].amax(1)).all()


def test_cutout_paints_one_grey_square_at_most_as_large_as_asked() -> None:
    images_nhwc = torch.zeros(256, 8, 40, 3, dtype=torch.uint8)
    painted_nhw = changed(Augment(0, False, 4), images_nhwc)[..., 0] == GREY
    painted_n = painted_nhw.flatten(1).sum(1)
    assert int(painted_n.max()) == 16
    assert int(painted_n.min()) >= 1
    assert painted_nhw.any(0).all()  # a square may lie anywhere


def test_without_any_change_the_images_are_the_same() -> None:
    assert torch.equal(changed(Augment(0, False, 0), noise()), noise())


# --- the settings -----------------------------------------------------------------------------------------------------


def test_digits_are_not_mirrored_unless_asked() -> None:
    digits = {"height_px": 32, "flip": False, "num_classes": 10}
    assert not Augment.from_config(AugmentConfig(), **digits).flip
    assert Augment.from_config(AugmentConfig(flip=True), **digits).flip
    assert Augment.from_config(AugmentConfig(), height_px=32, flip=True, num_classes=10).crop_padding_px == 4


def test_every_setting_reaches_the_images() -> None:
    config = AugmentConfig(
        crop_padding_px=3, flip=True, cutout_px=6, random_ops=2, random_magnitude=0.8, mixup_alpha=0.2
    )
    made = Augment.from_config(config, height_px=32, flip=False, num_classes=5)
    assert made == Augment(3, True, 6, 2, 0.8, 0.2, 5)


# --- RandAugment ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", RANDOM_OPS)
@pytest.mark.parametrize("strength", [-1.0, -0.3, 0.3, 1.0])
def test_every_operation_gives_images_of_the_same_kind_and_changes_them(op: str, strength: float) -> None:
    images_nhwc = noise()
    before_nhwc = images_nhwc.clone()
    changed_nhwc = apply_ops(images_nhwc, only(8, **{op: strength}))
    assert changed_nhwc.shape == images_nhwc.shape
    assert changed_nhwc.dtype == torch.uint8
    assert changed_nhwc.is_contiguous()
    assert torch.equal(changed_nhwc, before_nhwc) == (op == "identity")
    assert torch.equal(images_nhwc, before_nhwc)


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("op", sorted(set(RANDOM_OPS) - {"solarize"}))
def test_no_operation_wraps_around_at_the_ends_of_the_scale(op: str, value: int) -> None:
    flat_nhwc = torch.full((2, 8, 8, 3), value, dtype=torch.uint8)
    for strength in (-1.0, 1.0):
        middle_n3 = apply_ops(flat_nhwc, only(2, **{op: strength}))[:, 4, 4].float()
        allowed = {"brightness": 0.1 * value if strength < 0 else value, "posterize": value // 16 * 16}
        moved_away = op.startswith("translate")  # half of an image of 8 pixels is grey then
        if not moved_away:
            assert middle_n3.flatten().tolist() == pytest.approx([allowed.get(op, value)] * 6, abs=0.5)


@pytest.mark.parametrize("px", [(28, 28), (32, 32), (224, 160)])
def test_strength_0_changes_no_bit(px: tuple[int, int]) -> None:
    images_nhwc = noise(2, *px)
    assert torch.equal(apply_ops(images_nhwc, only(2)), images_nhwc)
    assert torch.equal(changed(Augment(0, False, 0, random_ops=4, magnitude=0.0), images_nhwc), images_nhwc)


@pytest.mark.parametrize("strength", [-1.0, -0.4, 0.4, 1.0])
@pytest.mark.parametrize(
    ("op", "enhance"),
    [
        ("brightness", ImageEnhance.Brightness),
        ("contrast", ImageEnhance.Contrast),
        ("colour", ImageEnhance.Color),
        ("sharpness", ImageEnhance.Sharpness),
    ],
)
def test_colours_change_as_pillow_changes_them(op: str, enhance: type[ImageEnhance._Enhance], strength: float) -> None:
    images_nhwc = noise(2)
    changed_nhwc = apply_ops(images_nhwc, only(2, **{op: strength})).numpy()
    for image_hwc, changed_hwc in zip(images_nhwc.numpy(), changed_nhwc, strict=True):
        expected_hwc = np.asarray(enhance(Image.fromarray(image_hwc)).enhance(1 + 0.9 * strength))  # type: ignore[call-arg]
        # Pillow rounds its grey, smooth and mean images to whole values and cuts off where we round
        assert np.abs(expected_hwc.astype(int) - changed_hwc.astype(int)).max() <= 2


def test_solarize_and_posterize_are_those_of_pillow() -> None:
    image = Image.fromarray(noise(1)[0].numpy())
    solarized_hwc = apply_ops(noise(1), only(1, solarize=0.4))[0].numpy()
    assert np.array_equal(solarized_hwc, np.asarray(ImageOps.solarize(image, 154)))  # 153 = 0.6 * 255 stays
    for strength, bits in ((1.0, 4), (-0.5, 6), (0.3, 7), (0.1, 8)):
        posterized_hwc = apply_ops(noise(1), only(1, posterize=strength))[0].numpy()
        assert np.array_equal(posterized_hwc, np.asarray(ImageOps.posterize(image, bits)))


def test_rotation_and_shear_are_those_of_pillow() -> None:
    smooth = Image.fromarray(noise(1, 48, 32)[0].numpy()).filter(ImageFilter.GaussianBlur(4))
    image_nhwc = torch.from_numpy(np.asarray(smooth).copy())[None]
    rotated_hwc = apply_ops(image_nhwc, only(1, rotate=1.0))[0].numpy()
    turned = smooth.rotate(30, Image.Resampling.BILINEAR, fillcolor=(GREY,) * 3)
    assert np.abs(np.asarray(turned)[8:-8, 8:-8].astype(int) - rotated_hwc[8:-8, 8:-8]).max() <= 3
    sheared_hwc = apply_ops(image_nhwc, only(1, shear_x=0.5))[0].numpy()
    moved = (1, 0.15, -0.15 * 24, 0, 1, 0)  # about the middle row
    leaning = smooth.transform((32, 48), Image.Transform.AFFINE, moved, Image.Resampling.BILINEAR)
    assert np.abs(np.asarray(leaning)[8:-8, 8:-8].astype(int) - sheared_hwc[8:-8, 8:-8]).max() <= 3


@pytest.mark.parametrize(("op", "axis", "px"), [("translate_x", 1, 40), ("translate_y", 0, 20)])
def test_a_shift_is_a_part_of_the_side_and_leaves_grey(op: str, axis: int, px: int) -> None:
    image_nhwc = noise(1, 20, 40)
    strength = 5 / px / MAX_SHIFT  # 5 pixels
    shifted_hwc = apply_ops(image_nhwc, only(1, **{op: strength}))[0]
    length = px - 5
    assert torch.equal(shifted_hwc.narrow(axis, 0, length), image_nhwc[0].narrow(axis, 5, length))
    assert set(shifted_hwc.narrow(axis, length, 5).flatten().tolist()) == {GREY}


def test_each_image_draws_its_own_operations_at_plus_or_minus_the_magnitude() -> None:
    strength = draw_strengths(2000, generator(), CPU, num_ops=3, magnitude=0.4)
    strength_no = torch.cat([strength[op].flatten(1) for op in RANDOM_OPS], 1)
    assert (strength_no.count_nonzero(1) == 3).all()
    assert strength_no.abs().unique().tolist() == pytest.approx([0.0, 0.4])
    drawn_o = strength_no.count_nonzero(0) / 2000
    assert drawn_o.tolist() == pytest.approx([3 / len(RANDOM_OPS)] * len(RANDOM_OPS), abs=0.05)
    assert float((strength_no > 0).float().mean() / (strength_no != 0).float().mean()) == pytest.approx(0.5, abs=0.03)


def test_operations_of_one_image_do_not_touch_its_neighbour() -> None:
    strengths = [draw_strengths(1, generator(seed), CPU, num_ops=4, magnitude=0.9) for seed in range(8)]
    together = {op: torch.cat([strength[op] for strength in strengths]) for op in RANDOM_OPS}
    alone_nhwc = torch.cat([apply_ops(image[None], s) for image, s in zip(noise(), strengths, strict=True)])
    difference_nhwc = apply_ops(noise(), together).int() - alone_nhwc.int()
    assert int(difference_nhwc.abs().max()) <= 1  # sums over other sizes of batch may round differently


# --- mixup ------------------------------------------------------------------------------------------------------------


def test_mixed_images_and_labels_have_the_same_shares_of_two_images() -> None:
    images_nhwc, labels_n = noise(), labels(8)
    mixed_nhwc, targets_nk = mixup(images_nhwc, labels_n, generator(1), num_classes=5, alpha=1.0)
    share = float(targets_nk[0, 0])
    assert 0.5 < share < 1
    assert targets_nk.dtype == torch.float32
    assert targets_nk.shape == (8, 5)
    assert targets_nk.sum(1).tolist() == pytest.approx([1.0] * 8)
    for n in range(8):
        assert float(targets_nk[n, labels_n[n]]) == pytest.approx(share)
        assert float(targets_nk[n, labels_n[n - 1]]) == pytest.approx(1 - share, abs=1e-6)
        expected_hwc = share * images_nhwc[n].double() + (1 - share) * images_nhwc[n - 1].double()
        assert float((mixed_nhwc[n].double() - expected_hwc).abs().max()) <= 0.501
    assert mixed_nhwc.dtype == torch.uint8


def test_two_images_of_one_class_keep_a_certain_label() -> None:
    _, targets_nk = mixup(noise(4), torch.full((4,), 3), generator(), num_classes=5, alpha=1.0)
    assert targets_nk.tolist() == [[0, 0, 0, 1, 0]] * 4


def test_without_mixup_there_are_no_mixed_labels() -> None:
    assert Augment(2, True, 4, 2, 0.3)(noise(), labels(8), generator())[1] is None


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 3.0, 10.0])
def test_shares_are_those_of_a_symmetric_beta_distribution(alpha: float) -> None:
    shares_n = larger_shares(50_000, alpha, generator(), CPU).double()
    assert float(shares_n.min()) >= 0.5
    assert float(shares_n.max()) <= 1.0
    variance = 1 / (4 * (2 * alpha + 1))  # of Beta(alpha, alpha), about its mean of 1/2
    assert float(((shares_n - 0.5) ** 2).mean()) == pytest.approx(variance, rel=0.03)
    expected_n = np.random.default_rng(0).beta(alpha, alpha, 50_000)
    at = np.linspace(0.01, 0.99, 50)
    gaps = np.quantile(shares_n.numpy(), at) - np.quantile(np.maximum(expected_n, 1 - expected_n), at)
    assert np.abs(gaps).max() < 0.015


# --- all of it --------------------------------------------------------------------------------------------------------


def test_the_generator_decides_everything() -> None:
    first_nhwc, first_nk = ALL(noise(), labels(8), generator(5))
    torch.rand(7)  # torch's own generator does not matter
    same_nhwc, same_nk = ALL(noise(), labels(8), generator(5))
    other_nhwc, _ = ALL(noise(), labels(8), generator(6))
    assert torch.equal(first_nhwc, same_nhwc)
    assert first_nk is not None
    assert same_nk is not None
    assert torch.equal(first_nk, same_nk)
    assert not torch.equal(first_nhwc, other_nhwc)


def test_each_batch_is_changed_in_another_way() -> None:
    one = generator()
    assert not torch.equal(ALL(noise(), labels(8), one)[0], ALL(noise(), labels(8), one)[0])


def test_nothing_leaves_the_device() -> None:
    # Tensors of the device "meta" hold no data: reading one, or mixing it with one of the CPU, is an error.
    images_nhwc, targets_nk = ALL(noise().to("meta"), labels(8).to("meta"), generator())
    assert images_nhwc.is_meta
    assert images_nhwc.shape == (8, 16, 12, 3)
    assert targets_nk is not None
    assert targets_nk.is_meta


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_nothing_waits_for_the_device() -> None:
    images_nhwc, labels_n, on_gpu = noise().cuda(), labels(8).cuda(), torch.Generator("cuda").manual_seed(0)
    ALL(images_nhwc, labels_n, on_gpu)
    torch.cuda.set_sync_debug_mode("error")
    try:
        changed_nhwc, _ = ALL(images_nhwc, labels_n, on_gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert changed_nhwc.is_cuda
