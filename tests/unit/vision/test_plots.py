"""Pictures with class names of any script and length: no boxes, no warnings."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib import font_manager
from PIL import Image

from rayapp.vision.fonts import OWN, labels_of
from rayapp.vision.metrics import score
from rayapp.vision.plots import plot_classes, plot_confusion


@pytest.fixture
def no_other_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with the fonts of matplotlib alone, as most servers are."""
    own = Path(font_manager.findfont(OWN)).parent
    there = [font for font in font_manager.fontManager.ttflist if Path(font.fname).parent == own]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", there)


@pytest.fixture
def another_font(no_other_fonts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A font that the machine has beside them: one of TeX's signs, under a path of its own."""
    path = tmp_path / "signs.ttf"
    shutil.copy(font_manager.findfont("STIXGeneral"), path)
    (entry,) = [font for font in font_manager.fontManager.ttflist if font.fname == font_manager.findfont("STIXGeneral")]
    signs = type(entry)(**{**vars(entry), "fname": str(path), "name": "Signs"})
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [*font_manager.fontManager.ttflist, signs])
    return "Signs"


@pytest.mark.parametrize(
    "names",
    [
        ("猫", "犬", "cat"),
        ("고양이", "बिल्ली", "🐈"),
        ("$100$", "a$b", r"$\frac$"),
        ("two\nlines", "a\ttab", "nul\x01"),
        ("x" * 300, "y" * 300, ""),
        tuple(f"{'w' * 60} {at}" for at in range(30)),
    ],
    ids=["cjk", "other-scripts", "dollars", "unprintable", "long", "many-long"],
)
def test_names_of_any_kind_are_drawn_without_a_warning(
    tmp_path: Path, names: tuple[str, ...], caplog: pytest.LogCaptureFixture
):
    """Glyphs that no font had were boxes and a warning each; a $ was a formula, and a traceback where it was none."""
    classes = len(names)
    scores = score(np.eye(classes, dtype=np.float32) * 0.5 + 0.1, np.arange(classes), names)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for plot in (plot_confusion, plot_classes):
            plot(scores, tmp_path / f"{plot.__name__}.png")

    assert not caplog.records
    assert Image.open(tmp_path / "plot_confusion.png").size == (770, 660)


def test_a_name_that_no_font_has_is_a_number_and_said(no_other_fonts: None):
    labels = labels_of(["cat", "猫", "Katze ä", "кошка"])

    assert labels.texts == ["cat", "class 1", "Katze ä", "кошка"]
    assert labels.note == "class and number: no installed font has its name"
    assert labels_of(["cat", "кошка"]).note == ""


def test_a_font_that_has_the_letters_is_taken(another_font: str):
    sign = chr(min(font_manager.get_font(font_manager.findfont("STIXGeneral")).get_charmap().keys() - own_letters()))
    labels = labels_of(["cat", sign])

    assert labels.texts == ["cat", sign]
    assert labels.style["fontfamily"] == [OWN, another_font]


def own_letters() -> set[int]:
    return set(font_manager.get_font(font_manager.findfont(OWN)).get_charmap())
