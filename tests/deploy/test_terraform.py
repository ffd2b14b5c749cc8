"""Terraform keeps its promises, and each check of them bites: faults planted in copies fail, naming file and field.

The promises themselves stand in terraform/tests. Here they are run against the schema of the aws provider, without
AWS. Three runs of Terraform, two at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from .terraform_faults import FAULTS, MISSPELT, TERRAFORM, Fault, copy_with
from .tools import ROOT, VERSIONS, python, run, shared, tool

SETTING = re.compile(r"^(\w+)\s*=", re.MULTILINE)


@dataclass(frozen=True)
class Report:
    """How a check ended: its exit status, and what it printed on one line."""

    status: int
    text: str


def report(*command: str | Path, cwd: Path) -> Report:
    done = run(command, cwd=cwd, ok=False)
    return Report(done.returncode, " ".join(f"{done.stdout} {done.stderr}".split()))  # Terraform breaks lines anywhere


Check = Callable[[str], Report]


@pytest.fixture(scope="module")
def pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(2)  # these checks are processes of their own


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """terraform/ by what is wrong with it."""
    planted = {"clean": [], "faulty": [*FAULTS.values()], "misspelt": [MISSPELT]}
    folder = tmp_path_factory.mktemp("terraform")
    return {name: copy_with(folder / name, *faults) for name, faults in planted.items()}


@pytest.fixture(scope="module")
def terraform(copies: dict[str, Path], pool: ThreadPoolExecutor) -> Check:
    """Init, validate and test of each copy."""
    tool("terraform")
    command = (python(), "-B", shared("tools/terraform_offline/check"), "--test")
    begun = {name: pool.submit(report, *command, folder, cwd=ROOT) for name, folder in copies.items()}
    return lambda name: begun[name].result()


def test_every_file_is_formatted() -> None:
    run([tool("terraform"), "fmt", "-check", "-recursive", "-diff", TERRAFORM])


def test_the_format_check_finds_a_crooked_line(tmp_path: Path) -> None:
    crooked = Fault("main.tf", "nodes_min          = 0", "nodes_min = 0", "")
    done = run([tool("terraform"), "fmt", "-check", "-recursive", copy_with(tmp_path / "copy", crooked)], ok=False)
    assert done.returncode == 3
    assert "main.tf" in done.stdout


def test_every_promise_holds(terraform: Check) -> None:
    assert terraform("clean").status == 0, terraform("clean").text
    passed = re.search(r"Success! (\d+) passed, 0 failed", terraform("clean").text)
    assert passed, terraform("clean").text
    runs = sum(file.read_text().count("\nrun ") for file in TERRAFORM.glob("tests/*.tftest.hcl"))
    assert int(passed[1]) == runs


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_broken_promise_is_named_with_file_and_field(fault: Fault, terraform: Check) -> None:
    assert terraform("faulty").status == 1
    assert fault.says in terraform("faulty").text


def test_a_misspelt_argument_is_named_with_file_and_line(terraform: Check) -> None:
    text = (TERRAFORM / MISSPELT.file).read_text()
    line = text[: text.index(MISSPELT.old)].count("\n") + 1
    assert terraform("misspelt").status == 1
    assert f'on {MISSPELT.file} line {line}, in resource "aws_db_instance" "this"' in terraform("misspelt").text
    assert MISSPELT.says in terraform("misspelt").text


def settings(path: Path) -> set[str]:
    return set(SETTING.findall(path.read_text()))


def test_the_environments_give_every_variable_without_default_and_no_other() -> None:
    blocks = dict(
        re.findall(
            r'^variable "(\w+)" \{\n(.*?)^\}', (TERRAFORM / "variables.tf").read_text(), re.DOTALL | re.MULTILINE
        )
    )
    required = {name for name, block in blocks.items() if not re.search(r"^  default ", block, re.MULTILINE)}
    local = settings(TERRAFORM / "envs/local.auto.tfvars.example")
    assert local <= blocks.keys()
    for environment in ("dev", "prod"):
        given = settings(TERRAFORM / f"envs/{environment}.tfvars")
        assert given <= blocks.keys()
        assert required <= given | local


@pytest.mark.parametrize(("environment", "profile"), [("dev", "lean"), ("prod", "standard")])
def test_the_environments_are_what_the_tests_plan(environment: str, profile: str) -> None:
    given = dict(re.findall(r'^(\w+) *= *"(.*)"', (TERRAFORM / f"envs/{environment}.tfvars").read_text(), re.MULTILINE))
    assert given == {"environment": environment, "profile": profile}


def test_the_version_of_kubernetes_is_that_of_the_platform() -> None:
    text = (TERRAFORM / "variables.tf").read_text()
    default = re.search(r'^variable "kubernetes_version" \{.*?^  default +=  *"(.*?)"', text, re.DOTALL | re.MULTILINE)
    assert default
    assert default[1] == VERSIONS["KUBERNETES_VERSION"]
