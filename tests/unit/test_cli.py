from __future__ import annotations

import json
from pathlib import Path

import pytest

from rayapp.cli import VERBS, main, run


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
