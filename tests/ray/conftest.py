"""A Ray cluster for all tests of a process, started by the first one that asks for it."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def one_cluster() -> Iterator[None]:
    """A local cluster with 2 CPUs and no dashboard, in this process."""
    import ray

    folder = tempfile.mkdtemp(prefix="ra", dir="/tmp")  # short: a socket's path has at most 107 characters
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=80 * 2**20,
        log_to_driver=False,
        _temp_dir=folder,
        _system_config={"worker_niceness": 0},  # as rayapp/runtime/start.py says
    )
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def ray_cluster(one_cluster: None) -> Iterator[None]:
    """That cluster, for the tests of a file: at their end nothing may hold a CPU any more."""
    yield
    held = what_holds_a_cpu(patience_s=60)
    assert not held, f"the tests of this file have left work that goes on: {held}"


def what_holds_a_cpu(patience_s: float) -> list[str]:
    """The actors that are alive where CPUs are not free, after the time that Ray takes to end and to count."""
    import ray
    from ray._private.state import actors  # what ray.util.state offers needs the dashboard

    deadline = time.monotonic() + patience_s
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        if time.monotonic() > deadline:
            return [actor["ActorClassName"] for actor in actors().values() if actor["State"] != "DEAD"] or ["a task"]
        time.sleep(0.2)
    return []
