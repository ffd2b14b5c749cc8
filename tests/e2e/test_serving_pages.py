"""docs/serving.md and docs/migrate-from-bentoml.md: all their commands and programs, typed at one running server.

Their tables are compared with the code.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
import yaml
from PIL import Image

from rayapp.config.env import Home
from rayapp.config.serve import ServeArgs
from rayapp.config.train import ModelConfig
from rayapp.registry.models import Registry
from rayapp.registry.tracking import Tracker
from rayapp.serve.metrics import Metrics
from rayapp.vision.bundle import Bundle, write_bundle
from rayapp.vision.models import build_model
from tests.e2e.pages import ELSEWHERE, MIGRATION, SERVING, Shell, blocks, commands, rows
from tests.support.bundles import CLASSES, SIDE_PX, tiny_manifest
from tests.support.images import encoded, picture
from tests.support.stores import home_at

SLOW = pytest.mark.timeout(600)
BENTOML_PYTHON = os.environ.get("BENTOML_PYTHON")  # an interpreter that has bentoml, which is no dependency of ours


CHAMPIONS = {"rayapp promote": "2", "rayapp rollback": "1"}  # after these commands


# --- a server ---------------------------------------------------------------------------------------------------------


def network(folder: Path) -> Bundle:
    """An untrained network; the tiny graph of the other tests has no feature maps that could be explained."""
    torch.manual_seed(0)
    config, mean, std = ModelConfig(name="resnet18"), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    manifest = tiny_manifest(model=config, mean=mean, std=std)
    model = build_model(config, num_classes=len(CLASSES), image_px=SIDE_PX, mean=mean, std=std)
    return write_bundle(folder, model, manifest)


def fill(home: Home, bundle: Bundle) -> None:
    """Make a champion of the bundle, and a challenger of it that evaluate found to be better."""
    registry, tracker = Registry(home.tracking_uri), Tracker(home.tracking_uri, home.artifacts)
    for alias, accuracy in (("champion", 0.8), ("challenger", 0.9)):
        run_id = tracker.open_run("documents", alias, params={}, tags={})
        source = registry.log_bundle(run_id, bundle.folder)
        tracker.close_run(run_id, "FINISHED")
        tags = {f"test_accuracy{end}": str(accuracy) for end in ("", "_low", "_high")}
        registry.register(run_id, source, alias=alias, tags=tags | {"test_n": "100", "data_digest": "sha256:1"})


def serve_options(*pages: Path) -> list[str]:
    """What the pages add to `rayapp serve`, but for the port: one server that has it all takes all their commands."""
    lines = [shlex.split(line) for page in pages for line in commands(page) if line.startswith("rayapp serve")]
    pairs = [pair for words in lines for pair in zip(words[2::2], words[3::2], strict=True)]
    return [word for pair in pairs if pair[0] != "--port" for word in pair]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reader's folder, with a home that has models, and images."""
    folder = tmp_path_factory.mktemp("reader")
    home = folder / ".rayapp"
    fill(home_at(home), network(folder / "network"))
    (folder / "my-images").mkdir()
    for seed, name in enumerate(("photo.png", "other.png", "my-images/red.png", "my-images/blue.png")):
        picture(seed, height=120, width=200).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def shell(folder: Path) -> Iterator[Shell]:
    shell = Shell(folder)
    try:
        shell.serve(*serve_options(SERVING, MIGRATION), "--app.request_log.flush_s", "1")
        yield shell
    finally:
        shell.close()


def predict(shell: Shell) -> httpx.Response:
    files = {"image": ("photo.png", (shell.folder / "photo.png").read_bytes())}
    return httpx.post(f"{shell.url}/predict_image", files=files, timeout=60).raise_for_status()


# --- docs/serving.md --------------------------------------------------------------------------------------------------


def champions(shell: Shell) -> set[str]:
    """The versions that the replicas serve."""
    served = r'^rayapp_served_model_info{.*model_version="(\d+)".*role="champion"'
    return set(re.findall(served, httpx.get(f"{shell.url}/metrics", timeout=60).text, re.MULTILINE))


def follow(shell: Shell, version: str) -> None:
    shell.until(lambda: champions(shell) == {version}, f"version {version} is not served")


def is_compared(shell: Shell) -> bool:
    """Whether a copy of a request has reached the challenger; sends another one."""
    predict(shell)
    return bool(httpx.get(f"{shell.url}/shadow", timeout=60).json()["pairs"])


@SLOW
def test_the_commands_of_the_serving_page_do_what_it_says(shell: Shell) -> None:
    printed = {}
    for line in commands(SERVING):
        if line.startswith((*ELSEWHERE, "rayapp serve")):
            continue
        if line.endswith("/shadow"):
            shell.until(lambda: is_compared(shell), "no copy of a request has reached the challenger")
        printed[line] = shell.type(line)
        if line in CHAMPIONS:
            follow(shell, CHAMPIONS[line])

    def said(words: str) -> str:
        return next(out for line, out in printed.items() if words in line)

    assert set(json.loads(said("/predict_image"))["probabilities"]) == set(CLASSES)
    assert len(json.loads(said("/predict_batch"))) == 2
    assert json.loads(said("/get_model_info"))["model_metadata"]["aliases"] == ["champion"]
    assert Image.open(shell.folder / "heat.png").format == "PNG"
    assert len(said("rayapp_served_model_info").splitlines()) >= 2  # a line a replica
    (pair,) = json.loads(said("/shadow"))["pairs"]
    assert (pair["champion_version"], pair["challenger_version"], pair["agreement"]) == ("1", "2", 1)
    assert re.search(r"^x-model-version: [12]\r?$", said("X-Client-Id"), re.MULTILINE | re.IGNORECASE)


def access_lines(shell: Shell) -> list[dict[str, object]]:
    return [json.loads(line) for line in re.findall(r'{"time".*}', shell.log.read_text())]


@SLOW
def test_the_access_log_is_as_the_serving_page_shows_it(shell: Shell) -> None:
    (example,) = (json.loads(block) for block in blocks(SERVING, "json"))
    given = predict(shell).headers["x-request-id"]

    shell.until(lambda: given in shell.log.read_text(), "the request is not in the access log")

    (line,) = (line for line in access_lines(shell) if line["request_id"] == given)
    assert list(line) == list(example)
    assert [type(value) for value in line.values()] == [type(value) for value in example.values()]


@SLOW
def test_the_request_log_is_read_as_the_serving_page_says(shell: Shell) -> None:
    def is_written() -> bool:
        predict(shell)
        return any((shell.folder / "requests").glob("*/*.parquet"))

    shell.until(is_written, "no prediction is in the request log")
    (program,) = blocks(SERVING, "python")

    printed = re.match(r"(\d+) of (\d+) images: \[{", shell.python(program))

    assert printed
    assert int(printed[1]) == int(printed[2]) > 0  # an untrained network is sure of nothing


@SLOW
def test_what_has_begun_ends_after_sigterm(folder: Path, tmp_path: Path) -> None:
    images = [("images", (f"{at}.png", encoded(picture(at, height=120, width=200)))) for at in range(200)]
    answers: list[httpx.Response] = []
    shell = Shell(tmp_path, home=folder / ".rayapp")
    client = threading.Thread(
        target=lambda: answers.append(httpx.post(f"{shell.url}/predict_batch", files=images, timeout=120))
    )
    under_way = re.compile(r'^bentoml_service_request_in_progress{.*"/predict_batch".*} 1\.0', re.MULTILINE)
    try:
        shell.type("rayapp serve")
        client.start()
        shell.until(lambda: bool(under_way.search(httpx.get(f"{shell.url}/metrics").text)), "the request did not begin")

        assert shell.server
        shell.server.send_signal(signal.SIGTERM)
        client.join(timeout=120)

        (answer,) = answers
        assert (answer.status_code, len(answer.json())) == (200, len(images))
        assert shell.server.wait(timeout=120) == 0
        said = shell.log.read_text()
        assert re.search(rf"^serving models:/vision/\d \(champion\) at {shell.url} ", said, re.MULTILINE)
        assert "Traceback" not in said
        assert "SIGTERM" not in said
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{shell.url}/readyz")
    finally:
        shell.close()


def test_the_table_of_limits_is_that_of_the_settings() -> None:
    told = {cells[0].strip("`").removeprefix("app."): float(cells[1]) for cells in rows(SERVING, "Limits")}

    assert told == {name: ServeArgs.model_fields[name].default for name in told}
    limits = {name for name in ServeArgs.model_fields if name.startswith("max_")} | {"timeout_s"}
    assert limits - set(told) == {"max_batch", "max_wait_ms"}  # no limits, and under Speed


def test_the_table_of_metrics_is_that_of_the_code() -> None:
    told = [name for cells in rows(SERVING, "Metrics") for name in re.findall(r"`((?:bentoml|rayapp)_\w+)`", cells[0])]
    there = re.findall(r"^# TYPE (\w+)", Metrics().render().decode(), re.MULTILINE)

    assert sorted(told) == sorted(name for name in there if not name.endswith("_created"))
    kept = re.findall(r"`(bentoml_service_\w+)`", MIGRATION.read_text(encoding="utf-8"))
    assert sorted(kept) == sorted(name for name in told if name.startswith("bentoml_service_"))


def test_ports_are_those_of_ray_and_the_policy_opens_two() -> None:
    from ray.serve._private import constants

    told = [set(re.findall(r"\d+", cells[0])) for cells in rows(SERVING, "On a Ray cluster")]
    (policy,) = (yaml.safe_load(block) for block in blocks(SERVING, "yaml"))

    haproxy = (constants.RAY_SERVE_HAPROXY_STATS_PORT, constants.RAY_SERVE_HAPROXY_METRICS_PORT)
    behind = (
        constants.RAY_SERVE_FALLBACK_PROXY_HTTP_PORT,
        constants.RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT,
        constants.RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT,
    )
    assert told[1:3] == [set(map(str, haproxy)), set(map(str, behind))]
    within, *others = policy["spec"]["ingress"]
    assert within["from"] == [{"podSelector": policy["spec"]["podSelector"]}]
    assert [port["port"] for rule in others for port in rule["ports"]] == [3000, 8265]


# --- docs/migrate-from-bentoml.md -------------------------------------------------------------------------------------


@SLOW
def test_clients_of_the_replaced_service_are_served(shell: Shell) -> None:
    lines = [line for line in commands(MIGRATION) if line.startswith("curl")]
    printed = [shell.type(line) for line in lines]

    assert json.loads(printed[0]) == {"status": "healthy", "service": "mlflow_vision_classifier"}
    assert json.loads(printed[1])["classes"] == list(CLASSES)
    assert json.loads(printed[2])["predicted_class"] in CLASSES
    assert [one["predicted_class"] in CLASSES for one in json.loads(printed[3])] == [True, True]
    assert printed[4] == "\n"

    clients = [block for block in blocks(MIGRATION, "python") if "bentoml" not in block]
    simple, comparison = (shell.python(block) for block in clients)
    assert simple.split()[0] in CLASSES
    assert re.findall(r"^same (\S+)", comparison, re.MULTILINE) == ["my-images/blue.png", "my-images/red.png"]


@SLOW
@pytest.mark.skipif(not BENTOML_PYTHON, reason="BENTOML_PYTHON names no interpreter that has bentoml")
def test_the_bentoml_client_is_served(shell: Shell) -> None:
    (program,) = (block for block in blocks(MIGRATION, "python") if "bentoml" in block)
    shell.environment |= {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(shell.folder / "bentoml")}

    health, single, batch = shell.python(program, str(BENTOML_PYTHON)).splitlines()[-3:]

    assert health.startswith("{'status': 'healthy'")
    assert single in CLASSES
    assert len(batch.split(",")) == 2
