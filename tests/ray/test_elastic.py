"""A run that grows with the cluster, is told that a node will go away, and survives that it does."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(1500)
SOON = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20"}  # it waits so long for a node that is gone; usually 60 s
PATIENCE_S = 600  # for one thing to happen, on a machine that is slow and shared


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """A cluster of processes of its own, with one node of one CPU; more can be added and lost."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    folder = tempfile.mkdtemp(prefix="rc", dir="/tmp")  # short: a socket's path has at most 107 characters
    head = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False, "temp_dir": folder}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    cluster.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


class Training:
    """`rayapp train` on the cluster."""

    def __init__(self, home: Path, address: str) -> None:
        self._log = home / "log"
        self._run = home / "runs" / "elastic"
        settings = {
            "--name": "elastic", "--register": "false", "--data.dataset": "digits",
            "--optim.epochs": "14", "--optim.batch_size": "32", "--tracking.log_every_steps": "2",
            "--compute.num_workers": "1..2", "--compute.resize_every_s": "1", "--checkpoint.notice_every_steps": "2",
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rayapp.cli", "train", *(word for pair in settings.items() for word in pair)],
            env=os.environ | {"RAYAPP_HOME": str(home), "RAY_ADDRESS": address, **SOON},
            stdout=self._log.open("w"),
            stderr=subprocess.STDOUT,
        )

    @property
    def said(self) -> str:
        return self._log.read_text()

    @property
    def steps(self) -> list[int]:
        """Steps of the checkpoints that are whole."""
        return sorted(int(path.parent.name.split("_")[1]) for path in self._run.glob("checkpoint_*/digest.json"))

    def wait_until(self, happened: Callable[[], bool]) -> None:
        until = time.monotonic() + PATIENCE_S
        while not happened():
            assert self.process.poll() is None, self.said
            assert time.monotonic() < until, self.said
            time.sleep(0.05)


def test_a_run_grows_with_the_cluster_and_checkpoints_before_a_spot_node_goes(two_nodes, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    training = Training(tmp_path, two_nodes.address)
    training.wait_until(lambda: bool(training.steps))
    assert "1 of 1..2 workers: world batch 32, peak rate 0.05" in training.said
    spot = two_nodes.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    training.wait_until(lambda: "2 of 1..2 workers: world batch 64, peak rate 0.1" in training.said)

    at_the_start = training.steps[-1]
    training.wait_until(lambda: training.steps[-1] > at_the_start)
    notice = ("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot", "--deadline-remaining-seconds")
    ray = [str(Path(sys.executable).with_name("ray")), "drain-node", "--address", two_nodes.address]
    subprocess.run([*ray, "--node-id", spot.node_id, *notice, "60"], check=True, capture_output=True)
    # that there is a checkpoint off an epoch's end would not do: the notice may come with the last step of one
    noticed = re.compile(r"announced to go away: checkpoint of step (\d+)")
    training.wait_until(lambda: noticed.search(training.said) is not None)
    found = noticed.search(training.said)
    assert found is not None
    assert int(found[1]) in training.steps

    two_nodes.remove_node(spot, allow_graceful=False)
    training.wait_until(lambda: training.said.count("1 of 1..2 workers: world batch 32") == 2)
    assert training.process.wait(timeout=PATIENCE_S) == 0, training.said
    assert training.said.count("went on from step") >= 2
