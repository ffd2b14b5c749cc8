"""The application on a real Ray Serve, over real HTTP, with a real registry."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlparse

import httpx
import psutil
import pytest
from ray import serve

from rayapp.config.serve import ServeArgs
from rayapp.errors import ConfigError, RegistryError
from rayapp.serve.app import start, stop
from rayapp.vision.bundle import GRAPH
from tests.support.images import encoded, picture
from tests.support.ports import free_port
from tests.support.processes import children
from tests.support.site import Site
from tests.support.wait import until

PATIENCE_S = 60.0  # an exchange takes 2 s on an idle machine
TIMEOUT_S = 15.0
REPLICA = "ServeReplica:rayapp-serve:VisionClassifier"


@dataclass
class Server:
    """A running server and the site that it follows."""

    site: Site
    url: str

    def version(self) -> str:
        """The version that answers."""
        info = httpx.post(f"{self.url}/get_model_info", timeout=PATIENCE_S).raise_for_status().json()
        return str(info["model_metadata"]["version"])

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until condition holds; meanwhile every prediction has to succeed."""
        data, deadline = encoded(picture()), time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline
            httpx.post(f"{self.url}/predict_image", files={"image": ("a", data)}).raise_for_status()
            time.sleep(0.05)


@pytest.fixture(scope="module")
def server(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    site, port = Site.at(tmp_path_factory.mktemp("site")), free_port()
    start(ServeArgs(device="cpu", poll_s=0.2, timeout_s=TIMEOUT_S), site.home, port=port)
    try:
        yield Server(site, f"http://127.0.0.1:{port}")
    finally:
        stop()
        serve.shutdown()  # its controller and proxy would go on beside the tests of other files


def test_single_and_batch_agree_over_http(server: Server):
    files = [encoded(picture(seed)) for seed in range(5)]

    batch = httpx.post(f"{server.url}/predict_batch", files=[("images", (f"{n}.png", f)) for n, f in enumerate(files)])
    singles = [httpx.post(f"{server.url}/predict_image", files={"image": ("a.png", file)}).json() for file in files]

    assert [one["predicted_class"] for one in batch.json()] == [one["predicted_class"] for one in singles]
    for one, other in zip(batch.json(), singles, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)


def test_headers_are_the_contracts_and_not_the_proxys(server: Server):
    health = httpx.post(f"{server.url}/health")
    missing = httpx.get(f"{server.url}/no/such/route")

    assert health.headers.get_list("server") == ["BentoML Service/VisionClassifier"]
    assert health.headers["content-type"] == "application/json"
    assert missing.headers.get_list("server") == []
    assert (missing.status_code, missing.text) == (404, "Not Found")


def test_client_cannot_shorten_the_time_limit(server: Server):
    answer = httpx.post(f"{server.url}/health", headers={"x-request-timeout-seconds": "0.0001"})

    assert answer.status_code == 200


def test_body_beyond_the_limit_is_refused_through_the_proxy(server: Server):
    chunks = (b"x" * 2**20 for _ in range(66))

    answer = httpx.post(f"{server.url}/predict_image", content=chunks, timeout=PATIENCE_S)

    assert answer.status_code == 413
    assert "limit" in answer.json()["error"]


def test_body_that_never_comes_is_answered_through_the_proxy(server: Server):
    """A client that announced 5,000 bytes and sent 55 was held for more than ten minutes."""
    url = urlparse(server.url)
    head = f"POST /predict_image HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: multipart/form-data; boundary=B\r\n"
    with socket.create_connection((url.hostname, url.port), timeout=2 * PATIENCE_S) as connection:
        connection.sendall(f"{head}Content-Length: 5000\r\n\r\n--B\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))  # until the server closes

    assert answer.startswith(b"HTTP/1.1 504 ")
    assert b"Not able to process the request in 15 seconds" in answer


def test_moved_alias_is_followed_without_a_failed_request(server: Server):
    """docs/faults.md, 46: the alias was read once, at start."""
    before = server.version()
    newer = server.site.register(2)

    server.site.promote(newer)
    server.until(lambda: server.version() == str(newer.version))

    answer = httpx.post(f"{server.url}/predict_image", files={"image": ("a", encoded(picture()))})
    assert answer.headers["x-model-version"] == str(newer.version) != before


def test_corrupt_bundle_is_refused_while_the_old_one_serves(server: Server):
    before = server.version()
    broken = server.site.register(3)
    with (Path(unquote(urlparse(broken.source).path)) / GRAPH).open("ab") as graph:
        graph.write(b"x")

    server.site.promote(broken)
    failed = f'rayapp_rollout_failed{{model_version="{broken.version}",reason="BundleError",'
    server.until(lambda: failed in httpx.get(f"{server.url}/metrics").text)

    assert server.version() == before
    assert httpx.get(f"{server.url}/readyz").status_code == 200


def test_request_whose_replica_dies_is_answered_503(server: Server):
    """It was a 500 of uvicorn's: a node that was killed under load left one among 7,169 answers."""
    url = urlparse(server.url)
    head = f"POST /predict_image HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: multipart/form-data; boundary=B\r\n"
    with socket.create_connection((url.hostname, url.port), timeout=2 * PATIENCE_S) as connection:
        connection.sendall(f"{head}Content-Length: 5000\r\n\r\n--B\r\n".encode())
        (replica,) = children(psutil.Process(), REPLICA)
        time.sleep(1)  # until the request is there
        replica.kill()
        answer = b""
        while b"}" not in answer and (more := connection.recv(65536)):
            answer += more
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"send it again" in answer

    until(lambda: httpx.post(f"{server.url}/health", timeout=PATIENCE_S).status_code == 200)


def test_missing_alias_is_said_before_serve_starts(ray_cluster: None, tmp_path: Path):
    site = Site.at(tmp_path)

    with pytest.raises(RegistryError, match="challenge"):
        start(ServeArgs(model="models:/vision@challenge"), site.home, port=free_port())


def test_more_replicas_than_cpus_are_refused_instead_of_waited_for(ray_cluster: None, tmp_path: Path):
    site = Site.at(tmp_path)

    with pytest.raises(ConfigError, match="5 CPUs, the cluster has 2"):
        start(ServeArgs(device="cpu", num_replicas=5), site.home, port=free_port())
