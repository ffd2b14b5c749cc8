"""PostgreSQL, and the containers of the chart's pods as processes: their commands, environment and files.

Nothing of a container is written anew here: only /etc/mlflow, /tmp, the bucket and the ports become this machine's.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import pytest

from tests.deploy.chart_rules import Json, Sourced, of_kind
from tests.deploy.tools import missing, mlflow_python, run, tool
from tests.support.ports import free_port
from tests.support.processes import of_session, written_by

SERVICE = "mlflow.mlflow.svc.cluster.local:5000"  # what clients in the cluster call it
HTTP = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def until(what: str, is_so: Callable[[], bool], timeout_s: float = 180) -> None:
    """Fails the test when it does not become so. A busy machine needs a minute for what takes seconds."""
    end = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > end:
            pytest.fail(f"{what}: not within {timeout_s:.0f} s")
        time.sleep(0.25)


def postgres_programs() -> Path:
    """The folder of initdb and postgres, which Debian keeps off the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [Path(shutil.which("initdb") or "")]
    if not found[-1].is_file():
        missing("PostgreSQL's initdb is not here, so the MLflow server is NOT tested: apt-get install postgresql")
    return found[-1].parent


@dataclass
class Postgres:
    """A server with TLS only, as RDS with forced TLS; folder is the one that its own user may enter."""

    folder: Path
    password: str
    port: int = field(default_factory=free_port)
    user: str = "mlflow"

    def start(self) -> None:
        programs, data = postgres_programs(), self.folder / "data"
        secret = self.folder / "password"
        secret.write_text(self.password)
        self._certificates()
        account = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
        if account:
            shutil.chown(self.folder, "postgres", "postgres")
            for file in self.folder.iterdir():
                shutil.chown(file, "postgres", "postgres")
        options = [
            "--username",
            self.user,
            "--auth=scram-sha-256",
            f"--pwfile={secret}",
            "--no-sync",
            "--encoding=UTF8",
        ]
        subprocess.run([programs / "initdb", "-D", data, *options], check=True, capture_output=True, cwd="/", **account)  # type: ignore[call-overload]
        (data / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n")
        settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "ssl": "on", "fsync": "off"}
        settings |= {"ssl_cert_file": f"{self.folder}/server.pem", "ssl_key_file": f"{self.folder}/server.key"}
        switches = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        log = (self.folder / "log").open("w")
        command = [programs / "postgres", "-D", data, "-p", str(self.port), *switches]
        self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", **account)  # type: ignore[call-overload]
        until("PostgreSQL answers", lambda: self.sql("SELECT 1", ok=False) == "1", 60)

    def _certificates(self) -> None:
        """An authority, and a certificate for localhost by it."""
        folder, openssl = self.folder, tool("openssl")
        new = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
        run([*new, "-keyout", folder / "ca.key", "-out", folder / "ca.pem", "-subj", "/CN=authority"])
        signed = [
            "-CA",
            folder / "ca.pem",
            "-CAkey",
            folder / "ca.key",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
        ]
        own = ["-keyout", folder / "server.key", "-out", folder / "server.pem", "-subj", "/CN=localhost"]
        run([*new, *own, *signed, "-addext", "subjectAltName=DNS:localhost"])
        (folder / "server.key").chmod(0o600)
        (folder / "ca.pem").chmod(0o644)

    def sql(self, statement: str, *, ok: bool = True) -> str:
        """What psql prints; the password goes through its environment."""
        psql = [
            postgres_programs() / "psql",
            "-h",
            "localhost",
            "-p",
            str(self.port),
            "-U",
            self.user,
            "-d",
            "postgres",
        ]
        done = run([*psql, "-Atc", statement], env={"PGPASSWORD": self.password, "PGSSLMODE": "require"}, ok=ok)
        return done.stdout.strip()

    def stop(self) -> None:
        self._process.send_signal(signal.SIGINT)
        self._process.wait(30)


@dataclass
class Container:
    """One container of a rendered pod, as a process in a folder that is all it may write to."""

    spec: Json
    folder: Path
    etc: Path
    secrets: Mapping[str, Mapping[str, str]]
    replaced: Mapping[str, str] = field(default_factory=dict)

    def start(self) -> None:
        scratch = self.folder / "tmp"
        scratch.mkdir(parents=True)
        self.log = self.folder / "log"
        words = [self._here(word) for word in (*self.spec["command"], *self.spec.get("args", []))]
        self.process = subprocess.Popen(
            words, cwd=scratch, env=self.environment(), stdout=self.log.open("w"), stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip

    def environment(self) -> dict[str, str]:
        scratch = str(self.folder / "tmp")
        found = {"PATH": f"{self.etc / 'bin'}:/usr/bin:/bin", "HOME": scratch, "TMPDIR": scratch, "USER": "mlflow"}
        for variable in self.spec.get("env", []):
            if "value" in variable:
                found[variable["name"]] = self._here(variable["value"])
            else:
                key = variable["valueFrom"]["secretKeyRef"]
                found[variable["name"]] = self.secrets[key["name"]][key["key"]]
        return found

    def _here(self, word: str) -> str:
        """In one pass: what is put in may look like what is replaced."""
        moved = {"/etc/mlflow": str(self.etc), "/tmp/": f"{self.folder}/tmp/", "0.0.0.0": "127.0.0.1", **self.replaced}
        longest_first = sorted(map(re.escape, moved), key=len, reverse=True)
        return re.sub("|".join(longest_first), lambda match: moved[match[0]], word)

    def until(self, what: str, is_so: Callable[[], bool]) -> None:
        """Fails the test when it does not become so, or when the process ends before."""
        until(what, lambda: is_so() or self.process.poll() is not None)
        assert self.process.poll() is None, f"{self.spec['name']} ended before this: {what}\n{self.log.read_text()}"

    def finished(self) -> str:
        """Its log, once it has ended well."""
        until(f"{self.spec['name']} ends", lambda: self.process.poll() is not None, 300)
        log = self.log.read_text()
        assert self.process.returncode == 0, log
        return log

    def stop(self) -> int:
        """As the kubelet does; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return int(self.process.wait(60))
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            pytest.fail(f"{self.spec['name']} does not end on SIGTERM:\n{self.log.read_text()[-2000:]}")

    def processes(self) -> list[Path]:
        """Of /proc: its own process and all that it started."""
        return of_session(self.process.pid)

    def open_for_writing(self) -> set[Path]:
        """Files that its processes have open to write, devices and pipes aside."""
        return {file for process in self.processes() for file in written_by(process) if file.is_file()}


@dataclass
class Stack:
    database: Postgres
    service_file: Path
    artifacts: Path
    schema_logs: list[str]
    servers: list[Container]
    ports: list[int]
    metrics: Container
    metrics_port: int

    def ask(
        self, path: str, who: tuple[str, str] | None = None, *, server: int = 0,
        body: Any = None, method: str | None = None, headers: Mapping[str, str] | None = None,
    ) -> tuple[int, str]:  # fmt: skip
        """Status and body; body None is a GET, bytes go as they are, anything else as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.ports[server]}{path}", data=data, method=method)
        request.add_header("Host", SERVICE)
        if who:
            request.add_header("Authorization", "Basic " + base64.b64encode(":".join(who).encode()).decode())
        if data is not None:
            request.add_header("Content-Type", "application/json")
        for name, value in (headers or {}).items():
            request.add_header(name, value)
        return answer(request)


def answer(request: urllib.request.Request | str) -> tuple[int, str]:
    """0 is: nobody answers."""
    try:
        with HTTP.open(request, timeout=60) as response:
            return response.status, response.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()
    except URLError:
        return 0, ""


def container(objects: Sourced, kind: str, name: str) -> Json:
    spec = of_kind(objects, kind)[0]["spec"]["template"]["spec"]
    (found,) = [c for c in (*spec.get("initContainers", []), *spec["containers"]) if c["name"] == name]
    return dict(found)


def mount(objects: Sourced, etc: Path, database: Postgres) -> Path:
    """What the kubelet and External Secrets lay under /etc/mlflow, and the image's programs; the service file."""
    for part in ("config", "database", "ca", "bin"):
        (etc / part).mkdir(parents=True)
    for name, text in of_kind(objects, "ConfigMap")[0]["data"].items():
        (etc / "config" / name).write_text(text.replace("/etc/mlflow", str(etc)))
    shutil.copy(database.folder / "ca.pem", etc / "ca/ca.pem")
    python = mlflow_python()
    for name, words in {"mlflow": f"exec {python} -m mlflow", "python": f"exec {python}"}.items():
        program = etc / "bin" / name
        program.write_text(f'#!/bin/sh\n{words} "$@"\n')
        program.chmod(0o755)
    service = etc / "database/pg_service.conf"
    write_service(objects, service, etc, database.password)
    return service


def write_service(objects: Sourced, file: Path, etc: Path, password: str) -> None:
    """As External Secrets fills the template of the ExternalSecret."""
    (secret,) = [o for o in of_kind(objects, "ExternalSecret") if o["metadata"]["name"] == "mlflow-database"]
    text = secret["spec"]["target"]["template"]["data"]["pg_service.conf"].replace("/etc/mlflow", str(etc))
    file.write_text(text.replace("{{ .username }}", "mlflow").replace("{{ .password }}", password))
