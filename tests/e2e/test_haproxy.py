"""`rayapp serve` as it runs in production: HAProxy before two replicas, under load, while things change and die."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlparse

import httpx
import psutil
import pytest

from rayapp.vision.bundle import GRAPH
from tests.support.images import encoded, picture
from tests.support.ports import free_port
from tests.support.processes import children, has_ended, kill, listened_on
from tests.support.site import Site

PATIENCE_S = 120.0
PNG = encoded(picture())

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="HAProxy comes with Ray on Linux only")


class Server:
    """A running `rayapp serve` with two replicas, and the site that it follows."""

    def __init__(self, site: Site, process: psutil.Process, port: int) -> None:
        self.site, self.process, self.port = site, process, port
        self.url = f"http://127.0.0.1:{port}"

    def ask(self, client: httpx.Client | None = None) -> httpx.Response:
        return (client or httpx).post(f"{self.url}/predict_image", files={"image": ("a.png", PNG)}, timeout=PATIENCE_S)

    def metrics(self) -> str:
        return httpx.get(f"{self.url}/metrics", timeout=PATIENCE_S).text

    def children(self, name: str) -> list[psutil.Process]:
        """The processes that this server has started, by a part of their command line."""
        return children(self.process, name)


class Load:
    """Clients that ask without a pause until they are stopped, and what they got."""

    def __init__(self, server: Server, *, num_clients: int = 4) -> None:
        self._server = server
        self._done = threading.Event()
        self.got: Counter[str] = Counter()  # "200 by VERSION", other statuses, errors
        self._threads = [threading.Thread(target=self._ask) for _ in range(num_clients)]

    def _ask(self) -> None:
        with httpx.Client() as client:
            while not self._done.is_set():
                try:
                    answer = self._server.ask(client)
                except httpx.HTTPError as error:
                    self.got[repr(error)] += 1
                else:
                    self.got[f"{answer.status_code} by {answer.headers.get('x-model-version')}"] += 1

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    @property
    def failed(self) -> dict[str, int]:
        """What was not answered with 200."""
        return {what: count for what, count in self.got.items() if not what.startswith("200 ")}


def replicas(metrics: str) -> set[str]:
    """The names of the replicas that /metrics tells of."""
    return set(re.findall(r'rayapp_queued_images\{replica="(\w+)"\}', metrics))


def predictions(metrics: str) -> float:
    """The images that all replicas have answered."""
    return sum(map(float, re.findall(r"rayapp_predictions_total\{.*\} ([\d.]+)", metrics)))


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("haproxy")
    site, port = Site.at(folder / "site"), free_port()
    command = [sys.executable, "-m", "rayapp.cli", "serve", "--port", str(port), "--app.num_replicas", "2"]
    command += ["--app.device", "cpu", "--app.poll_s", "0.5"]
    environment = os.environ | {"RAYAPP_HOME": str(site.home.folder)}
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            assert "serving models:/vision/1" in process.stdout.readline(), (folder / "log").read_text()
            yield Server(site, psutil.Process(process.pid), port)
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    assert "Traceback" not in (folder / "log").read_text()


def test_haproxys_pages_and_the_service_are_on_loopback_alone(server: Server):
    until(lambda: len(server.children("/haproxy.cfg")) == 1)  # one that was replaced ends with its last connection
    (haproxy,) = server.children("/haproxy.cfg")

    addresses = listened_on(haproxy)

    assert {ip for ip, _ in addresses} == {"127.0.0.1"}
    assert server.port in {port for _, port in addresses}
    assert len(addresses) == 3  # the service, statistics, metrics


def test_replicas_do_not_hold_torch(server: Server):
    """Each held a gigabyte; ONNX Runtime answers."""
    for replica in server.children("ServeReplica:rayapp-serve:VisionClassifier"):
        libraries = {Path(one.path).name for one in replica.memory_maps()}
        assert any(name.startswith("onnxruntime") for name in libraries)
        assert not [name for name in libraries if name.startswith("libtorch")]


def test_metrics_are_those_of_both_replicas_whichever_is_asked(server: Server):
    before = predictions(server.metrics())
    with Load(server) as load:
        until(lambda: sum(load.got.values()) > 50)

    texts = [server.metrics() for _ in range(4)]

    for text in texts:
        assert len(replicas(text)) == 2
        assert predictions(text) - before == sum(load.got.values())


def test_both_replicas_follow_the_alias_without_a_failed_request(server: Server):
    newer = server.site.register(2)

    with Load(server) as load:
        until(lambda: load.got["200 by 1"] > 50)
        server.site.promote(newer)
        until(lambda: server.metrics().count(f'model_version="{newer.version}",replica') >= 2)
        until(lambda: load.got[f"200 by {newer.version}"] > 50)

    assert load.failed == {}
    assert {server.ask().headers["x-model-version"] for _ in range(20)} == {str(newer.version)}


def test_corrupt_bundle_is_refused_by_both_and_nobody_notices(server: Server):
    before = server.ask().headers["x-model-version"]
    broken = server.site.register(3)
    with (Path(unquote(urlparse(broken.source).path)) / GRAPH).open("ab") as graph:
        graph.write(b"x")

    with Load(server) as load:
        server.site.promote(broken)
        refused = f'rayapp_rollout_failed{{model_version="{broken.version}",reason="BundleError",replica='
        until(lambda: server.metrics().count(refused) == 2)
        assert httpx.get(f"{server.url}/readyz").status_code == 200

    assert load.failed == {}
    assert set(load.got) == {f"200 by {before}"}


def test_replica_that_is_killed_fails_no_request_and_its_successor_serves_the_same(server: Server):
    """The alias names a corrupt bundle meanwhile: the new replica takes what the other one serves."""
    before = server.ask().headers["x-model-version"]
    victim = server.children("ServeReplica:rayapp-serve:VisionClassifier")[0]

    with Load(server) as load:
        until(lambda: sum(load.got.values()) > 50)
        assert kill(victim)
        until(lambda: has_ended(victim))
        until(lambda: len(replicas(server.metrics())) == 2)

    assert load.failed == {}
    assert set(load.got) == {f"200 by {before}"}
