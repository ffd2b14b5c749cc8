"""CONTRIBUTING.md: each example is applied to a copy of the repository, and each command is typed there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.pages import CONTRIBUTING, ROOT, commands

# Whoever runs this has typed these: the whole of the tests and the checks, of which this is one.
ELSEWHERE = ("make test-fast", "make check")
PLACE = re.compile(r"# (\S+), (below|above|instead of): (.*)")
MOST_FILES = 3


def applied(block: str, root: Path) -> str:
    """The file that an example changed, where its first line says."""
    head, _, lines = block.partition("\n")
    place = PLACE.fullmatch(head)
    assert place, f"'{head}' does not say where the example goes"
    name, where, anchor = place.groups()
    text = (root / name).read_text().splitlines(keepends=True)
    at = [n for n, line in enumerate(text) if line.strip().startswith(anchor)]
    assert len(at) >= 1, f"'{anchor}' is not in {name}"
    first = at[0] + (where == "below")
    text[first : first + (where == "instead of")] = [lines, "\n\n" * (where == "above")]  # a function or a class
    (root / name).write_text("".join(text))
    return name


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the repository in a new one, with the environment of this one."""
    root = tmp_path_factory.mktemp("copy")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)
    (root / ".venv").symlink_to(Path(sys.prefix))
    for name in ("pyproject.toml", "constraints.txt"):
        os.utime(root / name, (0, 0))  # older than the environment, which make then leaves as it is
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    return root


@pytest.fixture(scope="module")
def added(copy: Path) -> dict[str, set[str]]:
    """The files that each example changed in the copy, by its heading."""
    parts = re.split(r"^### (.*)\n", CONTRIBUTING.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    examples = zip(parts[::2], parts[1::2], strict=True)
    return {
        name: {applied(block, copy) for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)}
        for name, text in examples
    }


def test_what_is_added_often_needs_three_files_at_most(copy: Path, added: dict[str, set[str]]) -> None:
    """A data set, a model, a setting and a verb needed three to five files, and nobody listed them."""
    assert set(added) == {"A data set", "A model", "A setting", "A verb"}
    assert {name: files for name, files in added.items() if len(files) > MOST_FILES} == {}
    for words in (["check"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *words, "."]
        done = subprocess.run(ruff, cwd=copy, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


@pytest.mark.timeout(1500)
@pytest.mark.usefixtures("added")
@pytest.mark.parametrize("line", [line for line in commands(CONTRIBUTING) if not line.startswith(ELSEWHERE)])
def test_the_commands_do_what_they_say(copy: Path, line: str) -> None:
    done = subprocess.run(["bash", "-euc", line], cwd=copy, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
