"""What Airflow is installed with: versions, values of its chart (which itself is not here), rights in the cluster."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.deploy.tools import ROOT, VERSIONS, kube_validate, run, tool

VALUES = ROOT / "cluster/helm-values/airflow.yaml"
CONSTRAINTS = ROOT / "cluster/airflow/constraints.txt"
RBAC = ROOT / "cluster/manifests/base/airflow-rbac.yaml"
SECRET = re.compile(r"(pass|password|secret|token|key)$", re.IGNORECASE)  # of a field
WITH_PASSWORD = re.compile(r"://[^/@]*:[^/@]+@")  # in an address
WITH_RESOURCES = ["apiServer", "scheduler", "dagProcessor", "triggerer", "workers.kubernetes", "migrateDatabaseJob"]
WITH_RESOURCES += [
    "dags.gitSync",
    *(f"{name}.logGroomerSidecar" for name in ("scheduler", "dagProcessor", "triggerer")),
]
# The least that Kubernetes' restricted level asks of a container.
RESTRICTED = {"allowPrivilegeEscalation": False, "runAsNonRoot": True, "capabilities": {"drop": ["ALL"]}}
EXPECTED = {
    "executor": "KubernetesExecutor",
    "postgresql.enabled": False,
    "redis.enabled": False,
    "createUserJob.enabled": False,
    "createUserJob.defaultUser.enabled": False,
    "migrateDatabaseJob.useHelmHooks": False,  # with --atomic they wait for each other
    "data.metadataSecretName": "airflow-database",
    "fernetKeySecretName": "airflow-keys",
    "apiSecretKeySecretName": "airflow-keys",
    "jwtSecretName": "airflow-keys",
    "config.logging.remote_logging": "True",
    "config.logging.remote_base_log_folder": "",  # an install without it fails, instead of writing to another bucket
    "config.core.load_examples": "False",
    "dags.gitSync.enabled": True,
    "dags.gitSync.repo": "",
    "dags.gitSync.ref": "",
    "securityContexts.pod.runAsNonRoot": True,
    "securityContexts.pod.seccompProfile.type": "RuntimeDefault",
    "triggerer.enabled": True,
    "triggerer.persistence.enabled": False,
    "triggerer.serviceAccount": {"create": True, "name": "airflow"},
    "apiServer.serviceAccount": {"create": False, "name": "airflow"},
    "workers.kubernetes.serviceAccount": {"create": False, "name": "airflow"},
}


def field(values: dict[str, Any], path: str) -> Any:
    """The value at a path such as dags.gitSync.ref; None where there is none."""
    here: Any = values
    for key in path.split("."):
        here = here.get(key) if isinstance(here, dict) else None
    return here


def leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield path, value
    else:
        for key, inner in items:
            yield from leaves(inner, f"{path}.{key}".lstrip("."))


def problems(values: dict[str, Any]) -> list[str]:
    """A sentence for each field that is not as it has to be."""
    given = {path: field(values, path) for path in EXPECTED}
    found = [f"{path} is {given[path]!r}, not {want!r}" for path, want in EXPECTED.items() if given[path] != want]
    for path, value in leaves(values):
        if (value and SECRET.search(path.rpartition(".")[2])) or WITH_PASSWORD.search(str(value)):
            found.append(f"{path} holds a secret")
    for part in WITH_RESOURCES:
        needed = [f"{part}.resources.{name}" for name in ("requests.cpu", "requests.memory", "limits.memory")]
        found += [f"{path} is missing" for path in needed if not field(values, path)]
    for path in ("securityContexts.containers", "dags.gitSync.securityContexts.container"):
        has = field(values, path) or {}
        found += [f"{path}.{key} is {has.get(key)!r}" for key, want in RESTRICTED.items() if has.get(key) != want]
    return [f"{VALUES.name}: {line}" for line in found]


@pytest.fixture
def values() -> dict[str, Any]:
    return yaml.safe_load(VALUES.read_text())  # type: ignore[no-any-return]


def pinned() -> dict[str, str]:
    lines = [line for line in CONSTRAINTS.read_text().splitlines() if not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def test_the_values_are_as_they_have_to_be(values):
    assert problems(values) == []


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("createUserJob.enabled", True, "createUserJob.enabled is True, not False"),
        ("data.metadataConnection", {"pass": "postgres"}, "data.metadataConnection.pass holds a secret"),
        ("fernetKey", "bm90IGEgc2VjcmV0", "fernetKey holds a secret"),
        ("env", [{"name": "A", "value": "aws://KEY:secret@"}], "env.0.value holds a secret"),
        ("executor", "CeleryExecutor", "executor is 'CeleryExecutor', not 'KubernetesExecutor'"),
        ("scheduler.resources", {}, "scheduler.resources.limits.memory is missing"),
        ("securityContexts.containers.allowPrivilegeEscalation", True, "containers.allowPrivilegeEscalation is True"),
        ("dags.gitSync.ref", "main", "dags.gitSync.ref is 'main', not ''"),
        ("workers.kubernetes.serviceAccount.name", "default", "workers.kubernetes.serviceAccount is"),
    ],
)
def test_a_planted_fault_is_named(values, path, value, said):
    *folders, last = path.split(".")
    here = values
    for key in folders:
        here = here[key]
    here[last] = value

    found = problems(values)

    assert found
    assert any(line.startswith("airflow.yaml: ") and said in line for line in found), found


def test_the_triggerer_is_given_the_dags_the_cluster_and_the_bucket(values):
    environment = {variable["name"]: variable["value"] for variable in values["env"]}
    kubernetes = json.loads(environment["AIRFLOW_CONN_KUBERNETES_DEFAULT"])
    folder = values["dags"]["gitSync"]["subPath"]

    assert (ROOT / folder / "rayjobs/trigger.py").is_file()
    assert environment["PYTHONPATH"] == f"/opt/airflow/dags/repo/{folder}"
    assert kubernetes == {"conn_type": "kubernetes", "extra": {"in_cluster": True}}
    assert environment["AIRFLOW_CONN_AWS_DEFAULT"] == "aws://"
    (alerts,) = yaml.safe_load(values["extraEnv"])
    assert alerts["valueFrom"]["secretKeyRef"]["optional"] is True


def test_the_triggerer_finds_the_trigger_by_its_name_alone(values, tmp_path):
    environment = {variable["name"]: variable["value"] for variable in values["env"]}
    folder = environment["PYTHONPATH"].removeprefix("/opt/airflow/dags/repo/")
    find = "from airflow._shared.module_loading import import_string as i; i('rayjobs.trigger.RayJobTrigger')"
    env = {"AIRFLOW_HOME": str(tmp_path), "PYTHONPATH": str(ROOT / folder)}

    run([tool("airflow-python"), "-c", find], cwd=tmp_path, env=env)


def test_the_runbook_makes_the_secret_that_alerts_are_read_from(values, tmp_path):
    page = (ROOT / "docs/runbook.md").read_text()
    (line,) = re.findall(r"^printf .* create secret .*$", page, re.MULTILINE)
    (tmp_path / "kubectl").write_text(f'#!/bin/sh\necho "$*" > {tmp_path}/words\ncat > {tmp_path}/connection\n')
    (tmp_path / "kubectl").chmod(0o755)
    address = "https://hooks.example.org/services/T0/B0?x=1&y=%20"
    run(["bash", "-c", line], env={"PATH": f"{tmp_path}:/usr/bin:/bin", "WEBHOOK": address})
    (alerts,) = yaml.safe_load(values["extraEnv"])
    wanted = alerts["valueFrom"]["secretKeyRef"]

    given = f"-n airflow create secret generic {wanted['name']} --from-file={wanted['key']}=/dev/stdin"
    assert (tmp_path / "words").read_text().strip() == given
    assert json.loads((tmp_path / "connection").read_text()) == {"conn_type": "generic", "password": address}


def test_one_version_of_airflow(values):
    version = VERSIONS["AIRFLOW_VERSION"]

    assert values["airflowVersion"] == values["defaultAirflowTag"] == pinned()["apache-airflow"] == version


def canonical(pin: str) -> str:
    """Packages say their own name in one way, and those who install them in another."""
    return re.sub(r"[._-]+(?=.*==)", "-", pin).lower()


def test_the_environment_is_what_the_constraints_say():
    there = "from importlib.metadata import distributions as d; print(*(f'{one.name}=={one.version}' for one in d()))"
    installed = run([tool("airflow-python"), "-I", "-c", there]).stdout.split()

    wrong = sorted(set(map(canonical, installed)) ^ {canonical(f"{name}=={v}") for name, v in pinned().items()})

    assert wrong == [], f"{CONSTRAINTS.name} and .venv-airflow differ: {wrong}"


def test_the_rights_are_valid_and_bound_to_the_account_of_tasks_and_triggerer(values):
    role, binding = yaml.safe_load_all(RBAC.read_text())

    assert {rule["resources"][0]: rule.get("resourceNames") for rule in role["rules"]} == {
        "configmaps": ["rayjob-templates"],  # no other one
        "rayjobs": None,
    }
    assert not any("*" in rule[key] for rule in role["rules"] for key in ("apiGroups", "resources", "verbs"))
    assert binding["roleRef"] == {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "airflow-rayjobs"}
    account = values["triggerer"]["serviceAccount"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": "airflow"}]


def test_kubernetes_takes_the_rights():
    done = kube_validate(RBAC.read_text())

    assert done.returncode == 0, done.stdout


def test_a_misspelt_field_of_the_rights_is_named():
    done = kube_validate(RBAC.read_text().replace("resourceNames", "resourceName"))

    assert done.returncode == 1
    assert "Role/airflow-rayjobs: rules[0].resourceName: unknown field" in done.stdout
