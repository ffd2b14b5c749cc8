"""The CronJobs' program against an API server with TLS: it makes the RayJob of the template and ends as that ends."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path
from typing import Any, Self

import pytest
import yaml

from tests.deploy.manifests import FOLDER, rendered, the
from tests.deploy.stand_in_kubernetes import RAYJOBS, RETRYING, STOPPED, StandIn, failed
from tests.deploy.tools import python, run

TOKEN = "a-token"


class Api(StandIn):
    """A stand-in with TLS, which keeps the Authorization headers that came."""

    def behind_tls(self, folder: Path) -> Self:
        """The running server, from now on with the certificate of this folder."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "ca.crt", folder / "key.pem")
        self.headers: list[str | None] = []
        handler, headers = self._server.RequestHandlerClass, self.headers

        class Keeping(handler):  # type: ignore[misc, valid-type]
            def parse_request(self) -> bool:
                parsed: bool = super().parse_request()
                headers.append(self.headers.get("Authorization"))
                return parsed

        self._server.RequestHandlerClass = Keeping
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        return self


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Kubernetes mounts for a service account, and the key of its server."""
    folder = tmp_path_factory.mktemp("account")
    (folder / "token").write_text(f"{TOKEN}\n")
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=kubernetes"]
    words += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(folder / "key.pem"), "-out"]
    run([*words, str(folder / "ca.crt")])
    return folder


@pytest.fixture
def template(tmp_path: Path) -> Path:
    text = the("ConfigMap", "rayjob-templates", rendered("dev"))["data"]["pipeline.yaml"]
    path = tmp_path / "pipeline.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def create(api: Api, account: Path, *words: Path | str) -> subprocess.CompletedProcess[str]:
    env = {
        "KUBERNETES_SERVICE_HOST": "127.0.0.1",
        "KUBERNETES_SERVICE_PORT": api.url.rpartition(":")[2],
        "SERVICE_ACCOUNT_FOLDER": str(account),
        "POLL_S": "0.02",
    }
    return run([python(), "-B", FOLDER / "schedules/create_rayjob.py", *words], env=env, ok=False)


def test_the_template_becomes_a_job_and_its_success_the_programs(account: Path, template: Path):
    with Api(templates={}) as api:
        done = create(api.behind_tls(account), account, template)

    assert done.returncode == 0, done.stderr
    assert [job["spec"] for job in api.created] == [yaml.safe_load(template.read_text())["spec"]]
    assert api.names()[0].startswith("pipeline-")
    assert f"created rayjob/{api.names()[0]}" in done.stdout
    assert set(api.headers) == {f"Bearer {TOKEN}"}
    assert api.refused == []


def test_an_entrypoint_goes_over_the_templates(account: Path, template: Path):
    with Api(templates={}) as api:
        done = create(api.behind_tls(account), account, template, "python jobs/promote.py")

    assert done.returncode == 0, done.stderr
    spec = yaml.safe_load(template.read_text())["spec"] | {"entrypoint": "python jobs/promote.py"}
    assert [job["spec"] for job in api.created] == [spec]


@pytest.mark.parametrize("status", [failed(1, "no such data"), STOPPED], ids=["failed", "stopped"])
def test_a_failed_job_is_a_failed_program(status: dict[str, Any], account: Path, template: Path):
    with Api(templates={}, plan={"pipeline": [status]}) as api:
        done = create(api.behind_tls(account), account, template)

    assert done.returncode == 1
    assert f"rayjob/{api.names()[0]} failed" in done.stderr
    assert status["message"].splitlines()[0] in done.stderr


def test_a_try_that_failed_is_not_the_end(account: Path, template: Path):
    assert RETRYING["jobStatus"] == "FAILED"
    program: dict[str, Any] = {"__name__": "create_rayjob"}
    exec((FOLDER / "schedules/create_rayjob.py").read_text(encoding="utf-8"), program)

    assert program["outcome"](RETRYING) is None
    assert program["outcome"]({}) is None


def test_a_lost_answer_makes_no_second_job(account: Path, template: Path):
    with Api(templates={}, answers={("POST", RAYJOBS): [500]}) as api:
        done = create(api.behind_tls(account), account, template)

    assert done.returncode == 0, done.stderr
    assert len(api.created) == 1


def test_a_refused_job_says_why(account: Path, template: Path):
    template.write_text(template.read_text(encoding="utf-8").replace("kind: RayJob", "kind: RayJop"))
    with Api(templates={}) as api:
        done = create(api.behind_tls(account), account, template)

    assert done.returncode == 1
    assert "'RayJob' was expected" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_api_server_that_is_away_for_a_while_is_asked_again(account: Path, template: Path):
    with Api(templates={}, answers={("GET", RAYJOBS): [503, 429, 500]}) as api:
        done = create(api.behind_tls(account), account, template)

    assert done.returncode == 0, done.stderr
    assert "the API says 503" in done.stdout


def test_a_server_that_is_not_the_clusters_gets_no_token(account: Path, template: Path, tmp_path: Path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "token").write_text(TOKEN)
    words = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        "/CN=x",
        "-keyout",
        "/dev/null",
        "-out",
    ]
    run([*words, str(other / "ca.crt")])
    with Api(templates={}) as api:
        done = create(api.behind_tls(account), other, template)

    assert done.returncode == 1
    assert "CERTIFICATE_VERIFY_FAILED" in done.stderr
    assert (api.created, api.headers) == ([], [])
