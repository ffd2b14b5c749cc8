"""What is wrong at the start of a service on a cluster and comes right later: nobody has to start it again."""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote, urlparse

import httpx
from ray import serve

from rayapp.config.serve import ServeArgs
from rayapp.serve.app import application
from rayapp.vision.bundle import GRAPH
from tests.support.images import encoded, picture
from tests.support.ports import free_port
from tests.support.site import Site

KEY = "k" * 32
WRONG_S = 14.0  # in this time three starts fail, where a start may fail
PATIENCE_S = 120.0


def test_service_that_finds_neither_keys_nor_alias_nor_a_sound_model_waits_for_them(ray_cluster: None, tmp_path: Path):
    """On Kubernetes three failed starts were for ever: KubeRay never submitted the same configuration again."""
    site, port, keys = Site.at(tmp_path / "site"), free_port(), tmp_path / "keys.sha256"
    keys.touch()  # as a Secret that is filled later
    version = site.register(2)
    graph = Path(unquote(urlparse(version.source).path)) / GRAPH
    whole = graph.read_bytes()
    graph.write_bytes(whole + b"x")
    args = ServeArgs(model="models:/vision@late", device="cpu", poll_s=0.2, api_keys=keys)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        with ThreadPoolExecutor(1) as pool:
            starting = pool.submit(serve.run, application(args, site.home, patient=True), name="patient")
            wait_while_deploying(WRONG_S)
            keys.write_text(f"{hashlib.sha256(KEY.encode()).hexdigest()} first\n", encoding="utf-8")
            site.registry.set_alias(version, "late")
            wait_while_deploying(WRONG_S / 2)
            graph.write_bytes(whole)
            starting.result(timeout=PATIENCE_S)

        answer = httpx.post(
            f"http://127.0.0.1:{port}/predict_image",
            files={"image": ("a", encoded(picture()))},
            headers={"authorization": f"Bearer {KEY}"},
        )
        assert answer.status_code == 200
        assert answer.headers["x-model-version"] == str(version.version)
    finally:
        serve.shutdown()


def wait_while_deploying(seconds: float) -> None:
    """Let starts fail. KubeRay leaves the cluster before in place until Serve says RUNNING."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        application = serve.status().applications.get("patient")
        assert application is None or application.status == "DEPLOYING"
        time.sleep(1)
