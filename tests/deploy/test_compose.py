"""cluster/local/compose.yaml: its shape, and what it promises about ports, images, secrets and health."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.dockerfile import read
from tests.deploy.tools import ROOT, VERSIONS, run, tool

COMPOSE = ROOT / "cluster/local/compose.yaml"
ENV = ROOT / "cluster/local/.env.example"
OURS = {  # where the health check is the image's own
    "rayapp": (ROOT / "cluster/docker/Dockerfile", "cpu"),
    "rayapp-mlflow": (ROOT / "cluster/docker/mlflow.Dockerfile", "mlflow"),
}
SECRET = re.compile(r"password|secret|token|access_key", re.IGNORECASE)


def schema_errors(path: Path) -> str:
    done = run([tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", path], ok=False)
    return "" if done.returncode == 0 else done.stdout


def problems(path: Path) -> list[str]:
    """What a compose file must not say; each names file, service and field."""
    text = path.read_text()
    services: dict[str, dict[str, Any]] = yaml.safe_load(text)["services"]
    found = [*undefined(text), *(f"{name}: {problem}" for name in services for problem in of_service(services, name))]
    return [f"{path.name}: {problem}" for problem in found]


def undefined(text: str) -> Iterator[str]:
    """Variables have no defaults, and .env.example or versions.env has each."""
    known = {line.partition("=")[0] for line in ENV.read_text().splitlines() if "=" in line and line[0] != "#"}
    for name, rest in re.findall(r"\$\{(\w+)(.*?)\}", text):
        if not rest.startswith(":?"):
            yield f"${{{name}{rest}}} does not stop where it has no value"
        if name not in known and name not in VERSIONS:
            yield f"${{{name}}} is in neither .env.example nor versions.env"


def of_service(services: dict[str, dict[str, Any]], name: str) -> Iterator[str]:
    service = services[name]
    image, _, tag = str(service["image"]).partition(":")
    if not re.match(r"(\$\{RAYAPP_VERSION|v?\d+\.\d+)", tag):
        yield f"image: {image}:{tag} is not a version"
    for port in service.get("ports", []):
        if not str(port).startswith("127.0.0.1:"):
            yield f"ports: {port} is not on 127.0.0.1 alone"
    for variable, value in service.get("environment", {}).items():
        if SECRET.search(variable) and not re.search(r"\$\{\w+:\?", str(value)):
            yield f"environment.{variable}: a secret that stands here"
    if "no-new-privileges:true" not in service.get("security_opt", []):
        yield "security_opt: no-new-privileges:true is missing"
    if "restart" in service and "healthcheck" not in service and (image not in OURS or image == "rayapp"):
        yield "healthcheck: is missing"
    for other, condition in service.get("depends_on", {}).items():
        if other not in services:
            yield f"depends_on: there is no service {other}"
        elif condition["condition"] == "service_started":
            yield f"depends_on.{other}: started is not ready"


def test_stack_is_as_promised():
    assert schema_errors(COMPOSE) == ""
    assert problems(COMPOSE) == []


def test_images_that_bring_their_health_check_have_one():
    for dockerfile, target in OURS.values():
        assert read(dockerfile).last(target, "HEALTHCHECK")


def test_example_has_no_values():
    lines = [line for line in ENV.read_text().splitlines() if line and line[0] != "#"]

    assert len(lines) >= 6
    assert [line for line in lines if not re.fullmatch(r"[A-Z0-9_]+=", line)] == []


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("127.0.0.1:5000:5000", "5000:5000", "mlflow: ports: 5000:5000 is not on 127.0.0.1 alone"),
        ("postgres:17.6-alpine", "postgres:latest", "postgres: image: postgres:latest is not a version"),
        ("${RAY_TOKEN:?see .env.example}", "${RAY_TOKEN:-changeme}", "${RAY_TOKEN:-changeme} does not stop where"),
        ("${MLFLOW_PASSWORD:?see .env.example}", "hunter2", "mlflow: environment.MLFLOW_AUTH_ADMIN_PASSWORD: a secret"),
        ("${S3_SECRET_KEY:?", "${S3_SECRET:?", "${S3_SECRET} is in neither .env.example nor versions.env"),
        ("    healthcheck: *ray-health\n", "", "ray-worker: healthcheck: is missing"),
        ("postgres: {condition: service_healthy}", "postgres: {condition: service_started}", "started is not ready"),
        ("security_opt: [no-new-privileges:true]", "security_opt: []", "storage: security_opt: no-new-privileges"),
        ("bucket: {condition", "buckets: {condition", "mlflow: depends_on: there is no service buckets"),
    ],
)
def test_fault_is_found(tmp_path: Path, old: str, new: str, found: str):
    text = COMPOSE.read_text()
    assert old in text
    copy = tmp_path / COMPOSE.name
    copy.write_text(text.replace(old, new))

    assert any(found in problem for problem in problems(copy))


def test_misspelt_key_is_found(tmp_path: Path):
    copy = tmp_path / COMPOSE.name
    copy.write_text(COMPOSE.read_text().replace("    read_only: true", "    readonly: true"))

    error = schema_errors(copy)
    assert "compose.yaml::$.services.mlflow: " in error
    assert "'readonly' was unexpected" in error
