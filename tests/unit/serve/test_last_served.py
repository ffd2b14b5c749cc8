"""LastServed: what was served last is found again after a restart, whatever has happened to the note."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from rayapp.registry.uris import ModelVersion
from rayapp.serve.follower import LastServed
from tests.support.bundles import tiny_version

MODEL = "models:/vision@champion"
METADATA = {"name": "vision", "version": "7", "params": {"epochs": "3"}, "metrics": {"val_loss": None}}
SEVEN = tiny_version(7)
OF_A_RUN = replace(SEVEN, version=None, alias=None, aliases=(), tags={"größe": "32", "mlflow.user": 'a"b\n'})


def note(folder: Path) -> Path:
    return folder / "last_served.json"


@pytest.mark.parametrize("version", [SEVEN, OF_A_RUN], ids=["version", "run"])
def test_what_was_noted_is_read_by_the_next_process(tmp_path: Path, version: ModelVersion):
    LastServed(tmp_path / "cache").write(MODEL, version, METADATA)

    assert LastServed(tmp_path / "cache").read(MODEL) == (version, METADATA)


def test_nothing_was_served_before_the_first_time(tmp_path: Path):
    assert LastServed(tmp_path).read(MODEL) is None
    assert LastServed(tmp_path / "no" / "such").read(MODEL) is None


def test_the_last_note_counts_and_other_models_keep_theirs(tmp_path: Path):
    last = LastServed(tmp_path)
    last.write(MODEL, tiny_version(6), {})
    last.write("models:/other@champion", OF_A_RUN, METADATA)
    last.write(MODEL, SEVEN, METADATA)

    assert last.read(MODEL) == (SEVEN, METADATA)
    assert last.read("models:/other@champion") == (OF_A_RUN, METADATA)
    assert last.read("models:/vision@challenger") is None


def test_a_note_appears_whole_and_leaves_nothing_beside_it(tmp_path: Path):
    LastServed(tmp_path).write(MODEL, SEVEN, METADATA)

    assert [path.name for path in tmp_path.iterdir()] == ["last_served.json"]
    assert json.loads(note(tmp_path).read_text(encoding="utf-8")).keys() == {MODEL}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "\x00",
        '{"models:/vision@champion": 3}',
        '{"models:/vision@champion": {}}',
        '{"models:/vision@champion": {"version": {"name": "vision"}, "metadata": {}}}',
        '{"models:/vision@champion": {"version": null, "metadata": {}}}',
        '{"models:/vision@champion": {"version": 7, "metadata": {}}}',
    ],
)
def test_a_damaged_note_is_none_and_the_next_one_replaces_it(tmp_path: Path, text: str):
    note(tmp_path).write_text(text, encoding="utf-8")
    last = LastServed(tmp_path)

    assert last.read(MODEL) is None
    last.write(MODEL, SEVEN, METADATA)
    assert last.read(MODEL) == (SEVEN, METADATA)


@pytest.mark.parametrize("metadata", ["null", "3", '"x"', "[1]"])
def test_a_note_with_damaged_metadata_is_none(tmp_path: Path, metadata: str):
    LastServed(tmp_path).write(MODEL, SEVEN, {})
    whole = note(tmp_path).read_text(encoding="utf-8")
    assert '"metadata": {}' in whole

    note(tmp_path).write_text(whole.replace('"metadata": {}', f'"metadata": {metadata}'), encoding="utf-8")

    assert LastServed(tmp_path).read(MODEL) is None


def test_a_note_that_is_no_text_is_none(tmp_path: Path):
    note(tmp_path).write_bytes(b"\xff\xfe\x00{")

    assert LastServed(tmp_path).read(MODEL) is None


def test_a_note_that_cannot_be_written_is_said_and_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "file").write_text("in the way")

    with caplog.at_level(logging.WARNING):
        LastServed(tmp_path / "file").write(MODEL, SEVEN, METADATA)

    assert "cannot note the served model" in caplog.text
    assert LastServed(tmp_path / "file").read(MODEL) is None
