"""What Ray's start may end in."""

from __future__ import annotations

import pytest
import ray

from rayapp.errors import RayAppError
from rayapp.runtime.start import ray_cluster


def test_a_machine_on_which_ray_does_not_start_in_time_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray raises a plain Exception then, of which people saw a traceback."""

    def init(**_: object) -> None:
        raise Exception("The current node timed out\nduring startup.")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # another test of this process may have a cluster
    with (
        pytest.raises(RayAppError, match=r"Ray cannot be started: The current node timed out during startup.*doctor"),
        ray_cluster(),
    ):
        pass
