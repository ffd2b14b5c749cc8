"""README.md and docs/ as tests read them, and a terminal in which their commands are typed."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from tests.support.ports import free_port

ROOT = Path(__file__).parents[2]
README, JOBS, MIGRATION, SERVING, TRAINING, TUNING = (
    ROOT / name
    for name in (
        "README.md",
        "docs/jobs.md",
        "docs/migrate-from-bentoml.md",
        "docs/serving.md",
        "docs/training.md",
        "docs/tuning.md",
    )
)
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
# Typed by other tests: the two commands by test_demo.py and by whoever runs this, the cluster's by test_jobs.py.
ELSEWHERE = ("make ", "ray ", "serve deploy ", "export ", "source ", "chmod ")


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of a page that are in a language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def commands(page: Path) -> list[str]:
    """The lines of a page's shell blocks, without comments."""
    lines = [line.split("  #")[0].split(" # ")[0].strip() for line in "".join(blocks(page, "sh")).splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def inline(page: Path, program: str) -> list[str]:
    """The commands of a program that stand in the text of a page."""
    return re.findall(rf"`({program} [a-z][^`]*)`", page.read_text(encoding="utf-8"))


def rows(page: Path, heading: str) -> list[list[str]]:
    """The cells of all tables below a heading of a page, without their heads."""
    section = page.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = re.findall(r"^\|(.*)\|$", section, re.MULTILINE)
    return [[cell.strip() for cell in line.split("|")] for line in lines[2:]]


class Shell:
    """A reader's terminal: the environment that `make` set up, a folder, a port of its own for 3000."""

    def __init__(self, folder: Path, home: Path | None = None) -> None:
        self.folder = folder
        self.home = home or folder / ".rayapp"
        self.port = free_port()
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = os.environ | {"PATH": path, "RAYAPP_HOME": str(self.home)}
        self.log = folder / "server.log"
        self.server: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address of its server."""
        return f"http://127.0.0.1:{self.port}"

    def type(self, line: str) -> str:
        """What a command prints; one that serves stays in the background until it answers."""
        if line.startswith("rayapp serve"):
            self.serve(*shlex.split(line)[2:])
            return ""
        return self._run("bash", "-euo", "pipefail", "-c", self._here(line))

    def python(self, script: str, interpreter: str = sys.executable) -> str:
        """What a Python program prints."""
        return self._run(interpreter, "-c", self._here(script))

    def serve(self, *options: str) -> None:
        """Start the server; its output goes to log."""
        words = ["rayapp", "serve", "--port", str(self.port), *options]
        with self.log.open("wb") as log:
            self.server = subprocess.Popen(
                words, cwd=self.folder, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        self.until(self._is_ready, "rayapp serve does not answer")

    def until(self, condition: Callable[[], bool], otherwise: str, *, patience_s: float = 240) -> None:
        """Wait for a condition, while the server lives."""
        deadline = time.monotonic() + patience_s
        while not condition():
            assert self.server is not None
            assert self.server.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, f"{otherwise}: {self.log.read_text()[-3000:]}"
            time.sleep(0.2)

    def close(self) -> None:
        """End the server."""
        if self.server and self.server.poll() is None:
            self.server.send_signal(signal.SIGINT)
            self.server.wait(timeout=90)

    def _here(self, text: str) -> str:
        """The text with this server's address for those of the pages."""
        return re.sub(r":300[01]\b", f":{self.port}", text)

    def _is_ready(self) -> bool:
        """It says so last of all, once it answers."""
        if not re.search("^serving ", self.log.read_text(), re.MULTILINE):
            return False
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
        return False

    def _run(self, *words: str) -> str:
        done = subprocess.run(
            words, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, f"{words[-1]}\n{done.stdout}\n{done.stderr[-3000:]}"
        return done.stdout
