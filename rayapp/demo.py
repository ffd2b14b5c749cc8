"""demo: the whole life of a model on this machine, step by step, each with its time, its figure and PASS or FAIL."""

from __future__ import annotations

import io
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rayapp.config.commands import DemoSettings, DoctorSettings, EvaluateSettings, PromoteSettings, TrainSettings
from rayapp.config.env import Home
from rayapp.config.serve import ServeArgs
from rayapp.config.train import ComputeConfig, DataConfig, OptimConfig
from rayapp.data.datasets import load
from rayapp.doctor import examine
from rayapp.errors import ConfigError, RayAppError
from rayapp.predict import ask_server, predict_bytes
from rayapp.proxies import http_client
from rayapp.registry.evaluation import evaluate_version
from rayapp.registry.models import Registry
from rayapp.registry.promotion import promote
from rayapp.runtime.start import ray_cluster
from rayapp.serve.app import start, stop
from rayapp.terminal import in_home, program
from rayapp.train.driver import TrainResult, train
from rayapp.vision.predictor import Predictor

FOLDER = ".rayapp-demo"
FIRST_EPOCHS, SECOND_EPOCHS = 4, 9  # of the digits: so few that the second model has to be better
TOLERANCE = 1e-5  # between a probability over HTTP and one computed here
SWAP_TIMEOUT_S = 30.0


class StepFailed(Exception):  # noqa: N818 - it is an outcome, shown as a row
    """A step ran and its figure is wrong."""


@dataclass
class Step:
    """One row of the table."""

    name: str
    seconds: float
    figure: str
    passed: bool


def _mark(step: Step) -> Text:
    return Text("PASS", "green") if step.passed else Text("FAIL", "red")


@dataclass
class Demo:
    """The state that the steps share: each takes what the ones before it made."""

    settings: DemoSettings
    home: Home
    console: Console
    port: int
    steps: list[Step] = field(default_factory=list)

    @property
    def url(self) -> str:
        """The server's address."""
        return f"http://127.0.0.1:{self.port}"

    def step(self, name: str, action: Callable[[], str]) -> bool:
        """Whether action did its work; its figure, or what went wrong, becomes a row."""
        self.console.rule(name, align="left", style="dim")
        started = time.monotonic()
        try:
            figure, passed = action(), True
        except (RayAppError, StepFailed, httpx.HTTPError) as error:
            figure, passed = str(error), False
        step = Step(name, time.monotonic() - started, figure, passed)
        self.steps.append(step)
        line = Text.assemble(_mark(step), f" {name} ({step.seconds:.1f} s): {figure}")
        self.console.print(line, highlight=False, soft_wrap=True)
        return passed

    def table(self) -> Table:
        """All steps so far."""
        table = Table("step", "seconds", "figure", "", header_style="bold", title="the life of a model")
        for step in self.steps:
            table.add_row(step.name, f"{step.seconds:.1f}", Text(step.figure), _mark(step))
        return table

    def doctor(self) -> str:
        checks = examine(DoctorSettings(), self.home)
        failed = [f"{c.name}: {c.advice}" for c in checks if c.status == "fail"]
        if failed:
            raise StepFailed("; ".join(failed))
        warned = sum(c.status == "warn" for c in checks)
        return f"{len(checks)} checks, {warned} warnings"

    def train(self, epochs: int | None) -> str:
        result: TrainResult = train(
            TrainSettings(
                data=DataConfig(dataset=self.settings.dataset, path=self.settings.path),
                optim=OptimConfig(epochs=epochs),
                compute=ComputeConfig(num_workers=self.settings.num_workers),
            ),
            self.home,
            self.console,
        )
        version = result.version.version if result.version else None
        return f"version {version}: validation accuracy {result.best.val_accuracy:.4f}, {len(result.epochs)} epochs"

    def evaluate(self) -> str:
        evaluation = evaluate_version(EvaluateSettings(), self.home)
        accuracy, n = evaluation.report.scores.accuracy, evaluation.report.scores.num_images
        return f"test accuracy {accuracy.value:.4f} ({accuracy.low:.4f} to {accuracy.high:.4f}, n = {n:,})"

    def promote(self) -> str:
        promotion = promote(Registry(self.home.tracking_uri), PromoteSettings())
        return f"champion is version {promotion.model_version}"

    def serve(self) -> str:
        # on the CPU, so that on a machine with one GPU the second training gets it
        start(ServeArgs(tracking_uri=self.home.tracking_uri, device="cpu", poll_s=1.0), self.home, port=self.port)
        info = self._model_info()
        return f"{self.url} answers with version {info['model_metadata']['version']}"

    def predict(self) -> str:
        """A single and a batch over HTTP, as the replaced service's clients post them, against the bundle itself."""
        files, labels = self._test_files(32)
        with http_client(self.url, timeout=30) as client:
            single = client.post(f"{self.url}/predict_image", files={"image": ("0.png", files[0])})
        over_http = [single.raise_for_status().json(), *ask_server(self.url, files)]
        registry = Registry(self.home.tracking_uri)
        version = registry.resolve(ServeArgs().model)
        predictor = Predictor.load(registry.download(version, self.home.bundles))
        direct = predict_bytes(predictor, [files[0], *files], ["first", *map(str, range(len(files)))])
        difference = max(
            abs(a["probabilities"][name] - b["probabilities"][name])
            for a, b in zip(over_http, direct, strict=True)
            for name in b["probabilities"]
        )
        right = sum(p["predicted_index"] == label for p, label in zip(over_http[1:], labels, strict=True))
        if difference > TOLERANCE:
            raise StepFailed(f"HTTP and direct differ by {difference:.1g}, more than {TOLERANCE}")
        return f"1 + {len(files)} images, {right} right, HTTP and direct differ by {difference:.0e} at most"

    def follow(self) -> str:
        """The server answers with the new champion without being told."""
        registry = Registry(self.home.tracking_uri)
        wanted, started = registry.resolve(ServeArgs().model).version, time.monotonic()
        while time.monotonic() - started < SWAP_TIMEOUT_S:
            info = self._model_info()
            if str(info["model_metadata"]["version"]) == str(wanted):
                return f"version {wanted} answers, {time.monotonic() - started:.1f} s after its promotion"
            time.sleep(0.2)
        served = info["model_metadata"]["version"]
        raise StepFailed(
            f"version {served} still answers {SWAP_TIMEOUT_S:.0f} s after version {wanted} became champion"
        )

    def _model_info(self) -> dict[str, Any]:
        with http_client(self.url, timeout=30) as client:
            info: dict[str, Any] = client.post(f"{self.url}/get_model_info").raise_for_status().json()
        return info

    def _test_files(self, count: int) -> tuple[list[bytes], list[int]]:
        """PNG files of the first test images, and their labels."""
        dataset = load(DataConfig(dataset=self.settings.dataset, path=self.settings.path), self.home.data)
        files = []
        for image_hwc in np.asarray(dataset.test.images_nhwc[:count]):
            buffer = io.BytesIO()
            Image.fromarray(image_hwc).save(buffer, "PNG")
            files.append(buffer.getvalue())
        return files, dataset.test.labels_n[:count].tolist()


def demo(settings: DemoSettings, home: Home) -> dict[str, Any]:
    """The steps with their times and figures; exit_code is 0 if all passed.

    Works in a home of its own beside the user's, on a sqlite database whatever MLFLOW_TRACKING_URI says, and leaves
    nothing running.
    """
    own = _own_home(home, keep=settings.keep)
    console = Console(stderr=True)
    show = Demo(settings, own, console, _free_port(settings.port))
    started = time.monotonic()
    with ray_cluster(spare_cpus=1):
        try:
            _live(show)
        finally:
            stop()
    seconds, passed = time.monotonic() - started, all(s.passed for s in show.steps)
    console.print()
    console.print(show.table())
    console.print(f"{'all steps passed' if passed else 'a step failed'} in {seconds:.0f} s; nothing is left running")
    here = in_home(own, home)
    if passed:
        said = f"next: {here} models | {here} serve | {program()} train --help | {program()} demo --dataset cifar10"
    else:
        said = f"the demo has a home of its own: type {here} for the rayapp of commands that are named above"
    console.print(said, highlight=False, markup=False, soft_wrap=True)
    return {
        "passed": passed,
        "exit_code": 0 if passed else 1,
        "seconds": round(seconds, 1),
        "steps": [{"name": s.name, "seconds": round(s.seconds, 1), "passed": s.passed} for s in show.steps],
    }


def _live(show: Demo) -> None:
    """Run the steps in their order; the first that fails ends the demo, for the others stand on it."""
    steps: list[tuple[str, Callable[[], str]]] = [
        ("doctor", show.doctor),
        ("train a first model, briefly", lambda: show.train(FIRST_EPOCHS)),
        ("evaluate the first", show.evaluate),
        ("promote it: the first champion", show.promote),
        ("serve the champion", show.serve),
        ("predict over HTTP", show.predict),
        ("train a second, better model", lambda: show.train(SECOND_EPOCHS)),
        ("evaluate the second", show.evaluate),
        ("promote it over the first", show.promote),
        ("the server follows", show.follow),
        ("predict over HTTP again", show.predict),
    ]
    for name, action in steps:
        if not show.step(name, action):
            return


def _own_home(home: Home, *, keep: bool) -> Home:
    """The demo's home: fresh but for downloaded data."""
    folder = home.folder.parent / FOLDER
    if folder.exists() and not keep:
        for path in folder.iterdir():
            if path.name != "data":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    return Home(folder=folder, tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")


def _free_port(wanted: int) -> int:
    """wanted, or where that is in use a free one."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ConfigError(f"port {wanted} is in use and no other is free; give one with --port")
