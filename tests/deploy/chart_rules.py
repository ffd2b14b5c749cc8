"""What every object of a chart has to keep to, as functions that name the file and the field of each fault."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.deploy.tools import ROOT, render_chart

Json = dict[str, Any]
Sourced = list[tuple[str, Json]]  # file of the chart, object

CHART = ROOT / "cluster/charts/mlflow"
FILES = {"default": [], "lean": [CHART / "values-lean.yaml"], "prod": [CHART / "values-prod.yaml"]}
GIVEN = {  # what setup/04-mlflow.sh gives
    "image": {"repository": "registry.example/rayapp-prod/rayapp-mlflow"},
    "database": {"host": "db.example", "secret": "arn:aws:secretsmanager:us-east-1:111122223333:secret:rds!db-1"},
    "auth": {"secret": "rayapp-prod/mlflow"},
    "artifacts": {"bucket": "rayapp-prod-1"},
    "ingress": {"host": "mlflow.example.com", "certificateArn": "arn:aws:acm:us-east-1:111122223333:certificate/1"},
}

SECRET_NAME = re.compile(r"PASSWORD|SECRET|TOKEN|PRIVATE|(^|_)KEY($|_)", re.IGNORECASE)
SECRET_TEXT = re.compile(r"password\s*[=:]\s*(?!\"?\{\{)[^\s\"]|://[^/\s:@]+:[^/\s@]+@|AKIA[0-9A-Z]{16}", re.IGNORECASE)


def mlflow(*values: Path, chart: Path = CHART) -> Sourced:
    return render_chart(chart, *values, release="mlflow", namespace="mlflow")


def damage(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) >= 1, f"{file.name} has no {old!r} to damage"
    file.write_text(text.replace(old, new, 1))


def of_kind(objects: Sourced, kind: str) -> list[Json]:
    return [obj for _, obj in objects if obj["kind"] == kind]


def faults(objects: Sourced) -> list[str]:
    """All of them: FILE: KIND/NAME: FIELD: what is wrong."""
    found = []
    for source, obj in objects:
        name = f"{source}: {obj['kind']}/{obj['metadata']['name']}"
        found += [f"{name}: {fault}" for rule in RULES for fault in rule(obj)]
    return found


def secrets(obj: Json) -> Iterator[str]:
    """F56, F58: a Secret with values, a variable with a secret's name and a value, or text with a password in it."""
    if obj["kind"] == "Secret" and (obj.get("data") or obj.get("stringData")):
        yield "data: secrets come from Secrets Manager, none stands in a chart"
    for field, value in leaves(obj):
        if isinstance(value, str) and SECRET_TEXT.search(value):
            yield f"{field}: holds a password or key"
    for field, container in containers(obj):
        for variable in container.get("env", []):
            if SECRET_NAME.search(variable["name"]) and "value" in variable:
                yield f"{field}.env.{variable['name']}: a literal value; take it from a Secret"


def probes(obj: Json) -> Iterator[str]:
    """F70: what runs for good is asked whether it is ready and whether it lives, and each probe says how."""
    if obj["kind"] != "Deployment":
        return
    for field, container in containers(obj, init=False):
        for probe in ("readinessProbe", "livenessProbe"):
            if not container.get(probe, {}).keys() & {"httpGet", "tcpSocket", "exec", "grpc"}:
                yield f"{field}.{probe}: missing, or it does not say what to ask"


def confinement(obj: Json) -> Iterator[str]:
    """The restricted profile of Pod Security, a read-only root, no token, requests and limits."""
    spec = pod_spec(obj)
    if spec is None:
        return
    wanted = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    for key, value in wanted.items():
        if spec.get("securityContext", {}).get(key) != value:
            yield f"spec.template.spec.securityContext.{key}: has to be {value}"
    if spec.get("automountServiceAccountToken") is not False:
        yield "spec.template.spec.automountServiceAccountToken: has to be false"
    own = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    for field, container in containers(obj):
        for key, value in own.items():
            if container.get("securityContext", {}).get(key) != value:
                yield f"{field}.securityContext.{key}: has to be {value}"
        for kind in ("requests", "limits"):
            if container.get("resources", {}).get(kind, {}).keys() < {"cpu", "memory"}:
                yield f"{field}.resources.{kind}: needs cpu and memory"
        if container["image"].endswith(":latest") or ":" not in container["image"].rpartition("/")[2]:
            yield f"{field}.image: {container['image']} names no version"


def tls(obj: Json) -> Iterator[str]:
    """An Ingress that answers HTTP by a redirect alone, with a certificate, and TLS 1.2 at least."""
    if obj["kind"] != "Ingress":
        return
    notes, prefix = obj["metadata"].get("annotations", {}), "alb.ingress.kubernetes.io/"
    wanted = {
        "certificate-arn": "arn:aws",
        "ssl-redirect": "443",
        "listen-ports": '[{"HTTP": 80}, {"HTTPS": 443}]',
        "ssl-policy": "ELBSecurityPolicy-TLS13-",
    }
    for key, value in wanted.items():
        if not str(notes.get(prefix + key, "")).startswith(value):
            yield f"metadata.annotations.{prefix}{key}: has to start with {value}"
    encrypted = {host for entry in obj["spec"].get("tls", []) for host in entry["hosts"]}
    for rule in obj["spec"]["rules"]:
        if rule.get("host") not in encrypted:
            yield f"spec.tls: does not name {rule.get('host')}"


def scaling(obj: Json) -> Iterator[str]:
    if obj["kind"] != "HorizontalPodAutoscaler":
        return
    least, most = obj["spec"]["minReplicas"], obj["spec"]["maxReplicas"]
    if not 2 <= least <= most <= 5:
        yield f"spec.minReplicas, spec.maxReplicas: {least} to {most}; it has to be within 2 to 5"


def accounts(obj: Json) -> Iterator[str]:
    """F58: the server asks for accounts, and an account sees nothing that nobody granted to it."""
    ini = obj.get("data", {}).get("basic_auth.ini") if obj["kind"] == "ConfigMap" else None
    if ini is not None and "default_permission = NO_PERMISSIONS\n" not in ini:
        yield "data.basic_auth.ini: default_permission has to be NO_PERMISSIONS"
    for field, container in containers(obj, init=False):
        if container.get("command") == ["mlflow", "server"] and "--app-name=basic-auth" not in container["args"]:
            yield f"{field}.args: --app-name=basic-auth is missing: everybody may do everything"


RULES = (secrets, probes, confinement, tls, scaling, accounts)


def pod_spec(obj: Json) -> Json | None:
    spec: Json | None = (
        obj.get("spec", {}).get("template", {}).get("spec") if obj["kind"] in ("Deployment", "Job") else None
    )
    return spec


def containers(obj: Json, *, init: bool = True) -> Iterator[tuple[str, Json]]:
    """Each with the field that it stands in."""
    for kind in ("initContainers", "containers") if init else ("containers",):
        for container in (pod_spec(obj) or {}).get(kind, []):
            yield f"spec.template.spec.{kind}.{container['name']}", container


def leaves(value: object, field: str = "") -> Iterator[tuple[str, object]]:
    """Every value that is neither map nor list, with the path of fields to it."""
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from leaves(below, f"{field}.{key}" if field else str(key))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for index, below in enumerate(value):
            yield from leaves(below, f"{field}[{index}]")
    else:
        yield field, value
