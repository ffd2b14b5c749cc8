"""Two processes that want one data set."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.images import write_folder


def test_two_processes_decode_once(tmp_path: Path, home: Path):
    root = write_folder(tmp_path / "set", {"train/a": 200, "train/b": 200, "test/a": 2}, size=(64, 64))
    code = (
        "import sys, time; from pathlib import Path; from rayapp.config.train import DataConfig;"
        "from rayapp.data import cache, datasets; fill = cache._fill\n"
        "def counted(*args): print('decodes', flush=True); time.sleep(1); fill(*args)\n"
        "cache._fill = counted\n"
        "print(datasets.load(DataConfig(dataset='folder', path=sys.argv[1]), Path(sys.argv[2])).info.digest)"
    )
    command = [sys.executable, "-c", code, str(root), str(home)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    lines = [line for process in both for line in process.communicate(timeout=120)[0].split()]

    assert [process.returncode for process in both] == [0, 0]
    assert lines.count("decodes") == 1
    assert len(set(lines)) == 2  # and one digest
    assert not list((home / "decoded").glob(".partial*"))
