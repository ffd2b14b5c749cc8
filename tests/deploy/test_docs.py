"""What docs/eks.md, runbook.md and costs.md tell people to type: scripts are typed, as dry runs against stand-ins."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.deploy.machine import Machine, make_machine
from tests.deploy.tools import ROOT, run

PAGES = [ROOT / "docs" / name for name in ("eks.md", "runbook.md", "costs.md")]
SCRIPT = re.compile(r"cluster/scripts/((?:setup|ops)/[a-z0-9-]+)\.sh")
# Nothing here can answer them.
OF_OTHERS = {"kubectl", "aws", "curl", "terraform", "cp", "rayapp", "git", "export", "read", "printf"}
# What `make` is asked for there, and how: an ARGS or ENV that no recipe takes would be passed over in silence.
MAKE = re.compile(r"make ([a-z-]+)((?: (?:ENV=(?:dev|prod)|ARGS=--[a-z-]+))*)")


def commands() -> list[str]:
    """The lines of the pages' shell blocks, each once."""
    blocks = [block for page in PAGES for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)]
    return sorted({line.strip() for block in blocks for line in block.splitlines() if line.strip()})


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    made = make_machine(tmp_path_factory.mktemp("docs"))
    made.settings(PROD_DOMAIN="example.org")
    return made


@pytest.mark.parametrize("line", [line for line in commands() if SCRIPT.match(line)])
def test_the_scripts_take_what_the_pages_give_them(line: str, machine: Machine) -> None:
    script, *words = shlex.split(line)
    name = SCRIPT.fullmatch(script)
    assert name, line
    assert (ROOT / script).stat().st_mode & 0o111, f"{script} cannot be run"
    backup = machine.folder / "backup-folder"
    if "restore" in script:  # what backup.sh leaves, as far as restore.sh looks before it does anything
        make_backup(backup)
    done = machine.run(name[1], *dict.fromkeys([*words, "--dry-run"]))
    assert machine.calls() == [], f"a dry run of '{line}' changed something:\n{done.stdout}"
    shutil.rmtree(backup, ignore_errors=True)


def make_backup(folder: Path) -> None:
    (folder / "artifacts").mkdir(parents=True)
    (folder / "database.dump").write_text("a dump")
    sums = run(["sha256sum", "database.dump"], cwd=folder).stdout
    (folder / "MANIFEST.sha256").write_text(sums)


@pytest.mark.parametrize("line", [line for line in commands() if not SCRIPT.match(line)])
def test_other_commands_are_of_make_or_of_a_program_that_the_page_names(line: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    if line.startswith("make "):
        found = MAKE.fullmatch(line)
        assert found, line
        recipe = re.search(rf"^{found[1]}:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
        assert recipe, f"there is no target {found[1]}"
        for variable in re.findall(r"(ENV|ARGS)=", found[2]):
            assert f"$({variable})" in recipe[1], f"make {found[1]} does not take {variable}"
        return
    program = shlex.split(line)[0]
    assert program in OF_OTHERS or (ROOT / shlex.split(line)[-1]).is_file(), line


def test_the_base_is_what_terraform_computes() -> None:
    """terraform/tests holds its README to the prices; a page beside it would go its own way."""
    readme = (ROOT / "terraform/README.md").read_text(encoding="utf-8")
    lean, standard = re.findall(r"\*\*Total\*\* \| \*\*([\d.]+)\*\* \| \*\*([\d.]+)\*\*", readme)[0]

    assert f"| {lean} | {standard} |" in (ROOT / "docs/costs.md").read_text(encoding="utf-8")


def test_every_step_of_the_setup_is_on_the_page() -> None:
    page = PAGES[0].read_text()
    steps = [path.name for path in sorted((ROOT / "cluster/scripts/setup").glob("0*.sh"))]
    assert [name for name in steps if f"`{name}`" not in page] == []
