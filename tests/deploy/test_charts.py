"""The chart of MLflow: what it promises with each values file, and that each check bites."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.chart_rules import (
    CHART,
    FILES,
    GIVEN,
    Sourced,
    containers,
    damage,
    faults,
    mlflow,
    of_kind,
    pod_spec,
)
from tests.deploy.tools import VERSIONS, dump, helm, kube_validate, run, tool


@pytest.fixture
def given(tmp_path: Path) -> Path:
    file = tmp_path / "given.yaml"
    file.write_text(yaml.safe_dump(GIVEN))
    return file


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A chart that a test may damage."""
    return Path(shutil.copytree(CHART, tmp_path / "mlflow"))


def named(objects: Sourced, kind: str, name: str = "mlflow") -> dict[str, Any]:
    (found,) = [obj for obj in of_kind(objects, kind) if obj["metadata"]["name"] == name]
    return found


def refusal(chart: Path, *values: Path) -> str:
    """What Helm says when it refuses."""
    done = helm("template", "mlflow", chart, values=values, ok=False)
    assert done.returncode, "Helm took what it has to refuse"
    return done.stderr


@pytest.mark.parametrize("name", FILES)
def test_every_values_file_renders_without_a_fault(name: str, given: Path) -> None:
    objects = mlflow(*FILES[name], given)
    assert faults(objects) == []
    checked = kube_validate(dump([obj for _, obj in objects]))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_servers_scale_from_two_to_five_and_survive_a_node(given: Path) -> None:
    objects = mlflow(given)
    hpa = named(objects, "HorizontalPodAutoscaler")["spec"]
    deployment = named(objects, "Deployment")["spec"]
    spread = {
        c["topologyKey"]: c["whenUnsatisfiable"] for c in deployment["template"]["spec"]["topologySpreadConstraints"]
    }
    assert (hpa["minReplicas"], hpa["maxReplicas"]) == (2, 5)
    assert "replicas" not in deployment, "an upgrade would undo what the autoscaler chose"
    assert named(objects, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    assert spread == {"kubernetes.io/hostname": "DoNotSchedule", "topology.kubernetes.io/zone": "ScheduleAnyway"}
    assert deployment["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}


def test_the_lean_profile_is_one_pod_without_load_balancer_or_prometheus(given: Path) -> None:
    objects = mlflow(*FILES["lean"], given)
    assert sorted({obj["kind"] for _, obj in objects}) == [
        "ConfigMap", "Deployment", "ExternalSecret", "Job", "NetworkPolicy", "Service", "ServiceAccount",
    ]  # fmt: skip
    assert named(objects, "Deployment")["spec"]["replicas"] == 1
    (peers,) = named(objects, "NetworkPolicy")["spec"]["ingress"]
    assert [peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] for peer in peers["from"]] == [
        "rayapp"
    ]


def test_names_that_scripts_and_manifests_rely_on(given: Path) -> None:
    objects = mlflow(given)
    secrets = {
        obj["metadata"]["name"]: {item["secretKey"] for item in obj["spec"]["data"]}
        for obj in of_kind(objects, "ExternalSecret")
    }
    assert secrets == {
        "mlflow-database": {"username", "password"},
        "mlflow-auth": {"admin_username", "admin_password", "flask_secret_key"},
    }
    assert {obj["spec"]["secretStoreRef"]["name"] for obj in of_kind(objects, "ExternalSecret")} == {"aws"}
    assert named(objects, "Service")["spec"]["ports"][0] == {"name": "http", "port": 5000, "targetPort": "http"}
    annotations = named(objects, "Ingress")["metadata"]["annotations"]
    assert annotations["alb.ingress.kubernetes.io/group.name"] == "rayapp-internal"
    assert annotations["alb.ingress.kubernetes.io/scheme"] == "internal"
    pods = [pod_spec(obj) or {} for kind in ("Deployment", "Job") for obj in of_kind(objects, kind)]
    assert {pod["serviceAccountName"] for pod in pods} == {"mlflow"}
    assert {pod["nodeSelector"]["rayapp.io/pool"] for pod in pods} == {"cpu"}


def test_version_and_image_are_those_of_the_platform(given: Path) -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (VERSIONS["RAYAPP_VERSION"], VERSIONS["MLFLOW_VERSION"])
    tag = f"{VERSIONS['RAYAPP_VERSION']}-mlflow{VERSIONS['MLFLOW_VERSION']}"
    objects = mlflow(given)
    images = {c["image"] for _, obj in objects for _, c in containers(obj)}
    assert images == {f"{GIVEN['image']['repository']}:{tag}"}


def test_the_packaged_chart_renders_the_same(given: Path, tmp_path: Path) -> None:
    run([tool("helm"), "package", CHART, "--destination", tmp_path])
    (archive,) = tmp_path.glob("*.tgz")

    assert archive.name == f"mlflow-{VERSIONS['RAYAPP_VERSION']}.tgz"
    assert mlflow(given, chart=archive) == mlflow(given)


def test_only_the_schema_job_knows_the_administrators_password(given: Path) -> None:
    holders = {
        (obj["kind"], container["name"])
        for _, obj in mlflow(given)
        for _, container in containers(obj)
        for variable in container.get("env", [])
        if variable.get("valueFrom", {}).get("secretKeyRef", {}).get("key") == "admin_password"
    }
    assert holders == {("Job", "schema")}


def test_a_new_revision_has_a_schema_job_of_its_own(given: Path) -> None:
    """A Job cannot be changed; the servers wait for it by its effect, so its name may differ."""
    job = (CHART / "templates/schema-job.yaml").read_text()
    assert "name: {{ .Release.Name }}-schema-{{ .Release.Revision }}" in job
    assert "helm.sh/hook" not in job


# Checks that bite: one fault each, in a copy.


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "deployment.yaml",
            "valueFrom: {secretKeyRef: {name: {{ .Release.Name }}-auth, key: flask_secret_key}}",
            "value: abc",
            "mlflow/templates/deployment.yaml: Deployment/mlflow: spec.template.spec.containers.mlflow.env."
            "MLFLOW_FLASK_SERVER_SECRET_KEY: a literal value",
        ),
        (
            "_helpers.tpl",
            "postgresql+psycopg2:///?service=mlflow",
            "postgresql+psycopg2://mlflow:hunter2@db/mlflow",
            "mlflow/templates/configmap.yaml: ConfigMap/mlflow-config: data.basic_auth.ini: holds a password",
        ),
        (
            "deployment.yaml",
            "readinessProbe:\n            httpGet: {path: /health, port: http}\n",
            "readinessProbe:\n",
            "spec.template.spec.containers.mlflow.readinessProbe: missing",
        ),
        ("deployment.yaml", "            - --app-name=basic-auth\n", "", "args: --app-name=basic-auth is missing"),
        ("configmap.yaml", "{{ .Values.auth.defaultPermission }}", "READ", "data.basic_auth.ini: default_permission"),
        ("ingress.yaml", 'alb.ingress.kubernetes.io/ssl-redirect: "443"', "", "/ssl-redirect: has to start with 443"),
        (
            "ingress.yaml",
            '  tls:\n    - hosts: [{{ include "mlflow.host" . }}]\n',
            "",
            "mlflow/templates/ingress.yaml: Ingress/mlflow: spec.tls: does not name mlflow.example.com",
        ),
        ("_helpers.tpl", "readOnlyRootFilesystem: true", "", "mlflow.securityContext.readOnlyRootFilesystem"),
    ],
)  # fmt: skip
def test_a_planted_fault_in_a_template_is_found(
    file: str, old: str, new: str, message: str, copy: Path, given: Path
) -> None:
    damage(copy / "templates" / file, old, new)
    found = faults(mlflow(given, chart=copy))
    assert any(message in fault for fault in found), found


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"autoscaling": {"maxReplica": 5}}, r"/autoscaling.*maxReplica'"),
        ({"autoscaling": {"minReplicas": 4, "maxReplicas": 3}}, r"hpa.yaml.*autoscaling.maxReplicas is 3, below .*, 4"),
        ({"ingress": {"certificateArn": ""}}, r"ingress.yaml.*ingress.certificateArn is empty"),
        ({"image": {"tag": "latest"}}, r"/image/tag"),
        ({"server": {"allowedHosts": ["*"]}}, r"/server/allowedHosts/0"),
        ({"database": {"password": "hunter2"}}, r"/database.*password'"),
        ({"database": {"host": ""}}, r"externalsecrets.yaml.*database.host is empty"),
    ],
)  # fmt: skip
def test_wrong_values_are_refused_by_name(values: dict[str, Any], message: str, given: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(yaml.safe_dump(values))
    said = refusal(CHART, given, wrong)
    assert re.search(message, said, re.DOTALL), said


@pytest.mark.parametrize(
    "values",
    [
        {"global": {"imageRegistry": "registry.example"}},  # a chart above it hands this to all of its parts
        {"resources": {"requests": {"cpu": 2, "memory": "1.5Gi"}, "limits": {"cpu": "1.5", "memory": "2000M"}}},
    ],
)
def test_what_kubernetes_and_helm_take_is_taken(values: dict[str, Any], given: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump(values))
    resources = pod_spec(named(mlflow(given, own), "Deployment"))["containers"][0]["resources"]
    assert resources == values.get("resources", resources)


def test_replicas_beyond_five_are_found(given: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("autoscaling: {maxReplicas: 6}")
    assert any("spec.maxReplicas: 2 to 6" in fault for fault in faults(mlflow(given, wrong)))


def test_a_misspelt_field_of_kubernetes_is_found(copy: Path, given: Path) -> None:
    damage(copy / "templates/deployment.yaml", "startupProbe:", "startupProb:")
    checked = kube_validate(dump([obj for _, obj in mlflow(given, chart=copy)]))
    assert checked.returncode == 1
    said = checked.stdout + checked.stderr
    assert re.search("Deployment/mlflow: .*startupProb: unknown field", said), said
