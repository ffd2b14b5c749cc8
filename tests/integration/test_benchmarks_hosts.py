"""What `make bench-hosts` counts: work that was lost or done twice, and requests that found no host."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import host_work, hosts, load
from benchmarks.host_work import BatchPrediction, Sweep, Training
from benchmarks.load import Answer
from benchmarks.pictures import picture
from rayapp.registry.tracking import Tracker
from tests.support.bundles import tiny_served
from tests.support.ports import free_port
from tests.support.serving import client_of


def test_steps_between_the_furthest_and_the_one_it_went_on_from_were_done_twice(tmp_path: Path):
    tracker = Tracker(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "artifacts")
    run, said = tracker.open_run("rayapp", "work", {}, {}), tmp_path / "said"
    training = Training(tmp_path, tmp_path, said)
    said.write_text("went on from step 0\n")
    training.look(0.0)
    for step, sentence in ((37, ""), (37, "went on from step 30\n"), (45, ""), (45, "went on from step 45\n")):
        tracker.log_metrics(run, {"train/loss": 1.0}, step)
        with said.open("a") as log:
            log.write(sentence)
        training.look(float(step))

    assert training.repeated() == 7


def test_a_trial_that_had_ended_and_has_another_run_was_done_twice(tmp_path: Path):
    sweep = Sweep(tmp_path, tmp_path, tmp_path / "said")
    trials = tmp_path / "sweeps" / host_work.NAME / "trials.json"
    trials.parent.mkdir(parents=True)

    def write(*rows: tuple[str, str, str]) -> None:
        told = ("trial_id", "state", "run_id")
        found = [dict(zip(told, row, strict=True)) | {"seconds": 1.0, "epoch": 4} for row in rows]
        trials.write_text(json.dumps({"trials": found}))

    write(("a", "finished", "1"), ("b", "finished", "2"), ("c", "running", "3"))
    sweep.before_event()
    write(("a", "finished", "1"), ("b", "finished", "9"), ("c", "finished", "8"))

    assert (sweep.repeated(), sweep.lost()) == (4, 4 * (host_work.NUM_TRIALS - 3))


def test_rows_that_are_missing_or_there_twice_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(host_work, "NUM_IMAGES", 6)
    (tmp_path / "predictions").mkdir()
    for name, numbers in (("part-00000.parquet", [0, 1, 2]), ("part-00001.parquet", [2, 3, 4])):
        pq.write_table(pa.table({"path": ["a"] * 3, "row": numbers}), tmp_path / "predictions" / name)
    work = BatchPrediction(tmp_path, tmp_path, tmp_path / "said")

    assert (work.lost(), work.repeated()) == (1, 1)


def test_a_host_that_refuses_is_passed_over_and_where_all_do_the_request_has_failed(tmp_path: Path):
    nobody = f"http://127.0.0.1:{free_port()}"
    with client_of(tiny_served(tmp_path)) as http:
        mixed = asyncio.run(_balanced(nobody, str(http.base_url).rstrip("/")))
    alone = asyncio.run(_balanced(nobody))

    assert mixed
    assert load.failures(mixed) == {}
    assert {answer.problem for answer in alone} == {"ClientConnectorError"}


async def _balanced(*urls: str) -> list[Answer]:
    until = asyncio.Event()
    asyncio.get_running_loop().call_later(0.5, until.set)
    async with hosts.Balanced(urls) as balanced:
        await balanced.ask([load.question([picture(0)])], until)
    return balanced.answers


def test_without_root_it_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert hosts.main(["--logs", str(tmp_path)]) == 1
    assert "run this as root, with iproute2 installed" in capsys.readouterr().err
