"""What README.md and docs/ tell people to type is typed here, in the order of the page."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from rayapp import config
from rayapp.cli import VERBS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Typed by other tests: the two commands by test_demo.py and by whoever runs this, the cluster's by test_jobs.py.
ELSEWHERE = ("make ", "ray ", "export ", "source ", "chmod ")
RESUME = "rayapp train --resume RUN"  # by tests/ray/test_train.py, with the name of a run


def commands(page: Path) -> list[str]:
    """The lines of a page's shell blocks, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line.split("  #")[0].split(" # ")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def inline_commands(page: Path) -> list[str]:
    return re.findall(r"`(rayapp [a-z][^`]*)`", page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_exists_with_its_options(page: Path) -> None:
    for line in [*commands(page), *inline_commands(page)]:
        words = shlex.split(line)
        if words[:3] == ["ray", "job", "submit"] and "python" in words:
            script = words[words.index("python") + 1]
            assert (ROOT / script).is_file(), line
            words = ["rayapp", Path(script).stem, *words[words.index(script) + 1 :]]
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
        elif words[0] == "rayapp" and words[1] != "VERB":
            assert words[1] in VERBS, line
            arguments = [str(ROOT / w) if w.startswith("jobs/configs/") else w for w in words[2:] if w != "--help"]
            config.load(VERBS[words[1]].settings, arguments, prog=line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("path", sorted((ROOT / "jobs/configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_loads(path: Path) -> None:
    settings = config.load(config.TrainSettings, ["--config", str(path)], prog="rayapp train")
    assert path.stem == f"{settings.data.dataset}-{settings.model.name}"


class Shell:
    """A newcomer's terminal: the environment that `make` set up, an empty folder, a port of its own for 3000."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = os.environ | {"PATH": path, "RAYAPP_HOME": str(folder / ".rayapp")}
        self.server: subprocess.Popen[bytes] | None = None

    def type(self, line: str) -> str:
        """What a command prints; one that serves stays in the background until it answers."""
        if line == "rayapp serve":
            return self._serve()
        line = line.replace(":3000", f":{self.port}")
        done = subprocess.run(
            shlex.split(line), cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=400
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr[-3000:]}"
        return done.stdout

    def _serve(self) -> str:
        words = ["rayapp", "serve", "--port", str(self.port)]
        self.server = subprocess.Popen(words, cwd=self.folder, env=self.environment, start_new_session=True)
        until = time.monotonic() + 240
        while time.monotonic() < until:
            assert self.server.poll() is None
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{self.port}/readyz", timeout=5).status_code == 200:
                    return ""
            time.sleep(0.3)
        raise AssertionError("rayapp serve does not answer")


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
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
    if shell.server:
        shell.server.send_signal(signal.SIGINT)
        shell.server.wait(timeout=90)


@pytest.mark.timeout(900)
def test_the_commands_of_the_readme_do_what_it_says(shell: Shell) -> None:
    printed = {}
    for line in commands(ROOT / "README.md"):
        if not line.startswith(ELSEWHERE):
            printed[line] = shell.type(line)
    assert "champion" in printed["rayapp models"]
    answer = next(out for line, out in printed.items() if line.startswith("curl"))
    assert '"predicted_class"' in answer
    table = next(out for line, out in printed.items() if line.startswith("rayapp predict"))
    assert "photo.png" in table


def test_other_pages_only_repeat_what_is_typed_somewhere() -> None:
    typed = {*commands(ROOT / "README.md"), RESUME}
    first_words = {shlex.split(line)[0] for page in PAGES[1:] for line in commands(page)}
    assert first_words <= {"rayapp", "ray", "export", "chmod"}
    for page in PAGES[1:]:
        for line in commands(page):
            if line.startswith("rayapp"):
                assert line in typed or line == "rayapp train --data.dataset digits --compute.num_workers 2", line
