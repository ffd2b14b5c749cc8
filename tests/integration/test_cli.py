"""The command line in processes of its own: signals, and what a verb imports."""

from __future__ import annotations

import subprocess
import sys

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
