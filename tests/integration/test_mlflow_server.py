"""A real MLflow server that is killed and comes back, servers that hang or are ill, two processes on one database."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from rayapp.errors import RegistryError
from rayapp.registry.models import Registry
from rayapp.registry.tracking import MetricLog, Tracker, mlflow_client
from tests.support.bundles import write_tiny_bundle
from tests.support.servers import MlflowServer, answering
from tests.support.stores import finished, history, home_at, new_run, registered
from tests.support.wait import until

SECRET = "s3cret"  # of nothing


@pytest.fixture(scope="module")
def one_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(home_at(tmp_path_factory.mktemp("server")).folder)
    yield server
    server.kill()


@pytest.fixture
def server(one_server: MlflowServer) -> MlflowServer:
    one_server.start()
    return one_server


def test_two_processes_that_start_at_once_on_a_new_database_both_work(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from rayapp.registry.tracking import Tracker;"
        "folder = Path(sys.argv[1]);"
        "tracker = Tracker(f'sqlite:///{folder}/new/mlflow.db', folder / 'new' / 'artifacts');"
        "print(tracker.open_run('rayapp', 'r', {'a': 'b'}, {}))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    results = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    runs = {output.strip() for output, _ in results}
    with mlflow_client(f"sqlite:///{tmp_path}/new/mlflow.db") as client:
        assert {run.info.run_id for run in client.search_runs(["1"])} == runs
    assert len(runs) == 2
    assert all("Traceback" not in errors for _, errors in results)


def test_a_server_knows_past_runs_too(server: MlflowServer) -> None:
    tracker = Tracker(server.uri)
    run = finished(tracker, {"recipe": "56ef", "hardware.cpu": "a (R) b"})
    assert [past.run_id for past in tracker.past_runs({"recipe": "56ef", "hardware.cpu": "a (R) b"})] == [run]


def test_a_server_that_hangs_is_said_in_seconds() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.monotonic()
        with pytest.raises(RegistryError, match=r"does not answer \(no answer in 3 s\); start it"):
            Registry(f"http://127.0.0.1:{silent.getsockname()[1]}").versions()
        assert time.monotonic() - started < 5


def test_a_server_that_is_ill_is_said_without_its_password() -> None:
    class Ill(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(503)

        def log_message(self, *_: object) -> None:
            pass

    with (
        answering(Ill) as where,
        pytest.raises(RegistryError, match=rf"^MLflow at http://\*\*\*@{where} does not answer \(status 503\)"),
    ):
        Registry(f"http://user:secret@{where}").versions()


def test_F29_metrics_survive_a_killed_server(server: MlflowServer, tmp_path: Path) -> None:
    run_id = new_run(Tracker(server.uri))
    metrics = MetricLog(server.uri, run_id, tmp_path / "spool")
    for step in range(50):
        metrics.log({"loss": step / 100}, step)
    until(lambda: len(history(server.uri, run_id, "loss")) == 50)
    server.kill()
    started = time.monotonic()
    for step in range(50, 100):
        metrics.log({"loss": step / 100}, step)
    assert time.monotonic() - started < 1
    time.sleep(3)  # for the thread to find out
    server.start()
    assert metrics.close(timeout_s=60) == 0
    assert history(server.uri, run_id, "loss") == [(step, step / 100) for step in range(100)]


def test_a_bundle_goes_through_a_server_and_back(server: MlflowServer, tmp_path: Path) -> None:
    tracker, registry = Tracker(server.uri, tmp_path / "unused"), Registry(server.uri)
    folder = write_tiny_bundle(tmp_path / "bundle").folder
    version = registered(tracker, registry, folder)
    assert version.source.startswith("mlflow-artifacts:/")
    for uri in ("models:/vision@challenger", version.uri, f"runs:/{version.run_id}/model"):
        assert registry.resolve(uri).version == version.version
    bundle = registry.download(version, tmp_path / "cache")
    assert bundle.digest == version.tags["bundle_digest"]
    registry.set_alias(version, "champion")
    assert [v.aliases for v in registry.versions()] == [("challenger", "champion")]
    assert registry.metadata(version)["params"]["model_name"] == "resnet18"
    with pytest.raises(
        RegistryError, match=r"alias 'other' of 'vision' not found \(aliases: challenger -> 1, champion"
    ):
        registry.resolve("models:/vision@other")
    with pytest.raises(RegistryError, match=r"version 9 of 'vision' not found \(versions: 1\)"):
        registry.resolve("models:/vision/9")
    with pytest.raises(RegistryError, match="no model 'nope' is registered"):
        registry.resolve("models:/nope@champion")
    with pytest.raises(RegistryError, match="run 'abc' not found"):
        registry.resolve("runs:/abc/model")
    assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        (
            f"postgresql://u:{SECRET}@127.0.0.1:1/db",
            "needs the Python module 'psycopg', .* pip install psycopg2-binary",
        ),
        (f"mysql://u:{SECRET}@127.0.0.1:1/db", "needs the Python module 'MySQLdb', .* pip install PyMySQL"),
        ("127.0.0.1:5000", "lacks its scheme; write http://127.0.0.1:5000"),
    ],
)
def test_a_database_without_its_driver_and_an_address_without_a_scheme_are_sentences(uri: str, sentence: str) -> None:
    with pytest.raises(RegistryError, match=sentence) as caught, mlflow_client(uri) as client:
        client.search_experiments()
    assert SECRET not in str(caught.value)


def test_the_advice_on_a_deleted_experiment_works_as_typed(tmp_path: Path) -> None:
    """mlflow knows nothing of RAYAPP_HOME, so without the URI it would look elsewhere."""
    home = home_at(tmp_path / "home")
    uri, tracker = home.tracking_uri, Tracker(home.tracking_uri, home.artifacts)
    tracker.open_run("photos", "a run", {}, {})
    with mlflow_client(uri) as client:
        client.delete_experiment(client.get_experiment_by_name("photos").experiment_id)
    with pytest.raises(RegistryError, match="is deleted") as caught:
        tracker.open_run("photos", "a run", {}, {})
    command = re.search(r"(MLFLOW_TRACKING_URI=.*mlflow experiments restore -x \d+),", str(caught.value))
    assert command
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(command[1], shell=True, check=True, env=os.environ | {"PATH": path}, capture_output=True)
    assert tracker.open_run("photos", "a run", {}, {})


def test_a_full_disk_is_one_sentence_and_no_stack_of_sqlalchemy(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs rights that this machine does not give")
    try:
        shutil.copy(home_at(tmp_path / "home").folder / "mlflow.db", small / "mlflow.db")
        with contextlib.suppress(OSError), (small / "other").open("wb", buffering=0) as file:
            while file.write(b"x" * 4096):
                pass
        code = f"""
import sys
from rayapp.cli import VERBS, Verb, main
from rayapp.registry.tracking import Tracker
sys.modules["tracking"] = sys.modules[__name__]
def open_one(settings, home):
    Tracker("sqlite:///{small}/mlflow.db").open_run("full", "a run", {{str(n): "x" * 500 for n in range(99)}}, {{}})
VERBS["models"] = Verb(VERBS["models"].settings, "tracking:open_one")
sys.exit(main(["models"]))
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    finally:
        subprocess.run(["umount", str(small)], check=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: MLflow at sqlite:")
    assert "full" in line
