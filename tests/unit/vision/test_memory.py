from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS_OF_100_TENSORS = """
import resource, sys, torch
from rayapp.vision.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
torch.set_num_threads(1)
for n in range(110):
    if n == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.zeros(2**20) for _ in range(2)]  # 4 MiB each
    del tensors
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_tensors_of_the_next_step_take_the_pages_of_the_last_one() -> None:
    faults = {}
    for how in ("kept", "as usual"):
        ended = subprocess.run([sys.executable, "-c", FAULTS_OF_100_TENSORS, how], capture_output=True, check=True)
        faults[how] = int(ended.stdout)
    assert faults["kept"] < 1000 < faults["as usual"]
