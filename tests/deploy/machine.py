"""A copy of the scripts of cluster/scripts and the world in which they run: programs that are stub_tools.py."""

from __future__ import annotations

import marshal
import py_compile
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.tools import ROOT, run

SCRIPTS = ROOT / "cluster/scripts"
OURS = sorted([SCRIPTS / "lib.sh", *SCRIPTS.glob("lib/*.sh"), *SCRIPTS.glob("setup/*.sh"), *SCRIPTS.glob("ops/*.sh")])
STARTED = [path for path in OURS if path.parent.name in ("setup", "ops")]
CHARTS = [
    "aws-load-balancer-controller", "external-secrets", "cluster-autoscaler", "nvidia-device-plugin",
    "kube-prometheus-stack", "kueue", "kuberay-operator", "airflow",
]  # fmt: skip
# What cluster/versions.env has to set beside what others need of it.
PINS = [f"{chart.upper().replace('-', '_')}_CHART_{part}" for chart in CHARTS for part in ("REPO", "VERSION")]
PINS = [*PINS, "POSTGRES_CLIENT_IMAGE"]
SETTINGS = {
    "AWS_REGION": "eu-central-1",
    "AWS_ACCOUNT_ID": "111122223333",
    "STATE_BUCKET": "example-state",
    "DEV_DOMAIN": "example.org",
    "CERTIFICATE_ARN": "arn:aws:acm:eu-central-1:111122223333:certificate/0",
    "ADMIN_PRINCIPAL_ARNS": "arn:aws:iam::111122223333:role/a, arn:aws:iam::111122223333:role/b",
    "ALERT_EMAILS": "a@example.org",
    "DAGS_REPO": "https://example.org/r.git",
    "DAGS_REF": "v1",
}
REPOSITORY = "111122223333.dkr.ecr.eu-central-1.amazonaws.com/rayapp-dev"
OUTPUTS: dict[str, Any] = {
    "vpc_id": "vpc-1", "bucket": "rayapp-dev-111122223333", "vpc_cidr": "10.40.0.0/16", "profile": "standard",
    "pod_iam": "pod_identity", "pod_role_arns": {}, "database_host": "db.example.org",
    "database_port": 5432, "database_name": "mlflow", "database_secret_arn": "arn:aws:secretsmanager:x",
    "mlflow_secret_name": "rayapp-dev/mlflow", "serving_secret_name": "rayapp-dev/serving",
    "ecr_repository_urls": {"rayapp": f"{REPOSITORY}/rayapp", "mlflow": f"{REPOSITORY}/rayapp-mlflow"},
}  # fmt: skip
CLOSED = {"metadata": {"name": "nothing-else"}, "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}}
WORLD: dict[str, Any] = {
    "calls": [], "fail": None, "secrets": [], "account": "111122223333", "terraform": None, "outputs": OUTPUTS,
    "planned": [], "bucket": {"exists": False, "versioning": False}, "images": True, "vault": {}, "releases": {},
    "objects": [], "occupied": ["kube-system"], "applied": [], "refreshed": 0, "users": {},
    "champion": 200, "suspend": "", "policies": [CLOSED],
    "job": "Complete SUCCEEDED", "nodegroup": {"minSize": 0, "maxSize": 5, "desiredSize": 0},
    "certificate": {"Status": "ISSUED", "SubjectAlternativeNames": ["*.example.org"]},
    "offered": "t3a.large\tt4g.nano\tm6a.xlarge\tg6.xlarge", "quota": 64.0, "no_charts": [],
    "versions": {
        "aws": "aws-cli/2.30.1", "terraform": "Terraform v1.11.4", "helm": "v3.19.0+g3d8990f",
        "kubectl": "Client Version: v1.36.0", "curl": "curl 8.5.0",
    },
}  # fmt: skip
RENDER = """#!/usr/bin/env bash
for name in REGISTRY BUCKET AWS_REGION DOMAIN CERTIFICATE_ARN MLFLOW_SECRET SERVING_SECRET; do : "${!name:?}"; done
printf '%s\\n' "$1" "${RAY_JOBS_ROLE_ARN:-}" "${RAY_SERVE_ROLE_ARN:-}" > "$0.called"
printf '%s\\n' '{kind: Namespace, metadata: {name: rayapp}}' --- '{kind: ClusterSecretStore, metadata: {name: aws}}' \\
    --- '{kind: RayService, metadata: {name: vision}, data: '"$REGISTRY $AWAKE"'}'
"""
# What a program of the machine is: the compiled stub_tools.py beside it, asked by the program's name.
PLAYER = """import sys
folder, _, name = sys.argv[0].rpartition("/")
sys.path.append(folder)
import stub_tools
sys.exit(stub_tools.main(name, sys.argv[1:]))
"""


@dataclass
class Machine:
    """A copy of the scripts, and the world in which they run."""

    folder: Path

    @property
    def world(self) -> dict[str, Any]:
        return dict(marshal.loads((self.folder / "bin/world").read_bytes()))

    def set(self, **changes: Any) -> None:
        """Changes the world."""
        (self.folder / "bin/world").write_bytes(marshal.dumps(self.world | changes))

    def settings(self, **changes: str) -> None:
        lines = (f"{name}={value}\n" for name, value in (SETTINGS | changes).items())
        (self.folder / "a b/cluster/settings.env").write_text("# a comment\n" + "".join(lines))

    def run(self, script: str, *words: str, stdin: str = "", ok: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs cluster/scripts/SCRIPT.sh; the calls that it made are in `calls` afterwards."""
        self.set(calls=[])
        env = {
            "PATH": f"{self.folder / 'bin'}:/usr/bin:/bin",
            "RAYAPP_POLL_S": "0.05",
            "TMPDIR": str(self.folder / "tmp"),
        }
        command = ["bash", self.folder / f"a b/cluster/scripts/{script}.sh", *words]
        done = run(command, cwd=self.folder, env=env, stdin=stdin, ok=ok)
        if not ok:
            assert done.returncode, f"{script} went well:\n{done.stdout}{done.stderr}"
        self.assert_nothing_leaks(done)
        return done

    def assert_nothing_leaks(self, done: subprocess.CompletedProcess[str]) -> None:
        places = {"stdout or stderr": done.stdout + done.stderr}
        places |= {f"arguments of {call['program']}": " ".join(call["words"]) for call in self.world["calls"]}
        left = [path for path in self.folder.rglob("*") if path.is_file() and path.parent != self.folder / "bin"]
        places |= {str(path): path.read_text(errors="replace") for path in left}
        for place, text in places.items():
            assert not [word for word in self.world["secrets"] if word in text], f"a secret stands in {place}"
        assert not list((self.folder / "tmp").iterdir()), "a temporary folder is left"

    def calls(self, *, changing: bool = True) -> list[str]:
        """What was called, as text."""
        calls = self.world["calls"]
        return [" ".join([c["program"], *c["words"]]) for c in calls if c["changes"] or not changing]

    def rendered_with(self) -> list[str]:
        """What render.sh was last given: the overlay, and the roles of the Ray pods."""
        return (self.folder / "a b/cluster/scripts/render.sh.called").read_text().splitlines()


def write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def make_machine(folder: Path) -> Machine:
    """A machine with all settings and an account in which nothing is yet. Its path has a space in it."""
    cluster, bin_folder = folder / "a b/cluster", folder / "bin"
    kept = shutil.ignore_patterns(".state", "settings.env", "backups", "docker", "__pycache__")
    shutil.copytree(ROOT / "cluster", cluster, ignore=kept)
    shutil.copytree(ROOT / "terraform/envs", folder / "a b/terraform/envs")
    write_program(cluster / "scripts/render.sh", RENDER)
    write_program(cluster / "scripts/build-images.sh", '#!/bin/sh\nprintf "%s\\n" "$*" "$TF_DATA_DIR" > "$0.called"\n')
    with (cluster / "versions.env").open("a") as file:
        file.writelines(f"{name}={'https://charts.example.org' if 'REPO' in name else '9.9.9'}\n" for name in PINS)
    (cluster / "charts/mlflow").mkdir(parents=True, exist_ok=True)
    bin_folder.mkdir()
    (folder / "tmp").mkdir()
    py_compile.compile(str(ROOT / "tests/deploy/stub_tools.py"), str(bin_folder / "stub_tools.pyc"), doraise=True)
    for name in ("aws", "helm", "kubectl", "terraform", "curl"):
        write_program(bin_folder / name, f"#!{sys.executable} -IS\n{PLAYER}")
    yaml_is_in = Path(yaml.__file__).parents[1]  # without `import site` Python starts in half the time
    write_program(
        bin_folder / "python3", f'#!/bin/sh\nexport PYTHONPATH="{yaml_is_in}"\nexec "{sys.executable}" -S "$@"\n'
    )
    (bin_folder / "world").write_bytes(marshal.dumps(WORLD))
    made = Machine(folder)
    made.settings()
    return made
