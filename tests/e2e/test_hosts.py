"""A cluster of several hosts that are as Debian makes them, and lose one another."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.support.hosts import PORT, ray_hosts
from tests.support.wait import until

pytestmark = [pytest.mark.timeout(900), pytest.mark.cluster]
SOON = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20"}  # it waits so long for a node that is gone; usually 60 s


def test_two_hosts_train_together_and_when_one_is_gone_the_other_goes_on(tmp_path: Path) -> None:
    """gloo listened on 127.0.1.1, the address of each host's own name; and with a display the whole training died."""
    said = tmp_path / "said"
    options = {
        "--name": "hosts", "--data.dataset": "digits", "--optim.epochs": "14", "--optim.batch_size": "32",
        "--compute.num_workers": "1..2", "--compute.resize_every_s": "1", "--checkpoint.every_steps": "20",
    }  # fmt: skip
    words = [sys.executable, "-m", "rayapp", "train", *(word for pair in options.items() for word in pair)]
    with ray_hosts(2) as (head, (_, goes)), said.open("w") as log:
        where = {"RAY_ADDRESS": f"{head.address}:{PORT}", "RAYAPP_HOME": str(tmp_path / "home")}
        training = head.start(*words, env=where | SOON, log=log)

        def happens(*sentences: str) -> None:  # one of them: of epochs that follow fast not each has its line
            def is_said() -> bool:
                return any(sentence in said.read_text() for sentence in sentences)

            until(lambda: is_said() or training.poll() is not None, patience_s=400)
            assert is_said(), said.read_text()

        happens("2 of 1..2 workers: world batch 64")
        happens("epoch 4/14", "epoch 5/14", "epoch 6/14", "epoch 7/14")
        goes.kill()
        happens("went on from step")
        assert training.wait(timeout=400) == 0, said.read_text()

    text = said.read_text()
    assert json.loads(text.splitlines()[-1])["epochs"] == 14
    assert "1 of 1..2 workers: world batch 32" in text
    assert "Traceback" not in text
