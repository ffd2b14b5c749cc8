"""Class names in pictures: in a font that has their letters where one is installed, else by number."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib import font_manager

OWN = "DejaVu Sans"  # comes with matplotlib, and has Latin, Greek, Cyrillic, Arabic, Hebrew and many signs
MAX_LETTERS = 40  # of a name: longer ones leave no room for the picture


class Labels(NamedTuple):
    """What to write for each name, and how; note: why some are numbers, "" where none is."""

    texts: list[str]
    style: dict[str, Any]
    note: str


def labels_of(names: Sequence[str]) -> Labels:
    """Labels for the names of classes 0, 1 and so on. A name of which no font has all letters is "class 2"."""
    shown = [_short(name) for name in names]
    missing = {ord(letter) for name in shown for letter in name} - _letters(font_manager.findfont(OWN))
    families = [OWN]
    if missing:
        # a font of another weight than asked for is better than none, and no matter to warn of
        logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    for family, letters in _installed() if missing else ():
        if missing & letters:
            families.append(family)
            missing -= letters
        if not missing:
            break
    texts = [f"class {at}" if any(ord(letter) in missing for letter in name) else name for at, name in enumerate(shown)]
    note = "class and number: no installed font has its name" if texts != shown else ""
    # $ would begin a formula
    return Labels(texts, {"fontfamily": families, "parse_math": False}, note)


def _short(name: str) -> str:
    """One line of letters that can be seen."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in name).split())
    return line if len(line) <= MAX_LETTERS else line[: MAX_LETTERS - 1] + "…"


def _installed() -> Iterator[tuple[str, frozenset[int]]]:
    """Upright fonts of this machine with their letters. Not matplotlib's own: they have formulas, or boxes for all."""
    seen, own = set(), Path(matplotlib.get_data_path())
    for font in sorted(font_manager.fontManager.ttflist, key=lambda font: (font.name, font.fname)):
        if font.name in seen or font.style != "normal" or own in Path(font.fname).parents:
            continue
        seen.add(font.name)
        yield font.name, _letters(font.fname)


def _letters(path: str) -> frozenset[int]:
    try:
        return frozenset(font_manager.get_font(path).get_charmap())
    except (OSError, RuntimeError):  # removed or damaged since matplotlib listed it
        return frozenset()
