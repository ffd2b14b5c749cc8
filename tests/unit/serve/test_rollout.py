"""Rollout: the alias is followed, and nothing that goes wrong on the way reaches a client."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from rayapp.errors import BundleError, RegistryError
from rayapp.serve.metrics import Metrics
from rayapp.serve.replica import Replica
from rayapp.serve.rollout import Rollout, prepare
from rayapp.vision.bundle import GRAPH
from tests.contract.tiny import Shelf, encoded, picture, quick_args


class Scene:
    """A replica that follows a shelf."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.shelf = Shelf(folder)
        self.shelf.add(1)
        self.args = quick_args(**{"poll_s": 0.01, **changes})
        self.metrics = Metrics()
        registry: Any = self.shelf
        self.replica = Replica(prepare(registry, self.shelf.resolve(self.args.model), folder, self.args), self.args)
        self.rollout = Rollout(self.replica, registry, folder, self.args, self.metrics)

    @property
    def numbers(self) -> str:
        """What /metrics says of us."""
        return "\n".join(line for line in self.metrics.render().decode().splitlines() if line.startswith("rayapp_"))

    def look(self, times: int = 1) -> str:
        """The version that is served after so many looks."""

        async def run() -> None:
            for _ in range(times):
                await self.rollout.look()

        asyncio.run(run())
        return self.replica.served.label


def test_moved_alias_is_followed_and_back(tmp_path: Path):
    scene = Scene(tmp_path)
    scene.shelf.add(2)

    assert scene.look() == "1"
    scene.shelf.champion = 2
    assert scene.look() == "2"
    assert scene.replica.served.metadata["version"] == "2"
    assert 'model_version="2"' in scene.numbers
    assert 'model_version="1"' not in scene.numbers
    scene.shelf.champion = 1
    assert scene.look() == "1"


def test_alias_that_stays_costs_no_download(tmp_path: Path):
    scene = Scene(tmp_path)

    scene.look(times=5)

    assert scene.shelf.num_downloads == 1


def test_corrupt_bundle_changes_nothing_but_a_gauge_and_a_log_line(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    scene = Scene(tmp_path)
    with (scene.shelf.add(2) / GRAPH).open("ab") as graph:
        graph.write(b"x")
    before = scene.replica.served
    scene.shelf.champion = 2

    with caplog.at_level(logging.ERROR):
        scene.look()

    assert scene.replica.served is before
    assert 'rayapp_rollout_failed{model_version="2",reason="BundleError"} 1.0' in scene.numbers
    assert "version=2" in caplog.text
    assert "serving_on=1" in caplog.text
    assert "digest" in caplog.text
    assert "Traceback" not in caplog.text


def test_model_whose_answers_do_not_fit_its_classes_is_refused(tmp_path: Path):
    scene = Scene(tmp_path)
    scene.shelf.add(2, num_logits=7)
    scene.shelf.champion = 2

    assert scene.look() == "1"
    assert 'reason="BundleError"' in scene.numbers


def test_missing_bundle_is_refused_and_taken_once_it_is_there(tmp_path: Path):
    scene = Scene(tmp_path)
    scene.shelf.champion = 2

    assert scene.look() == "1"
    scene.shelf.add(2)
    scene.rollout._retry_at = 0.0
    assert scene.look() == "2"
    assert "rollout_failed{" not in scene.numbers


def test_refused_version_is_not_tried_at_every_look_but_another_is_at_once(tmp_path: Path):
    scene = Scene(tmp_path, poll_s=60)
    scene.shelf.champion = 2

    assert scene.look(times=5) == "1"
    assert scene.shelf.num_downloads == 2
    scene.shelf.add(3)
    scene.shelf.champion = 3
    assert scene.look() == "3"


def test_pauses_between_attempts_grow_up_to_a_minute(tmp_path: Path):
    scene = Scene(tmp_path, poll_s=2)
    scene.shelf.champion = 2
    pauses = []

    for _ in range(8):
        scene.rollout._retry_at = 0.0
        scene.look()
        pauses.append(scene.rollout._pause_s)

    assert pauses == [2, 4, 8, 16, 32, 60, 60, 60]


def test_alias_back_on_the_served_version_clears_the_gauge(tmp_path: Path):
    scene = Scene(tmp_path)
    scene.shelf.champion = 2
    scene.look()
    assert "rollout_failed{" in scene.numbers

    scene.shelf.champion = 1
    scene.look()

    assert "rollout_failed{" not in scene.numbers


def test_registry_that_is_down_changes_nothing_and_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    scene = Scene(tmp_path)
    scene.shelf.add(2)
    scene.shelf.down = True

    with caplog.at_level(logging.INFO):
        assert scene.look(times=4) == "1"
        assert "rayapp_alias_resolved 0.0" in scene.numbers
        scene.shelf.down = False
        scene.shelf.champion = 2
        assert scene.look() == "2"

    assert "rayapp_alias_resolved 1.0" in scene.numbers
    assert caplog.text.count("MLflow does not answer") == 1
    assert caplog.text.count("resolved again") == 1


def test_error_that_nobody_thought_of_is_survived_with_its_traceback(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    scene = Scene(tmp_path)
    scene.shelf.champion = 2
    scene.shelf.download = lambda version, cache: 1 / 0  # type: ignore[method-assign, assignment, return-value]

    assert scene.look() == "1"
    assert "ZeroDivisionError" in caplog.text
    assert 'reason="ZeroDivisionError"' in scene.numbers


def test_follow_exchanges_while_requests_are_answered(tmp_path: Path):
    scene = Scene(tmp_path)
    scene.shelf.add(2)

    async def run() -> set[str]:
        following = asyncio.create_task(scene.rollout.follow())
        seen, file = set(), encoded(picture())
        for turn in range(200):
            served = scene.replica.served
            seen.add(served.label)
            await scene.replica.predict(served, [file])
            if turn == 20:
                scene.shelf.champion = 2
            if seen == {"1", "2"}:
                break
            await asyncio.sleep(0.01)
        following.cancel()
        return seen

    assert asyncio.run(run()) == {"1", "2"}


def test_fixed_version_is_not_followed(tmp_path: Path):
    scene = Scene(tmp_path, model="models:/vision/1")
    scene.shelf.champion = 2

    asyncio.run(asyncio.wait_for(scene.rollout.follow(), 5))  # returns instead of looking for ever

    assert scene.replica.served.label == "1"


def test_start_without_a_model_is_an_error(tmp_path: Path):
    scene = Scene(tmp_path)
    registry: Any = scene.shelf
    scene.shelf.champion = 9

    with pytest.raises(BundleError, match=r"manifest\.json"):
        prepare(registry, scene.shelf.resolve("models:/vision@champion"), tmp_path, scene.args)
    scene.shelf.down = True
    with pytest.raises(RegistryError):
        scene.shelf.resolve("models:/vision@champion")
