from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS_OF_100_STEPS = """
import resource, threading, torch
from rayapp.vision.memory import keep_freed_memory

def steps():
    keep_freed_memory()
    torch.set_num_threads(1)
    for n in range(110):
        if n == 10:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        tensors = [torch.zeros(2**18 * size) for size in (1, 4, 16, 24, 30, 30, 30)]  # MiB
        del tensors
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

"""
FIRST_THREAD = "steps()"
OTHER_THREAD = "thread = threading.Thread(target=steps); thread.start(); thread.join()"  # Ray Train's workers


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
@pytest.mark.parametrize("thread", [FIRST_THREAD, OTHER_THREAD])
def test_tensors_of_the_next_step_take_the_pages_of_the_last_one(thread: str) -> None:
    ended = subprocess.run([sys.executable, "-c", FAULTS_OF_100_STEPS + thread], capture_output=True, check=True)
    assert int(ended.stdout) < 1000  # 100 steps touch 3.4 million pages of 4 KiB
