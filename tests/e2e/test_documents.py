"""What README.md and docs/ tell people to type exists; that of README.md and tuning.md is typed here, in order."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rayapp.cli import VERBS
from rayapp.config.parse import load
from tests.e2e.pages import ELSEWHERE, JOBS, PAGES, README, ROOT, TRAINING, TUNING, Shell, blocks, commands, inline

RESUME = "rayapp train --resume RUN"  # by tests/ray/test_train.py, with the name of a run
RESUME_SWEEP = "rayapp tune --resume NAME"  # by tests/ray/test_tune.py, with the name of a sweep


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_exists_with_its_options(page: Path) -> None:
    targets = re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for line in [*commands(page), *inline(page, "rayapp"), *inline(page, "make")]:
        words = shlex.split(line)
        if words[:3] == ["ray", "job", "submit"] and "python" in words:
            script = words[words.index("python") + 1]
            assert (ROOT / script).is_file(), line
            words = ["rayapp", Path(script).stem.replace("_", "-"), *words[words.index(script) + 1 :]]
        if words[0] == "make":
            assert words[1] in targets, line
        elif words[:2] == ["serve", "deploy"]:
            assert (ROOT / words[2]).is_file(), line
        elif words[0] == "rayapp" and words[1] != "VERB":
            assert words[1] in VERBS, line
            arguments = [str(ROOT / w) if w.startswith("jobs/configs/") else w for w in words[2:] if w != "--help"]
            load(VERBS[words[1]].settings, arguments, prog=line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?://)([^)#]*)#?([^)]*)\)", page.read_text(encoding="utf-8")):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [heading.lower().replace(" ", "-") for heading in headings], f"{target}#{anchor}"


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A newcomer's, in an empty folder but for some images."""
    rng = np.random.default_rng(0)
    for at in range(60):  # two classes that differ by their colour
        folder = tmp_path / "my-images" / "train" / ("red", "blue")[at % 2]
        folder.mkdir(parents=True, exist_ok=True)
        image_hwc = rng.integers(0, 100, (32, 32, 3), dtype=np.uint8)
        image_hwc[..., 2 * (at % 2)] += 150
        Image.fromarray(image_hwc).save(folder / f"{at}.png")
        Image.fromarray(image_hwc).resize((200, 120)).save(tmp_path / "photo.png")
    shell = Shell(tmp_path)
    yield shell
    shell.close()


@pytest.mark.timeout(1500)
def test_the_commands_of_the_readme_do_what_it_says(shell: Shell) -> None:
    printed = {}
    for line in commands(README):
        if not line.startswith(ELSEWHERE):
            printed[line] = shell.type(line)
    assert "champion" in printed["rayapp models"]
    answer = next(out for line, out in printed.items() if line.startswith("curl"))
    assert '"predicted_class"' in answer
    table = next(out for line, out in printed.items() if line.startswith("rayapp predict"))
    assert "photo.png" in table


def test_pages_on_jobs_and_training_only_repeat_what_is_typed_somewhere() -> None:
    typed = {*commands(README), RESUME}
    for page in (JOBS, TRAINING):
        assert {shlex.split(line)[0] for line in commands(page)} <= {"rayapp", "ray", "export", "chmod"}
        for line in commands(page):
            if line.startswith("rayapp"):
                assert line in typed or line == "rayapp train --data.dataset digits --compute.num_workers 2", line


@pytest.mark.timeout(1500)
def test_the_commands_of_the_page_on_tuning_do_what_it_says_with_fewer_trials(shell: Shell) -> None:
    printed = []
    for line in commands(TUNING):
        if line.startswith("rayapp tune --config"):
            here = line.replace("jobs/configs/", f"{shlex.quote(str(ROOT))}/jobs/configs/")
            printed.append(json.loads(shell.type(f"{here} --budget.trials 2 --optim.epochs 1")))
        elif not line.startswith(ELSEWHERE) and line != RESUME_SWEEP:
            printed.append(json.loads(shell.type(line)))
    sweep, again, with_price = printed
    assert (sweep["sweep"], sweep["trials"]) == ("digits", 2)
    assert {name: again[name] for name in ("best_trial", "best_values")} == {
        name: sweep[name] for name in ("best_trial", "best_values")
    }
    assert with_price["cost_usd"] > 0
    folder = shell.home / "sweeps" / "digits"
    assert {path.name for path in folder.glob("*.png")} == {"history.png", "parallel_coordinates.png"}
    (program,) = blocks(TUNING, "python")
    assert re.fullmatch(r"\{'optim.lr': [01]\.\d+\} 0\.\d+", shell.python(program).splitlines()[-1])
    shell.type("rayapp tune --clean digits --yes")
    assert not folder.exists()
