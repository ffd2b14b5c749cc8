from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from rayapp import verbs
from rayapp.cli import VERBS, main, run
from rayapp.config.env import Home
from rayapp.terminal import in_home, table_console


def test_help_lists_every_verb_with_its_purpose(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for name, verb in VERBS.items():
        assert f"  {name} " in out
        assert (verb.settings.__doc__ or "?").splitlines()[0] in out


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["trian"], "unknown verb 'trian'. Did you mean 'train'?"),
        (["train", "--data.datset", "digits"], "unknown option --data.datset. Did you mean 'data.dataset'?"),
        (["train", "--data.dataset", "cifar"], "data.dataset is 'cifar'. Did you mean 'cifar10'?"),
        (["train", "--optim.batch_size", "0"], "optim.batch_size is '0'"),
        (["promote", "--force"], "force needs a reason"),
        (["train", "--register", "yes"], "--register is 'yes': say true or false"),
        (["train", "--dry-run=on"], "--dry_run is 'on': say true or false"),
        (["predict", "a.png", "--url", "127.0.0.1:4100"], "it needs its scheme, as http://127.0.0.1:4100"),
    ],
)
def test_F55_bad_settings_end_with_a_sentence_and_exit_code_2(
    argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_the_last_line_of_stdout_is_json_and_nothing_else_is_there(
    capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    assert main(["train", "--dry-run"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    plan = json.loads(line)
    assert plan["world_batch"] == 64
    assert plan["settings"]["data"]["dataset"] == "digits"
    assert not (home / "runs").exists()
    assert not (home / "mlflow.db").exists()


def test_a_failure_of_the_registry_is_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate"]) == 1
    assert "rayapp train" in capsys.readouterr().err


def test_models_says_what_to_do_when_there_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    assert "no model is registered yet; make one with: rayapp train" in capsys.readouterr().out
    assert run("models", ["--json"], prog="rayapp models") == 0
    assert json.loads(capsys.readouterr().out) == {"models": []}


def test_a_key_that_stands_twice_in_yaml_is_an_error_with_its_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """YAML takes the last one, so that half of a file can be without effect."""
    file = tmp_path / "twice.yaml"
    file.write_text("optim:\n  epochs: 2\ndata:\n  dataset: digits\noptim:\n  lr: 0.1\n")
    assert main(["train", "--dry-run", "--config", str(file)]) == 2
    assert f"--config {file}: 'optim' stands twice, in lines 1 and 5; leave one out" in capsys.readouterr().err
    file.write_text("optim:\n  epochs: 2\n  lr: 0.1\n  epochs: 3\n")
    assert main(["train", "--dry-run", "--config", str(file)]) == 2
    assert "'epochs' stands twice, in lines 2 and 4" in capsys.readouterr().err


ROW = {"version": 12, "aliases": ["challenger", "champion"], "val_accuracy": 0.9, "created": "2026-11-30T12:00"}
ROW |= {
    "test_accuracy": 0.9,
    "test_accuracy_low": 0.88,
    "test_accuracy_high": 0.92,
    "n": 10_000.0,
    "run_id": "abcdef12",
}


@pytest.mark.parametrize("width", [80, 40])
def test_aliases_are_never_cut_on_a_terminal(width: int) -> None:
    console = Console(width=width, force_terminal=True, no_color=True, file=io.StringIO())
    console.print(verbs._models_table([ROW], "\n"))
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "challenger" in said
    assert "champion" in said
    assert width < 80 or "…" not in said


def test_where_no_terminal_is_a_row_is_one_line_and_nothing_is_cut(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`rayapp models | grep challenger` found nothing at 80 columns."""
    monkeypatch.setenv("COLUMNS", "40")
    table_console().print(verbs._models_table([ROW], ", "))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "challenger, champion" in line]
    assert line.split() == "12 challenger, champion 0.9000 0.9000 0.880-0.920 10000 2026-11-30 abcdef".split()  # noqa: SIM905


def test_a_command_for_another_home_works_where_it_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = Home(folder=tmp_path / "a", tracking_uri=f"sqlite:///{tmp_path / 'a' / 'mlflow.db'}")
    below, other = (Home(folder=folder, tracking_uri="sqlite:///x") for folder in (tmp_path / "b c", Path("/srv/d")))
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / ".venv" / "bin" / "rayapp"), "demo"])
    assert in_home(below, own) == "RAYAPP_HOME='b c' .venv/bin/rayapp"
    assert in_home(other, own) == "RAYAPP_HOME=/srv/d .venv/bin/rayapp"
    at_a_server = Home(folder=tmp_path / "a", tracking_uri="http://mlflow:5000")
    assert in_home(other, at_a_server) == "MLFLOW_TRACKING_URI= RAYAPP_HOME=/srv/d .venv/bin/rayapp"
