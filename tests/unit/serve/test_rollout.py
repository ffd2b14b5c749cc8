"""Rollout and Follower: the alias is followed by all replicas together, and nothing on the way reaches a client."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rayapp.errors import BundleError, ConfigError, RegistryError, RegistryUnavailable
from rayapp.registry.uris import ModelVersion
from rayapp.serve.follower import Follower, LastServed, first_served, once_possible, prepare
from rayapp.serve.metrics import Metrics
from rayapp.serve.replica import Replica
from rayapp.serve.rollout import Refusal, ReplicaStatus, Rollout
from rayapp.vision.bundle import GRAPH
from tests.support.bundles import Shelf
from tests.support.images import encoded, picture
from tests.support.serving import quick_args
from tests.support.wait import until


class View:
    """A shelf as one node sees it, whose disk may be full."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self.disk_is_full = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shelf, name)

    def download(self, version: ModelVersion, cache: Path) -> Any:
        if self.disk_is_full:
            raise OSError(28, "No space left")
        return self._shelf.download(version, cache)


class Node:
    """One replica with a registry of its own view, as each process has."""

    def __init__(self, shelf: Shelf, folder: Path, args: Any) -> None:
        self.metrics = Metrics()
        self.registry: Any = View(shelf)
        last = LastServed(folder)
        self.replica = Replica(first_served(self.registry, None, last, folder, args), args, self.metrics)
        self.follower = Follower(self.replica, self.registry, folder, args, self.metrics, last)

    @property
    def numbers(self) -> str:
        """What /metrics says of us."""
        return "\n".join(line for line in self.metrics.render().decode().splitlines() if line.startswith("rayapp_"))


class Scene:
    """Replicas that follow a shelf; a fleet as Rollout sees it."""

    def __init__(self, folder: Path, *, num_replicas: int = 1, **changes: Any) -> None:
        self.folder = folder
        self.shelf = Shelf(folder)
        self.shelf.add(1)
        self.args = quick_args(**{"poll_s": 0.01, **changes})
        self.nodes = [self.new_node() for _ in range(num_replicas)]
        self.rollout = Rollout(self, self.shelf, self.args)

    def new_node(self) -> Node:
        return Node(self.shelf, self.folder, self.args)

    async def poll(self, *, resolved: bool, refused: Refusal | None) -> Sequence[ReplicaStatus]:
        return [node.follower.poll(resolved=resolved, refused=refused) for node in self.nodes]

    async def prepare(self, version: ModelVersion) -> Sequence[Refusal | None]:
        return await asyncio.gather(*(node.follower.prepare(version) for node in self.nodes))

    async def commit(self, champion: ModelVersion, second: ModelVersion | None) -> None:
        for node in self.nodes:
            node.follower.commit(champion, second)

    @property
    def replica(self) -> Replica:
        return self.nodes[0].replica

    @property
    def numbers(self) -> str:
        return self.nodes[0].numbers

    def seen(self, times: int = 1) -> str:
        """The version that every replica serves after so many looks."""

        async def run() -> None:
            for _ in range(times):
                await self.rollout.poll()

        asyncio.run(run())
        (version,) = {node.replica.served.label for node in self.nodes}
        return version


def test_moved_alias_is_followed_and_back(tmp_path: Path):
    scene = Scene(tmp_path, num_replicas=2)
    scene.shelf.add(2)

    assert scene.seen() == "1"
    scene.shelf.champion = 2
    assert scene.seen() == "2"
    assert scene.replica.served.metadata["version"] == "2"
    assert 'model_version="2"' in scene.numbers
    assert 'model_version="1"' not in scene.numbers
    assert 'rayapp_swaps_total{result="exchanged"} 1.0' in scene.numbers
    scene.shelf.champion = 1
    assert scene.seen() == "1"


def test_alias_that_stays_costs_no_download(tmp_path: Path):
    scene = Scene(tmp_path)

    scene.seen(times=5)

    assert scene.shelf.num_downloads == 1


def test_all_replicas_take_a_version_or_none_does(tmp_path: Path):
    scene = Scene(tmp_path, num_replicas=3)
    scene.shelf.add(2)
    scene.shelf.champion = 2
    before = scene.shelf.num_downloads
    scene.nodes[1].registry.disk_is_full = True

    assert scene.seen() == "1"
    assert scene.shelf.num_downloads > before  # the others were ready, and did not take it
    assert scene.seen() == "1"
    assert all('rollout_failed{model_version="2",reason="OSError"} 1.0' in node.numbers for node in scene.nodes)
    scene.nodes[1].registry.disk_is_full = False
    until(lambda: scene.seen() == "2")


def test_replica_that_comes_late_is_brought_in_line(tmp_path: Path):
    scene = Scene(tmp_path)
    late = scene.new_node()
    scene.shelf.add(2)
    scene.shelf.champion = 2
    assert scene.seen() == "2"

    scene.nodes.append(late)

    assert scene.seen() == "2"


def test_corrupt_bundle_changes_nothing_but_a_gauge_and_a_log_line(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    scene = Scene(tmp_path)
    with (scene.shelf.add(2) / GRAPH).open("ab") as graph:
        graph.write(b"x")
    before = scene.replica.served
    scene.shelf.champion = 2

    with caplog.at_level(logging.ERROR):
        scene.seen()

    assert scene.replica.served is before
    assert 'rayapp_rollout_failed{model_version="2",reason="BundleError"} 1.0' in scene.numbers
    assert 'rayapp_swaps_total{result="refused"} 1.0' in scene.numbers
    assert "version=2" in caplog.text
    assert "serving_on=1" in caplog.text
    assert "digest" in caplog.text
    assert "Traceback" not in caplog.text


def test_model_whose_answers_do_not_fit_its_classes_is_refused(tmp_path: Path):
    scene = Scene(tmp_path)
    scene.shelf.add(2, num_logits=7)
    scene.shelf.champion = 2

    assert scene.seen() == "1"
    assert 'reason="BundleError"' in scene.numbers


def test_missing_bundle_is_refused_and_taken_once_it_is_there(tmp_path: Path):
    scene = Scene(tmp_path)
    scene.shelf.champion = 2

    assert scene.seen() == "1"
    scene.shelf.add(2)
    until(lambda: scene.seen() == "2")
    scene.seen()
    assert "rollout_failed{" not in scene.numbers


def test_refused_version_is_not_tried_at_every_look_but_another_is_at_once(tmp_path: Path):
    scene = Scene(tmp_path, poll_s=60)
    scene.shelf.champion = 2

    assert scene.seen(times=5) == "1"
    assert scene.shelf.num_downloads == 2
    scene.shelf.add(3)
    scene.shelf.champion = 3
    assert scene.seen() == "3"


def test_pauses_between_attempts_grow_up_to_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    now = [0.0]
    monkeypatch.setattr("rayapp.serve.rollout.time", SimpleNamespace(monotonic=lambda: now[0]))
    scene = Scene(tmp_path, poll_s=2)
    scene.shelf.champion = 2

    for _ in range(8):
        scene.seen()
        now[0] += 61

    assert re.findall(r"retry_in_s=(\d+)", caplog.text) == ["2", "4", "8", "16", "32", "60", "60", "60"]


def test_alias_back_on_the_served_version_clears_the_gauge(tmp_path: Path):
    scene = Scene(tmp_path)
    scene.shelf.champion = 2
    scene.seen()
    assert "rollout_failed{" in scene.numbers

    scene.shelf.champion = 1
    scene.seen()

    assert "rollout_failed{" not in scene.numbers


def test_registry_that_is_down_changes_nothing_and_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    scene = Scene(tmp_path)
    scene.shelf.add(2)
    scene.shelf.down = True

    with caplog.at_level(logging.INFO):
        assert scene.seen(times=4) == "1"
        assert "rayapp_alias_resolved 0.0" in scene.numbers
        scene.shelf.down = False
        scene.shelf.champion = 2
        assert scene.seen() == "2"

    assert "rayapp_alias_resolved 1.0" in scene.numbers
    assert caplog.text.count("MLflow does not answer") == 1
    assert caplog.text.count("resolved again") == 1


def test_error_that_nobody_thought_of_is_survived_with_its_traceback(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    scene = Scene(tmp_path)
    scene.shelf.champion = 2
    scene.shelf.download = lambda version, cache: 1 / 0  # type: ignore[method-assign, assignment, return-value]

    assert scene.seen() == "1"
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
    scene.shelf.add(2)
    scene.shelf.champion = 2

    assert scene.seen(times=2) == "1"


def test_rollout_that_starts_anew_learns_what_is_served_while_the_alias_is_refused(tmp_path: Path):
    scene = Scene(tmp_path)
    scene.shelf.champion = 2  # there is no bundle of it
    scene.rollout = Rollout(scene, scene.shelf, scene.args)

    assert scene.seen() == "1"
    assert scene.rollout.champion is not None
    assert scene.rollout.champion.version == 1


# --- the second model -------------------------------------------------------------------------------------------------


def with_second(folder: Path, **changes: Any) -> Scene:
    scene = Scene(folder, shadow={"fraction": 1.0}, **changes)
    scene.shelf.add(2)
    scene.shelf.add(3)
    scene.shelf.challenger = 2
    return scene


def second(scene: Scene) -> list[str | None]:
    return [node.replica.second.label if node.replica.second else None for node in scene.nodes]


def test_second_model_is_held_beside_the_champion_where_it_is_wanted(tmp_path: Path):
    scene = with_second(tmp_path, num_replicas=2)

    assert scene.seen() == "1"
    assert second(scene) == ["2", "2"]
    assert 'model_version="2",role="challenger"} 1.0' in scene.numbers
    scene.shelf.challenger = 3
    scene.seen()
    assert second(scene) == ["3", "3"]


def test_promoted_challenger_is_not_loaded_again_and_compares_with_nothing(tmp_path: Path):
    scene = with_second(tmp_path)
    scene.seen()
    loads = scene.shelf.num_downloads

    scene.shelf.champion = 2

    assert scene.seen() == "2"
    assert second(scene) == [None]
    assert scene.shelf.num_downloads == loads
    assert scene.replica.served.metadata["alias"] == "champion"


def test_at_most_two_models_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    scene = with_second(tmp_path)
    scene.seen()
    replica, in_memory = scene.replica, []
    assert replica.second
    there = [weakref.ref(replica.served.predictor), weakref.ref(replica.second.predictor)]

    def watched(*args: Any) -> Any:
        gc.collect()
        in_memory.append(sum(model() is not None for model in there) + 1)  # this one is on its way
        served = prepare(*args)
        there.append(weakref.ref(served.predictor))
        return served

    monkeypatch.setattr("rayapp.serve.follower.prepare", watched)
    scene.shelf.champion = 3

    assert scene.seen() == "3"
    assert second(scene) == ["2"]
    assert in_memory == [2, 2]


def test_two_questions_at_once_load_a_version_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A coordinator that starts anew asks again while the first load still runs."""
    scene = with_second(tmp_path)
    loads = []

    def counted(*args: Any) -> Any:
        loads.append(args[1].uri)
        return prepare(*args)

    monkeypatch.setattr("rayapp.serve.follower.prepare", counted)

    async def run() -> list[Any]:
        follower, version = scene.nodes[0].follower, scene.shelf.resolve("models:/vision/3")
        return await asyncio.gather(follower.prepare(version), follower.prepare(version))  # type: ignore[return-value]

    assert asyncio.run(run()) == [None, None]
    assert loads == ["models:/vision/3"]


def test_refused_champion_leaves_the_second_model_where_it_is(tmp_path: Path):
    scene = with_second(tmp_path)
    scene.seen()
    with (tmp_path / "3" / GRAPH).open("ab") as graph:
        graph.write(b"x")
    scene.shelf.champion = 3

    assert scene.seen(times=3) == "1"
    assert second(scene) == ["2"]


def test_refused_second_model_is_said_until_it_is_mended(tmp_path: Path):
    scene = with_second(tmp_path, poll_s=60)
    scene.shelf.challenger = 9  # there is no bundle of it

    scene.seen(times=3)
    assert 'rollout_failed{model_version="9",reason="BundleError"} 1.0' in scene.numbers
    scene.shelf.challenger = 2
    scene.seen(times=2)

    assert "rollout_failed{" not in scene.numbers


def test_registry_that_does_not_come_back_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """MLflow's own client tries a server that died in the middle of a call for two minutes."""
    scene, let_go = Scene(tmp_path), threading.Event()
    monkeypatch.setattr("rayapp.serve.rollout.RESOLVE_TIMEOUT_S", 0.05)
    resolve = scene.shelf.resolve
    scene.shelf.resolve = lambda uri: (let_go.wait(20), resolve(uri))[1]  # type: ignore[method-assign]

    async def run() -> None:
        await scene.rollout.poll()
        assert "rayapp_alias_resolved 0.0" in scene.numbers
        let_go.set()
        await scene.rollout.poll()

    asyncio.run(run())

    assert "rayapp_alias_resolved 1.0" in scene.numbers


def test_trouble_with_the_second_model_does_not_touch_the_champion(tmp_path: Path):
    scene = with_second(tmp_path)
    scene.shelf.challenger = 9  # there is no bundle of it
    scene.shelf.champion = 3

    assert scene.seen() == "3"
    assert second(scene) == [None]


def test_missing_challenger_is_no_trouble(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    scene = with_second(tmp_path)
    scene.shelf.challenger = None

    assert scene.seen(times=2) == "1"
    assert second(scene) == [None]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


# --- the start --------------------------------------------------------------------------------------------------------


def start(scene: Scene, wanted: ModelVersion | None = None) -> str:
    registry: Any = scene.shelf
    return first_served(registry, wanted, LastServed(scene.folder), scene.folder, scene.args).label


def test_start_while_mlflow_is_away_serves_what_was_served_last(tmp_path: Path):
    scene = Scene(tmp_path)
    scene.shelf.down = True

    assert start(scene) == "1"
    assert scene.new_node().replica.served.metadata["version"] == "1"


def test_start_while_the_alias_names_a_corrupt_bundle_serves_what_was_served_last(tmp_path: Path):
    scene = Scene(tmp_path)
    with (scene.shelf.add(2) / GRAPH).open("ab") as graph:
        graph.write(b"x")
    scene.shelf.champion = 2

    assert start(scene) == "1"


def test_new_replica_begins_with_what_the_others_serve(tmp_path: Path):
    scene = Scene(tmp_path)
    served = scene.replica.served.version
    scene.shelf.add(2)
    scene.shelf.champion = 2

    assert start(scene, wanted=served) == "1"


def test_start_without_a_model_is_an_error(tmp_path: Path):
    scene = Scene(tmp_path)
    (tmp_path / "last_served.json").unlink()
    registry: Any = scene.shelf
    scene.shelf.champion = 9

    with pytest.raises(BundleError, match=r"manifest\.json"):
        prepare(registry, scene.shelf.resolve("models:/vision@champion"), tmp_path, scene.args)
    with pytest.raises(BundleError):
        start(scene)
    scene.shelf.down = True
    with pytest.raises(RegistryUnavailable):
        start(scene)


def test_start_is_tried_again_for_what_may_come_right_and_for_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """KubeRay never submits a configuration again: three failed starts were for ever."""
    monkeypatch.setattr("rayapp.serve.follower.MAX_PAUSE_S", 0.01)
    outcomes: list[Exception | None] = [RegistryUnavailable("no answer"), BundleError("damaged"), None]

    async def attempt() -> str:
        if (error := outcomes.pop(0)) is not None:
            raise error
        return "ready"

    assert asyncio.run(once_possible(attempt, RegistryError, BundleError)) == "ready"
    assert [record.getMessage().partition(" reason=")[2] for record in caplog.records] == ["no answer", "damaged"]
    outcomes.append(ConfigError("no such device"))
    with pytest.raises(ConfigError):
        asyncio.run(once_possible(attempt, RegistryError, BundleError))


def test_start_with_the_alias_gone_or_the_disk_full_serves_what_was_served_last(tmp_path: Path):
    scene = Scene(tmp_path)
    resolve, download = scene.shelf.resolve, scene.shelf.download

    scene.shelf.resolve = lambda uri: (_ for _ in ()).throw(RegistryError("alias not found"))  # type: ignore[method-assign]
    assert start(scene) == "1"
    scene.shelf.resolve = resolve  # type: ignore[method-assign]
    scene.shelf.champion = 2

    def full(version: ModelVersion, cache: Path) -> Any:
        if version.version == 2:
            raise OSError(28, "No space left on device")
        return download(version, cache)

    scene.shelf.download = full  # type: ignore[method-assign]
    assert start(scene) == "1"


def test_damaged_note_is_no_note(tmp_path: Path):
    scene = Scene(tmp_path)
    (tmp_path / "last_served.json").write_text('{"models:/vision@champion": {"version": 3}}')

    assert LastServed(tmp_path).read("models:/vision@champion") is None
    node = scene.nodes[0]
    node.follower.commit(node.replica.served.version, None)
    assert LastServed(tmp_path).read("models:/vision@champion") is not None
