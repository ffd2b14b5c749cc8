"""backup.sh, restore.sh and the database of 07-airflow.sh with a real PostgreSQL and an S3 server on this machine.

Only what is not here is played: kubectl runs what it is to run in the pod, terraform prints the outputs.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest

from tests.deploy.machine import OUTPUTS, Machine, make_machine, write_program
from tests.deploy.tools import missing, run, tool
from tests.support.ports import free_port
from tests.support.servers import s3_server

BUCKET = OUTPUTS["bucket"]
ARTIFACTS = {"1/models/m-1/artifacts/model.onnx": b"\0\1\2" * 999, "1/a run/números.json": b"{}", "2/empty": b""}
KUBECTL = """#!/bin/sh
case "$1 $2" in
    "exec --stdin")
        while [ "$1" != -- ]; do shift; done
        shift
        if [ -n "$CUT_OFF" ] && [ "$1" = psql ]; then head -c 2000 | "$@"; else exec "$@"; fi ;;
    "create -f") cat >> "$HERE/created" ;;
    "scale deployment") echo "${6#--replicas=}" >> "$HERE/scaled" ;;
    "get deployment") tail -n 1 "$HERE/scaled" ;;
    "get secret") exit 1 ;;
esac
"""
AWS = """#!/bin/sh
case "$1 $2" in
    "sts get-caller-identity") echo 111122223333 ;;
    eks*) ;;
    "secretsmanager get-random-password") echo 0123456789abcdefABCDEF0123456789abcdefAB ;;
    *) exec "$REAL_AWS" "$@" ;;
esac
"""


def postgres_program(name: str) -> Path:
    """A program of PostgreSQL; without it the test is skipped."""
    found = [*Path("/usr/lib/postgresql").glob(f"*/bin/{name}")] or [Path(shutil.which(name) or "")]
    if not found[-1].is_file():
        missing(f"{name} is not here (apt install postgresql): backup and restore are not tried")
    return found[-1]


@pytest.fixture(scope="module")
def postgres() -> Iterator[dict[str, str]]:
    """The environment with which the programs of PostgreSQL find a server of this test's own."""
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    before = []
    if os.geteuid() == 0:  # the server refuses to run as root
        user = pwd.getpwnam("nobody")
        os.chown(folder, user.pw_uid, user.pw_gid)
        before = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    initdb = [*before, postgres_program("initdb"), "-D", folder / "data", "-U", "rayapp", "--auth=trust", "-E", "UTF8"]
    run(initdb, cwd=folder)
    hba = folder / "data/pg_hba.conf"
    hba.write_text("host all airflow 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n")
    port = str(free_port())
    options = ["-k", "", "-c", "listen_addresses=127.0.0.1", "-p", port, "-c", "fsync=off"]
    command = [str(word) for word in [*before, postgres_program("postgres"), "-D", folder / "data", *options]]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    env = {"PGHOST": "127.0.0.1", "PGPORT": port, "PGUSER": "rayapp", "PGDATABASE": "postgres"}
    try:
        for _ in range(300):
            if run(["psql", "-c", "SELECT 1"], env=env, ok=False).returncode == 0:
                break
            time.sleep(0.2)
        run(["psql", "-c", "CREATE DATABASE mlflow"], env=env)
        yield env | {"PGDATABASE": "mlflow"}
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(folder)


@pytest.fixture
def s3() -> Iterator[Any]:
    """A client of an S3 server with our bucket."""
    with s3_server() as url:
        client = boto3.client(
            "s3", endpoint_url=url, region_name="eu-central-1", aws_access_key_id="x", aws_secret_access_key="x"
        )
        httpx.post(f"{url}/moto-api/reset")  # what an earlier server of this process kept
        client.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
        for key, data in ARTIFACTS.items():
            client.put_object(Bucket=BUCKET, Key=f"mlflow/{key}", Body=data)
        client.put_object(Bucket=BUCKET, Key="runs/checkpoint", Body=b"not in the backup")
        yield client


@dataclass
class Platform:
    """The scripts, the database and the bucket that they see."""

    machine: Machine
    database: dict[str, str]
    s3: Any

    def script(
        self, name: str, *words: str, cut_off: bool = False, ok: bool = True
    ) -> subprocess.CompletedProcess[str]:
        bin_folder = self.machine.folder / "bin"
        env = self.database | {
            "PATH": f"{bin_folder}:/usr/bin:/bin", "HERE": str(bin_folder), "CUT_OFF": "1" if cut_off else "",
            "RAYAPP_POLL_S": "0.05", "REAL_AWS": str(tool("aws")),
            "AWS_ENDPOINT_URL": self.s3.meta.endpoint_url, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
        }  # fmt: skip
        command = ["bash", self.machine.folder / f"a b/cluster/scripts/{name}.sh", "dev", *words]
        return run(command, cwd=self.machine.folder, env=env, ok=ok)

    def sql(self, statement: str, **env: str) -> str:
        command = ["psql", "-qAt", "-v", "ON_ERROR_STOP=1", "-c", statement]
        return run(command, env=self.database | env).stdout.strip()

    def objects(self) -> dict[str, bytes]:
        keys = [entry["Key"] for entry in self.s3.list_objects_v2(Bucket=BUCKET)["Contents"]]
        return {key: self.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}


@pytest.fixture
def platform(tmp_path: Path, postgres: dict[str, str], s3: Any) -> Platform:
    """A platform with a run, a user and artifacts."""
    machine = make_machine(tmp_path)
    write_program(tmp_path / "bin/kubectl", KUBECTL)
    write_program(tmp_path / "bin/aws", AWS)
    write_program(tmp_path / "bin/helm", '#!/bin/sh\n[ "$1" != status ]\n')
    outputs = json.dumps({name: {"value": value} for name, value in OUTPUTS.items()})
    write_program(tmp_path / "bin/terraform", f"#!/bin/sh\nif [ \"$2\" = output ]; then echo '{outputs}'; fi\n")
    (tmp_path / "bin/scaled").write_text("2\n")
    made = Platform(machine, postgres, s3)
    made.sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    made.sql("CREATE TABLE runs (id serial PRIMARY KEY, name text NOT NULL, data bytea)")
    made.sql(
        "INSERT INTO runs (name, data) SELECT 'run ü' || i, decode(md5(i::text), 'hex') FROM generate_series(1, 500) i"
    )
    made.sql("CREATE TABLE users (name text UNIQUE, run int REFERENCES runs (id)); INSERT INTO users VALUES ('ray', 7)")
    return made


DIGEST = "SELECT md5(string_agg(r::text, '' ORDER BY id)) || (SELECT string_agg(u::text, '') FROM users u) FROM runs r"


def test_a_restore_brings_back_what_the_backup_had(platform: Platform) -> None:
    before, objects = platform.sql(DIGEST), platform.objects()
    platform.script("ops/backup", "copies of mine")
    folder = platform.machine.folder / "copies of mine"
    assert len((folder / "MANIFEST.sha256").read_text().splitlines()) == len(ARTIFACTS) + 1
    assert "is there already" in platform.script("ops/backup", "copies of mine", ok=False).stderr

    platform.sql("DROP TABLE users; UPDATE runs SET name = 'lost' WHERE id < 100; CREATE TABLE newer (x int)")
    damaged = "mlflow/1/models/m-1/artifacts/model.onnx"
    platform.s3.put_object(Bucket=BUCKET, Key=damaged, Body=b"\3" * len(objects[damaged]))  # of the same size
    platform.s3.delete_object(Bucket=BUCKET, Key="mlflow/2/empty")
    platform.s3.put_object(Bucket=BUCKET, Key="mlflow/3/newer", Body=b"stays")
    platform.script("ops/restore", "copies of mine", "--yes")
    assert platform.sql(DIGEST) == before
    assert platform.sql("SELECT to_regclass('newer') IS NULL") == "t"
    assert platform.sql("INSERT INTO runs (name) VALUES ('next') RETURNING id") == "501"
    assert platform.objects() == objects | {"mlflow/3/newer": b"stays"}
    assert (platform.machine.folder / "bin/scaled").read_text().split() == ["2", "0", "2"]

    platform.script("ops/backup", "second")
    platform.script("ops/restore", "second", "--yes")
    assert platform.sql("SELECT count(*) FROM runs") == "501"


def test_a_damaged_backup_is_refused_before_anything_changes(platform: Platform) -> None:
    platform.script("ops/backup", "b")
    folder = platform.machine.folder / "b"
    file = folder / "artifacts/mlflow/1/models/m-1/artifacts/model.onnx"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b"x")
    done = platform.script("ops/restore", "b", "--yes", ok=False)
    assert (
        "b is damaged, nothing was changed: ./artifacts/mlflow/1/models/m-1/artifacts/model.onnx: FAILED" in done.stderr
    )
    file.write_bytes(whole)
    (folder / "artifacts/mlflow/extra").write_text("x")
    assert "has 5 files and its manifest lists 4" in platform.script("ops/restore", "b", "--yes", ok=False).stderr
    (folder / "artifacts/mlflow/extra").unlink()
    (folder / "artifacts/mlflow/2/empty").unlink()
    assert "2/empty: FAILED" in platform.script("ops/restore", "b", "--yes", ok=False).stderr
    assert (platform.machine.folder / "bin/scaled").read_text().split() == ["2"]


def test_a_stream_that_breaks_off_leaves_the_database_as_it_was(platform: Platform) -> None:
    platform.script("ops/backup", "b")
    platform.sql("UPDATE runs SET name = 'newer'")
    now = platform.sql(DIGEST)
    platform.script("ops/restore", "b", "--yes", cut_off=True, ok=False)
    assert platform.sql(DIGEST) == now
    assert (platform.machine.folder / "bin/scaled").read_text().split() == ["2", "0", "2"], "MLflow runs again"


def test_airflow_gets_a_database_and_a_password_that_no_statement_has(platform: Platform) -> None:
    created = platform.machine.folder / "bin/created"
    for _ in range(2):
        platform.script("setup/07-airflow")
    secrets = [
        json.loads(line) for line in created.read_text().replace("}{", "}\n{").splitlines() if "connection" in line
    ]
    url = secrets[0]["stringData"]["connection"]
    password = url.split("airflow:")[1].split("@")[0]
    assert len(password) == 40
    database = {"PGDATABASE": "airflow", "PGUSER": "airflow"}
    assert platform.sql("SELECT current_user", PGPASSWORD=password, **database) == "airflow"
    assert run(["psql", "-c", ""], env=platform.database | database | {"PGPASSWORD": "wrong"}, ok=False).returncode
