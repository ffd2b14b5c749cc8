"""The command line in processes of its own: signals, and what a verb imports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_verb_without_ray_ends_with_the_code_of_its_signal_and_closes_once(name: str, code: int) -> None:
    """`timeout` and supervisors send SIGTERM a second time, which must not cut off what closes the runs."""
    verb = f"""
import signal, sys, time, types
from rayapp import cli
from rayapp.config.commands import ModelsSettings
def stopped(settings, home):
    try:
        signal.raise_signal(signal.{name})
    finally:
        signal.raise_signal(signal.SIGTERM) if {name!r} == "SIGTERM" else None
        print("closed")
sys.modules["stopping"] = types.SimpleNamespace(stopped=stopped)
cli.VERBS["stopped"] = cli.Verb(ModelsSettings, "stopping:stopped")
sys.exit(cli.main(["stopped"]))
"""
    done = subprocess.run([sys.executable, "-c", verb], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert done.stdout == "closed\n"
    assert done.stderr == f"rayapp stopped was stopped by {'SIGTERM' if code == 143 else 'Ctrl-C'}\n"


def test_a_table_of_models_imports_what_a_table_needs() -> None:
    """torch and torchvision made `rayapp models` take 10 seconds, for a database query."""
    heavy = ("torch", "torchvision", "ray", "sklearn", "onnxruntime", "matplotlib")
    code = f"""
import sys
from rayapp.cli import main
assert [main([verb]) for verb in ("models", "promote", "rollback")] == [0, 1, 1]
print([name for name in {heavy} if name in sys.modules])
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"


def test_a_working_folder_that_was_deleted_needs_a_home_elsewhere(tmp_path: Path) -> None:
    """Python, Ray and MLflow ask where they are, and had a traceback each."""
    gone = tmp_path / "gone"
    command = f"mkdir {gone} && cd {gone} && rmdir {gone} && {sys.executable} -m rayapp.cli models"
    python = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(["bash", "-c", command], env=python, capture_output=True, text=True, check=False)
    assert (done.returncode, "no model is registered yet" in done.stdout) == (0, True), done.stderr
    assert done.stderr.startswith("the working folder was deleted; relative paths are those of")
    done = subprocess.run(
        ["bash", "-c", command], env=python | {"RAYAPP_HOME": ""}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: the working folder was deleted, and RAYAPP_HOME is in it; cd to another one, or set RAYAPP_HOME to an"
        " absolute path\n"
    )
