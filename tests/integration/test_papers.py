"""The papers of the project agree with it: version, changelog, release notes, and the rooms of ARCHITECTURE.md."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from rayapp import __version__

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
NOTES = ROOT / ".github/release_notes.py"


def notes(tag: str, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """What the release workflow runs, in the files of root."""
    script = [sys.executable, str(root / NOTES.relative_to(ROOT)), tag]
    return subprocess.run(script, capture_output=True, text=True, check=False)


def test_there_is_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__
    assert re.search(
        rf"^## \[{re.escape(__version__)}\] - \d{{4}}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.M
    )


def test_a_release_has_the_notes_of_its_version() -> None:
    done = notes(f"v{__version__}")
    assert done.returncode == 0, done.stderr
    assert "### Added" in done.stdout
    assert "\n## " not in done.stdout


def test_a_tag_that_is_not_the_version_is_no_release() -> None:
    done = notes("v9.9.9")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"the tag is v9.9.9 and pyproject.toml says {__version__}" in done.stderr


def test_a_version_without_notes_is_no_release(tmp_path: Path) -> None:
    for name in ("pyproject.toml", ".github/release_notes.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## [0.0.1] - 2026-01-01\n\n- something\n")
    done = notes(f"v{__version__}", tmp_path)
    assert done.returncode == 1
    assert f"no section '## [{__version__}] - DATE'" in done.stderr


def test_the_page_on_architecture_is_short() -> None:
    assert len(ARCHITECTURE.splitlines()) <= 150


def test_every_room_is_drawn_and_every_room_drawn_is_there() -> None:
    section = ARCHITECTURE.partition("\n## The rooms\n")[2].partition("\nFloors")[0]
    drawn = set(re.findall(r"`(\w+(?:/|\.py))`", "".join(re.findall(r"^\| (.*?) \|", section, re.MULTILINE))))
    rooms = {f"{path.name}/" for path in (ROOT / "rayapp").iterdir() if (path / "__init__.py").is_file()}
    files = {path.name for path in (ROOT / "rayapp").glob("[!_]*.py")}
    assert drawn == rooms | files
