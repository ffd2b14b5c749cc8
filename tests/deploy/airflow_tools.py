"""Airflow as the tests use it: a home with a database, the DAGs of the repository, and a webhook that hears alerts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import yaml

from tests.deploy.manifests import rendered
from tests.deploy.stand_in_kubernetes import StandIn
from tests.deploy.tools import ROOT, SHARED, VERSIONS, run, tool

DAGS = ROOT / "jobs/dags"
SHELL = Path(__file__).with_name("airflow_shell.py")
SCHEMA = SHARED / "schemas/kuberay-1.7.0/RayJob_v1.json" if SHARED else None


def template(job: str) -> str:
    """A small RayJob, as the ConfigMap holds it."""
    container = {"name": "ray-head", "image": f"rayapp:{VERSIONS['RAYAPP_VERSION']}"}
    head = {"rayStartParams": {}, "template": {"spec": {"containers": [container]}}}
    spec = {
        "entrypoint": f"python jobs/{job}.py",
        "shutdownAfterJobFinishes": True,
        "rayClusterSpec": {"rayVersion": VERSIONS["RAY_VERSION"], "headGroupSpec": head},
    }
    metadata = {"generateName": f"{job}-", "namespace": "rayapp", "labels": {"app.kubernetes.io/name": job}}
    return yaml.safe_dump({"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": spec})


def templates() -> dict[str, str]:
    return {f"{job}.yaml": template(job) for job in ("train", "tune", "evaluate")}


def rendered_templates() -> dict[str, str]:
    """Those of the platform, as cluster/scripts/render.sh puts them into the ConfigMap."""
    (found,) = (o["data"] for o in rendered("prod") if o["metadata"]["name"] == "rayjob-templates")
    return dict(found)


def stand_in(**given: Any) -> StandIn:
    """A Kubernetes API with the small templates, strict where the schema of ray.io lies beside the repository."""
    schema = json.loads(SCHEMA.read_text()) if SCHEMA and SCHEMA.is_file() else None
    return StandIn(**{"templates": templates(), "schema": schema, **given})


# Prints as JSON what Airflow reads in a folder of DAGs.
BAG = """
import json, sys, time
from pathlib import Path
from airflow.dag_processing.dagbag import BundleDagBag

folder, start = Path(sys.argv[1]), time.perf_counter()
bag = BundleDagBag(dag_folder=folder, bundle_path=folder, bundle_name="dags-folder")
seconds = time.perf_counter() - start
dags = {
    dag.dag_id: {
        "catchup": dag.catchup,
        "max_active_runs": dag.max_active_runs,
        "tasks": [
            {
                "task_id": task.task_id,
                "template": task.template,
                "entrypoint": task.entrypoint,
                "timeout_s": task.timeout.total_seconds(),
                "execution_timeout_s": task.execution_timeout.total_seconds(),
                "retries": task.retries,
                "delays": [task.retry_delay.total_seconds(), task.retry_exponential_backoff],
                "alerts": [type(callback).__name__ for callback in task.on_failure_callback],
            }
            for task in dag.topological_sort()
        ],
    }
    for dag in bag.dags.values()
}
print(json.dumps({"seconds": seconds, "errors": bag.import_errors, "warnings": bag.captured_warnings, "dags": dags}))
sys.exit(bool(bag.import_errors))
"""


def read_dags(folder: Path, home: Path) -> tuple[dict[str, Any], str]:
    """What Airflow reads in a folder, in a process of its own, and what it prints meanwhile."""
    env = {"AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    done = run([tool("airflow-python"), "-W", "default", "-c", BAG, folder], env=env, ok=False)
    *said, answer = done.stdout.splitlines()
    return json.loads(answer), "\n".join([*said, done.stderr])


class Airflow:
    """`airflow` commands in folder, with a copy of the DAGs whose retries wait a second instead of minutes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dags = folder / "dags"
        shutil.copytree(DAGS, self.dags, ignore=shutil.ignore_patterns("__pycache__"))
        settings = self.dags / "rayjobs/dag.py"
        quick = settings.read_text().replace('"retry_delay": timedelta(minutes=5)', '"retry_delay": timedelta(0, 1)')
        assert quick != settings.read_text()
        settings.write_text(quick)
        self.alerts: list[str] = []

    def __enter__(self) -> Self:
        self._webhook = _webhook(self.alerts)
        self.webhook_url = f"http://127.0.0.1:{self._webhook.server_port}/hook/not-to-be-logged"
        self._log = (self.folder / "log.txt").open("w+")
        read, write = os.pipe()
        self._process = subprocess.Popen(
            [tool("airflow-python"), SHELL, str(write)],
            env=self.environment(), cwd=self.folder, pass_fds=[write],
            stdin=subprocess.PIPE, stdout=self._log, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        os.close(write)
        self._codes = os.fdopen(read)
        code, log = self.run("db", "migrate")
        assert code == 0, log
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # its end takes seconds, and nothing is left to do
        self._process.communicate()
        self._codes.close()
        self._log.close()
        self._webhook.shutdown()
        self._webhook.server_close()

    def environment(self) -> dict[str, str]:
        """What a process of Airflow gets; the kubeconfig is that of the stand-in that stands now."""
        kubernetes = {"conn_type": "kubernetes", "extra": {"kube_config_path": str(self.folder / "kubeconfig.yaml")}}
        alerts = {"conn_type": "generic", "password": self.webhook_url}
        return {
            **os.environ,
            "AIRFLOW_HOME": str(self.folder),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW_CONN_KUBERNETES_DEFAULT": json.dumps(kubernetes),
            "AIRFLOW_CONN_RAYAPP_ALERTS": json.dumps(alerts),
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": str(self.dags),
        }

    def run(self, *command: str) -> tuple[int, str]:
        """The exit code of a command, and what it printed."""
        assert self._process.stdin is not None
        start = self._log.seek(0, os.SEEK_END)
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        code = self._codes.readline()
        self._log.seek(start)
        printed = self._log.read()
        assert code, f"airflow has stopped:\n{printed}"
        return int(code), printed

    def test(self, dag_id: str, api: StandIn) -> tuple[int, str]:
        """`airflow dags test` against a Kubernetes API."""
        api.kubeconfig(self.folder)
        self.alerts.clear()
        return self.run("dags", "test", dag_id, "--conf", json.dumps({"poll_interval_s": 0.02}))


def _webhook(heard: list[str]) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: heard has it."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
