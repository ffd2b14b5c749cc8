"""Predictions in a folder and in a bucket: whole or not there, replaced only on demand, gone on with after a stop."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from rayapp.batch.output import Count, Output
from rayapp.batch.pipeline import SCHEMA
from rayapp.errors import ConfigError

PLAN = {"bundle_digest": "sha256:1", "batch_size": 64}


def table(*paths: str, error: str | None = None) -> pa.Table:
    rows = [{"path": path, "prediction": None if error else "cat", "error": error} for path in paths]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where no predictions are yet."""
    if request.param == "folder":
        return str(tmp_path / "predictions" / "today")
    request.getfixturevalue("s3")
    boto3.client("s3").create_bucket(Bucket="bucket")
    return f"s3://bucket/{tmp_path.name}/today"


def names(place: str) -> list[str]:
    files, root = fs.FileSystem.from_uri(place)
    found = files.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
    return sorted(info.path.removeprefix(f"{root}/") for info in found if info.type == fs.FileType.File)


def paths(place: str) -> list[str]:
    """What any reader of Parquet sees in the folder."""
    files, root = fs.FileSystem.from_uri(place)
    return list(pq.read_table(root, filesystem=files)["path"].to_pylist())


def put(place: str, name: str, content: bytes = b"x") -> None:
    files, root = fs.FileSystem.from_uri(place)
    files.create_dir(root)
    with files.open_output_stream(f"{root}/{name}") as file:
        file.write(content)


def run(place: str, *tables: pa.Table, plan: dict[str, Any] = PLAN) -> None:
    output = Output(place)
    output.begin(plan)
    for number, part in enumerate(tables):
        output.write(number, part)
    output.commit({"images": 3})


def test_predictions_appear_when_they_are_whole(place: str) -> None:
    output = Output(place)
    output.check(overwrite=False)

    assert output.begin(PLAN) == {}
    assert output.write(0, table("a", "b")) == Count(2, 0)
    assert output.write(1, table("c", error="broken")) == Count(1, 1)
    assert names(place) == ["_partial/part-00000.parquet", "_partial/part-00001.parquet", "_partial/plan.json"]
    output.commit({"images": 3})
    assert names(place) == ["_SUCCESS", "part-00000.parquet", "part-00001.parquet"]
    assert paths(place) == ["a", "b", "c"]
    files, root = fs.FileSystem.from_uri(place)
    with files.open_input_file(f"{root}/_SUCCESS") as file:
        assert json.loads(file.read()) == {"images": 3}


def test_predictions_are_replaced_only_on_demand_and_only_by_whole_ones(place: str) -> None:
    run(place, table("a"), table("b"))

    with pytest.raises(ConfigError, match=r"today has predictions already; give another --output, or .* --overwrite$"):
        Output(place).check(overwrite=False)
    output = Output(f"{place}/")
    output.check(overwrite=True)
    output.begin(PLAN)
    output.write(0, table("c"))
    assert paths(place) == ["a", "b"]
    assert "_SUCCESS" in names(place)
    output.commit({})
    assert paths(place) == ["c"]
    assert names(place) == ["_SUCCESS", "part-00000.parquet"]


def test_a_run_with_the_same_plan_goes_on(place: str) -> None:
    output = Output(place)
    output.begin(PLAN)
    output.write(1, table("b", "c", error="broken"))

    again = Output(place)
    again.check(overwrite=False)
    assert again.begin(PLAN) == {1: Count(2, 2)}
    again.write(0, table("a"))
    again.commit({})
    assert paths(place) == ["a", "b", "c"]


def test_a_run_with_another_plan_starts_afresh(place: str) -> None:
    output = Output(place)
    output.begin(PLAN)
    output.write(7, table("old"))

    run(place, table("a"), plan=PLAN | {"bundle_digest": "sha256:2"})
    assert paths(place) == ["a"]


def test_a_commit_that_was_cut_off_leaves_nothing_that_looks_whole(place: str) -> None:
    run(place, table("old"), table("older"))
    output = Output(place)
    output.begin(PLAN)
    output.write(0, table("a"))
    output.write(1, table("b"))
    files, root = fs.FileSystem.from_uri(place)
    files.delete_file(f"{root}/_SUCCESS")
    files.move(f"{root}/_partial/part-00000.parquet", f"{root}/part-00000.parquet")

    again = Output(place)
    again.check(overwrite=False)
    assert again.begin(PLAN) == {1: Count(1, 0)}
    again.write(0, table("a"))
    again.commit({})
    assert paths(place) == ["a", "b"]


@pytest.mark.parametrize("name", ["notes.txt", "part-00000.parquet", "part-0-spark.parquet"])
def test_files_of_somebody_else_are_not_touched(place: str, name: str) -> None:
    put(place, name)

    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=rf"today holds other files \({name}\); give a new or empty folder"):
            Output(place).check(overwrite=overwrite)
    assert names(place) == [name]


def test_a_place_that_cannot_be_written_to_is_said(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("no folder")
    sentence = r"^output \S+ cannot be written to \(.*\); check the path and who may write there$"
    with pytest.raises(ConfigError, match=sentence):
        Output(str(tmp_path / "file" / "below")).begin(PLAN)
    with pytest.raises(ConfigError, match=r"output ftp://x/y cannot be written to \(.*\); check the bucket"):
        Output("ftp://x/y")
    if place.startswith("s3://"):
        with pytest.raises(ConfigError, match=r"output s3://nobody/x cannot be written to \(.*\); check the bucket"):
            Output("s3://nobody/x").begin(PLAN)


def test_a_folder_without_a_scheme_is_where_the_command_was_typed(tmp_path: Path) -> None:
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        assert Output("here").uri == str(Path.cwd() / "here")
    finally:
        os.chdir(before)
