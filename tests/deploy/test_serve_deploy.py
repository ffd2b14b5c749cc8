"""The serve config of the rendered RayService starts with `serve deploy` on a Ray head of this test's own.

What is other than on the cluster, and nothing else is: host and port (every interface and 3000 there), the file of the
API keys, and how many replicas (one, on two cores). The head has the variables of the RayService's pods.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from rayapp.serve.haproxy import private_haproxy
from tests.deploy.manifests import Json, rendered, the
from tests.e2e.heads import Head, started_head
from tests.support.images import encoded, picture
from tests.support.ports import free_port
from tests.support.processes import listeners
from tests.support.site import Site

pytestmark = [
    pytest.mark.timeout(600),  # Ray's head, HAProxy and a replica start one after another
    pytest.mark.cluster,
    pytest.mark.skipif(sys.platform != "linux", reason="HAProxy comes with Ray on Linux only"),
]
PATIENCE_S = 240.0
KEY = "key-of-a-client"


def pods_env(service: Json) -> dict[str, str]:
    """The variables that the pods of the service have by name, without those that are for the cluster alone."""
    (worker,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    env = worker["template"]["spec"]["containers"][0]["env"]
    return {variable["name"]: variable["value"] for variable in env if variable["name"] != "HOME"}


@pytest.fixture
def service() -> Json:
    return the("RayService", "vision", rendered("prod"))


@pytest.fixture
def head(service: Json, tmp_path: Path) -> Iterator[Head]:
    flags = ("--num-cpus=2", "--object-store-memory=100000000")
    with tempfile.TemporaryDirectory(prefix="rs", dir="/tmp") as folder:  # a socket's path has 107 characters at most
        env = pods_env(service) | private_haproxy(Path(folder), "127.0.0.1")
        with started_head(Site.at(tmp_path / "site").home.folder, env, flags) as found:
            yield found


def substituted(config: str, *, port: int, keys: Path) -> str:
    """The config for this machine; the head of this file says what is other."""
    values = yaml.safe_load(config)
    (application,) = values["applications"]
    replicas = application["deployments"][0]
    values["http_options"] |= {"host": "127.0.0.1", "port": port}
    application["args"]["api_keys"] = str(keys)
    replicas["autoscaling_config"] |= {"min_replicas": 1, "max_replicas": 1}
    return yaml.safe_dump(values)


def until_ready(url: str, head: Head) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        assert time.monotonic() < deadline, head.run("serve", "status")
        time.sleep(0.5)


def takes_requests(port: int) -> set[str]:
    """The names of the processes that listen on it. HAProxy gives way to a new one whenever the replicas change."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := listeners(port)):
        assert time.monotonic() < deadline
    return found


def test_the_rendered_config_serves(service: Json, head: Head, tmp_path: Path):
    port = free_port()
    keys = tmp_path / "keys.sha256"
    keys.write_text(f"{hashlib.sha256(KEY.encode()).hexdigest()}  -\n")
    file = tmp_path / "serve.yaml"
    file.write_text(substituted(service["spec"]["serveConfigV2"], port=port, keys=keys), encoding="utf-8")
    url, image = f"http://127.0.0.1:{port}", encoded(picture())

    head.run("serve", "deploy", str(file))
    until_ready(url, head)

    bearer = {"Authorization": f"Bearer {KEY}"}
    answer = httpx.post(f"{url}/predict_image", files={"image": ("a.png", image)}, headers=bearer, timeout=60)
    assert (answer.status_code, answer.headers["x-model-version"]) == (200, "1")
    assert httpx.post(f"{url}/predict_image", files={"image": ("a.png", image)}, timeout=60).status_code == 401
    assert takes_requests(port) == {"haproxy"}
    status = yaml.safe_load(head.stdout("serve", "status"))
    assert status["applications"]["vision"]["status"] == "RUNNING"
