"""What people are shown: names from outside stand in tables and lines as they are."""

from __future__ import annotations

import io
import os
import re
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from rayapp import verbs
from rayapp.runtime.progress import ProgressActor, live_progress, print_line
from rayapp.vision.metrics import score

# What rich would take for its markup, an end of one that was never begun (a traceback), a link, or an emoji
NAMES = ["[bold]x", "photo [edited].png", "a[/b].png", "[link=x]", ":cat:", "[/]", "back\\[slash"]


def printed(what: object) -> str:
    file = io.StringIO()
    Console(file=file, width=200).print(what)
    return file.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_names_are_shown_as_they_are(name: str) -> None:
    """Names vanished from tables, and [/ in one was a traceback."""
    classes = (name, "other")
    scores = score(np.array([[0.9, 0.1], [0.2, 0.8]], dtype=np.float32), np.array([0, 1]), classes)
    prediction = {"predicted_class": name, "confidence": 0.9, "probabilities": {"other": 0.9, name: 0.1}}
    row = {"version": 1, "aliases": [name], "val_accuracy": None, "test_accuracy": None, "run_id": "0123456"}
    row["created"] = str(datetime(2026, 1, 1))

    assert name in printed(verbs._classes_table(scores))
    assert printed(verbs._predictions_table([Path(name)], [prediction])).count(name) == 3
    assert name in printed(verbs._models_table([row], ", "))


@pytest.mark.parametrize("name", NAMES)
def test_lines_are_shown_as_they_are(name: str) -> None:
    """What workers say, and paths, sentences and names of runs in lines of our own."""
    file, board = io.StringIO(), ProgressActor()
    board.say(f"said {name}")
    board.write(f"line {name}")
    console = Console(file=file, width=200)
    print_line(console, f"run {name}")
    with live_progress(board, console, f"before {name}"):
        pass

    assert file.getvalue().splitlines() == [f"run {name}", f"before {name}", f"said {name}", f"line {name}"]


def test_a_file_name_that_is_not_utf8_is_shown() -> None:
    """It was a UnicodeEncodeError when the table was printed."""
    path = Path(os.fsdecode(b"caf\xe9.png"))
    text = printed(verbs._predictions_table([path], [{"predicted_class": "x", "confidence": 1.0, "probabilities": {}}]))

    assert r"caf\xe9.png" in text
    assert text.encode("utf-8")


def test_no_name_is_put_into_markup() -> None:
    """Text with markup is for words of our own: what is put into it would be read as markup too."""
    markup = re.compile(r"""f["'][^"'\n]*\[/?(bold|red|green|yellow|cyan|dim|)\]""")
    found = [
        f"{path.name}: {line.strip()}"
        for path in sorted(Path(verbs.__file__).parent.rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if markup.search(line)
    ]

    assert not found
