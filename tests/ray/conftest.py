"""One Ray cluster for all tests of this folder, started by the first test that asks for it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
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
    )
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
