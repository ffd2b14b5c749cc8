"""A cluster of several hosts that are as Debian makes them: it grows, and a host goes away."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from tests.support.hosts import RAY, hosts
from tests.support.wait import until

pytestmark = [pytest.mark.timeout(900), pytest.mark.cluster]
SOON = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20"}  # it waits so long for a node that is gone; usually 60 s
OPTIONS = {
    "--name": "hosts", "--data.dataset": "digits", "--optim.epochs": "14", "--optim.batch_size": "32",
    "--compute.num_workers": "1..2", "--compute.resize_every_s": "1", "--checkpoint.notice_every_steps": "2",
}  # fmt: skip
TRAIN = [sys.executable, "-m", "rayapp", "train", *(word for pair in OPTIONS.items() for word in pair)]
PREEMPTED = ("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot")
NOTICED = re.compile(r"announced to go away: checkpoint of step (\d+)")


def test_a_training_takes_a_host_that_joins_checkpoints_when_it_is_to_go_and_outlives_it(tmp_path: Path) -> None:
    """gloo listened on 127.0.1.1, the address of each host's own name; and with a display the whole training died."""
    home, said = tmp_path / "home", tmp_path / "said"
    with hosts(3) as (head, stays, goes), said.open("w") as log:
        head.begin("--include-dashboard=false")
        stays.join(head)
        until(lambda: head.cpus() == 1, otherwise=lambda: "the first host does not join")
        training = head.start(*TRAIN, env={"RAY_ADDRESS": head.ray_address, "RAYAPP_HOME": str(home), **SOON}, log=log)

        def steps() -> list[int]:
            """Of the checkpoints that are whole."""
            found = home.glob("runs/*/checkpoint_*/digest.json")
            return sorted(int(path.parent.name.split("_")[1]) for path in found)

        def happens(sentence: str, times: int = 1) -> None:
            until(lambda: said.read_text().count(sentence) >= times or training.poll() is not None, patience_s=400)
            assert said.read_text().count(sentence) >= times, said.read_text()

        happens("1 of 1..2 workers: world batch 32, peak rate 0.05")
        until(steps, patience_s=400)
        goes.join(head)
        happens("2 of 1..2 workers: world batch 64, peak rate 0.1")
        at_the_start = steps()[-1]
        until(lambda: steps()[-1] > at_the_start, patience_s=400, otherwise=said.read_text)

        node = ("--node-id", goes.ray_id(head), "--deadline-remaining-seconds", "60")
        assert head.start(RAY, "drain-node", "--address", head.ray_address, *node, *PREEMPTED).wait() == 0
        happens("announced to go away: checkpoint of step")
        # that there is a checkpoint off an epoch's end would not do: the notice may come with the last step of one
        assert int(NOTICED.findall(said.read_text())[0]) in steps()

        goes.kill()
        happens("1 of 1..2 workers: world batch 32", times=2)
        assert training.wait(timeout=600) == 0, said.read_text()

    text = said.read_text()
    assert json.loads(text.splitlines()[-1])["epochs"] == 14
    assert text.count("went on from step") >= 2
    assert "Traceback" not in text
