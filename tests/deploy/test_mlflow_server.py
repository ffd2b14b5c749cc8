"""The pods of charts/mlflow for real: schema Job, two servers and their metrics, against a PostgreSQL with TLS.

The commands, environment, service file and ini are those that the chart renders; MLflow is the pinned one.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml

from tests.deploy.chart_rules import Sourced
from tests.deploy.mlflow_server import (
    HTTP,
    SERVICE,
    Container,
    Postgres,
    Stack,
    answer,
    container,
    mount,
    until,
    write_service,
)
from tests.deploy.tools import ROOT, render_chart
from tests.support.ports import free_port
from tests.support.processes import contents

CHART = ROOT / "cluster/charts/mlflow"
PASSWORD = "se#c;r:et@ %p'q\"=x"  # RDS makes such ones, and an URI could not hold it
ADMIN = ("admin", "administrator-1%$")
RAY, OTHER = ("ray", "ray-of-the-cluster"), ("other", "another-account-1")
SECRETS = {"mlflow-auth": {"admin_username": ADMIN[0], "admin_password": ADMIN[1], "flask_secret_key": "k" * 64}}


def is_healthy(port: int) -> bool:
    return answer(f"http://127.0.0.1:{port}/health")[0] == 200


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Not pytest's own: other users have to get in."""
    path = Path(tempfile.mkdtemp(prefix="mlflow-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def database(folder: Path) -> Iterator[Postgres]:
    (folder / "postgres").mkdir()
    server = Postgres(folder / "postgres", PASSWORD)
    server.start()
    yield server
    server.stop()


def rendered(database: Postgres, folder: Path) -> Sourced:
    given = {
        "image": {"repository": "rayapp-mlflow"},
        "database": {
            "host": "localhost",
            "port": database.port,
            "name": "postgres",
            "secret": "arn:aws:secretsmanager:x",
        },
        "auth": {"secret": "rayapp-prod/mlflow"},
        "artifacts": {"bucket": "bucket"},
        "server": {"workers": 1},
        "ingress": {"host": "mlflow.example.com", "certificateArn": "arn:aws:acm:x"},
    }
    file = folder / "given.yaml"
    file.write_text(yaml.safe_dump(given))
    return render_chart(CHART, CHART / "values-prod.yaml", file, release="mlflow", namespace="mlflow")


@pytest.fixture(scope="module")
def objects(database: Postgres, folder: Path) -> Sourced:
    return rendered(database, folder)


@pytest.fixture(scope="module")
def stack(objects: Sourced, database: Postgres, folder: Path) -> Iterator[Stack]:
    etc, artifacts = folder / "etc", folder / "artifacts"
    service_file = mount(objects, etc, database)
    artifacts.mkdir()
    artifacts.chmod(0o777)
    started: list[Container] = []

    def start(kind: str, name: str, instance: str, **replaced: str) -> Container:
        made = Container(container(objects, kind, name), folder / instance, etc, SECRETS, replaced)
        made.start()
        started.append(made)
        return made

    try:
        waiting = start("Deployment", "wait-for-schema", "wait")
        waiting.until("it looks at the empty database", lambda: "wanted is" in waiting.log.read_text())
        upgrades = [
            start("Job", "schema", f"schema-{n}") for n in (1, 2)
        ]  # a second one, of a retry that comes too early
        logs = [upgrade.finished() for upgrade in upgrades] + [waiting.finished()]
        ports, metrics_port = [free_port(), free_port()], free_port()
        servers = [
            start(
                "Deployment",
                "mlflow",
                f"server-{n}",
                **{"--port=5000": f"--port={port}", "s3://bucket/mlflow": str(artifacts)},
            )
            for n, port in enumerate(ports)
        ]
        for server, port in zip(servers, ports, strict=True):
            server.until("it is up", partial(is_healthy, port))
        scratch = {"/tmp/metrics": f"{folder}/server-0/tmp/metrics", "9090": str(metrics_port)}
        metrics = start("Deployment", "metrics", "metrics", **scratch)
        yield Stack(database, service_file, artifacts, logs, servers, ports, metrics, metrics_port)
    finally:
        codes = {made.spec["name"]: made.stop() for made in started if made.process.poll() is None}
    assert codes.get("mlflow") == 0, "the servers did not end well on SIGTERM"


@pytest.fixture(scope="module")
def accounts(stack: Stack) -> Stack:
    """Two accounts beside the administrator, made at the first server."""
    for name, password in (RAY, OTHER):
        status, said = stack.ask("/api/2.0/mlflow/users/create", ADMIN, body={"username": name, "password": password})
        assert status == 200, said
    return stack


def experiment(stack: Stack, name: str) -> str:
    """A new one of the account `ray`: its id."""
    status, said = stack.ask("/api/2.0/mlflow/experiments/create", RAY, body={"name": name})
    assert status == 200, said
    return str(json.loads(said)["experiment_id"])


def test_the_schema_is_made_once_and_no_password_is_in_a_log(stack: Stack) -> None:
    logs = [*stack.schema_logs, *(server.log.read_text() for server in stack.servers)]
    assert sum("Created admin user" in log for log in logs) == 1
    assert not [secret for secret in (PASSWORD, ADMIN[1], "k" * 64) for log in logs if secret in log]


def test_nobody_gets_in_without_an_account_and_health_needs_none(stack: Stack) -> None:
    for server in (0, 1):
        assert stack.ask("/health", server=server)[0] == 200
        for path in ("/", "/version", "/api/2.0/mlflow/experiments/get?experiment_id=0", "/metrics"):
            assert stack.ask(path, server=server)[0] == 401, path
        assert stack.ask("/", (ADMIN[0], "wrong-password-1"), server=server)[0] == 401
        assert stack.ask("/", ADMIN, server=server)[0] == 200


def test_an_account_made_at_one_server_is_known_to_the_other(accounts: Stack) -> None:
    for server in (0, 1):
        status, said = accounts.ask("/api/2.0/mlflow/users/current", RAY, server=server)
        assert (status, json.loads(said).get("user", {}).get("is_admin")) == (200, False), said


def test_an_account_sees_what_it_made_and_what_was_granted_and_nothing_else(accounts: Stack) -> None:
    found = f"/api/2.0/mlflow/experiments/get?experiment_id={experiment(accounts, 'of-ray')}"
    run_body = {"experiment_id": found.rpartition("=")[2]}
    assert accounts.ask(found, RAY, server=1)[0] == 200
    assert accounts.ask(found, OTHER, server=1)[0] == 403
    assert accounts.ask("/api/2.0/mlflow/runs/create", OTHER, body=run_body)[0] == 403
    _, said = accounts.ask("/api/2.0/mlflow/experiments/search", OTHER, body={"max_results": 10})
    assert "of-ray" not in said
    grant = {
        "username": OTHER[0],
        "resource_type": "experiment",
        "resource_id": run_body["experiment_id"],
        "permission": "READ",
    }
    assert accounts.ask("/api/3.0/mlflow/users/permissions/grant", OTHER, body=grant)[0] == 403
    assert accounts.ask("/api/3.0/mlflow/users/permissions/grant", ADMIN, body=grant)[0] == 200
    assert accounts.ask(found, OTHER)[0] == 200
    assert accounts.ask("/api/2.0/mlflow/runs/create", OTHER, body=run_body)[0] == 403


def test_a_form_of_one_server_is_taken_by_the_other(stack: Stack) -> None:
    """Only with the same secret key; behind a load balancer the next request goes anywhere."""
    request = urllib.request.Request(f"http://127.0.0.1:{stack.ports[0]}/signup", headers={"Host": SERVICE})
    request.add_header("Authorization", "Basic " + base64.b64encode(":".join(ADMIN).encode()).decode())
    with HTTP.open(request, timeout=60) as page:
        cookie = page.headers["Set-Cookie"].partition(";")[0]
        token = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', page.read().decode())
    assert token, "the page has no token"
    form = {"username": "by-form", "password": "made-by-a-form-1", "csrf_token": token[1]}
    headers = {"Cookie": cookie, "Content-Type": "application/x-www-form-urlencoded"}
    path = "/api/2.0/mlflow/users/create-ui"
    forged = urllib.parse.urlencode(form | {"csrf_token": token[1][::-1]}).encode()
    assert stack.ask(path, ADMIN, body=forged, headers=headers, server=1)[0] != 200
    status, said = stack.ask(path, ADMIN, body=urllib.parse.urlencode(form).encode(), headers=headers, server=1)
    assert status == 200, said
    assert stack.ask("/api/2.0/mlflow/users/get?username=by-form", ADMIN)[0] == 200


def test_only_the_names_of_the_service_and_of_the_ingress_are_answered(stack: Stack) -> None:
    def status(host: str, **headers: str) -> int:
        body = {"max_results": 1} if headers else None
        path = "/api/2.0/mlflow/experiments/search" if headers else "/"
        return stack.ask(path, ADMIN, body=body, headers={"Host": host, **headers})[0]

    assert {status(host) for host in ("mlflow:5000", "mlflow.mlflow:5000", SERVICE, "mlflow.example.com")} == {200}
    assert status("evil.example") == 403
    assert status("mlflow.example.com", Origin="https://mlflow.example.com") == 200  # MLflow's own pages
    assert status("mlflow.example.com", Origin="https://evil.example") == 403


def test_artifacts_pass_through_the_server_to_those_who_may(accounts: Stack) -> None:
    of_ray = experiment(accounts, "with-artifacts")
    path = f"/api/2.0/mlflow-artifacts/artifacts/{of_ray}/run/artifacts/model.bin"
    assert accounts.ask(path, body=b"weights", method="PUT")[0] == 401
    assert accounts.ask(path, OTHER, body=b"weights", method="PUT")[0] == 403
    assert accounts.ask(path, RAY, body=b"weights", method="PUT")[0] == 200
    assert accounts.ask(path, RAY, server=1) == (200, "weights")
    assert accounts.ask(path, OTHER, server=1)[0] == 403
    assert (accounts.artifacts / of_ray / "run/artifacts/model.bin").read_bytes() == b"weights"


def test_metrics_need_no_account_on_their_own_port(stack: Stack) -> None:
    stack.ask("/", ADMIN)
    url = f"http://127.0.0.1:{stack.metrics_port}/metrics"
    until("metrics are there", lambda: answer(url)[0] == 200)
    assert re.search(r"^mlflow_http_request_total\{.*status=\"200\".*\} [1-9]", answer(url)[1], re.MULTILINE)


def exposed(server: Container, secret: str) -> list[str]:
    """Arguments and environments of its processes that hold the secret: what `ps` and a look into /proc show."""
    files = [process / name for process in server.processes() for name in ("cmdline", "environ")]
    return [file.name for file in files if secret.encode() in contents(file)]


def test_the_databases_password_is_in_no_argument_and_no_environment(stack: Stack, folder: Path) -> None:
    assert len(stack.servers[0].processes()) >= 2  # mlflow and uvicorn: the check sees what was started
    for server in stack.servers:
        assert exposed(server, PASSWORD) == []
        assert exposed(server, ADMIN[1]) == []
        assert "environ" in exposed(server, "k" * 64)
    ini = folder / "etc/config/basic_auth.ini"
    assert "postgresql+psycopg2:///?service=mlflow" in ini.read_text()
    assert PASSWORD not in ini.read_text()


def test_the_servers_write_below_tmp_alone(stack: Stack) -> None:
    """Their root file system is read-only. Seen are the files that are open now."""
    for server in stack.servers:
        files = server.open_for_writing()
        assert any(file.is_relative_to(server.folder / "tmp/metrics") for file in files), files
        assert [file for file in files if not file.is_relative_to(server.folder)] == []


def test_a_password_in_an_argument_would_be_seen(folder: Path) -> None:
    spec = {"name": "leak", "command": ["sh", "-c", f"sleep 60; : '{ADMIN[1]}'"]}
    leak = Container(spec, folder / "leak", folder / "nothing", {})
    leak.start()
    until("its password is seen", lambda: "cmdline" in exposed(leak, ADMIN[1]))  # not while it is still a fork of ours
    leak.stop()


def test_connections_are_encrypted_and_as_few_as_the_values_say(accounts: Stack) -> None:
    where = "FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'mlflow'"
    assert accounts.database.sql(f"SELECT DISTINCT ssl {where}") == "t"
    most = len(accounts.servers) * (3 + 1 * 3 * (2 + 1))  # values.yaml: 3 + workers x 3 x (poolSize + maxOverflow)
    assert 0 < int(accounts.database.sql(f"SELECT count(*) {where}")) <= most


def test_a_new_password_of_the_database_needs_no_restart(accounts: Stack, objects: Sourced, folder: Path) -> None:
    """RDS changes it every week. The kubelet changes the file; connections that are there go on, new ones read it."""
    changed, path = "another;one @#'2", "/api/2.0/mlflow/experiments/get?experiment_id=0"
    quoted = changed.replace("'", "''")
    accounts.database.sql(f"ALTER USER mlflow PASSWORD '{quoted}'")
    accounts.database.password = changed
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'mlflow'"
    accounts.database.sql(kill)
    assert accounts.ask(path, ADMIN)[0] != 200, "it went on with the old password: this test shows nothing"
    write_service(objects, accounts.service_file, folder / "etc", changed)
    for server in (0, 1):
        assert accounts.ask(path, ADMIN, server=server)[0] == 200
