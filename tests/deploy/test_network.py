"""What reaches what: network policies, load balancers, service accounts and namespaces."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.deploy import manifest_rules as rules
from tests.deploy.manifests import ENVIRONMENTS, Json, copied, jobs, planted, pod_templates, rendered, the
from tests.deploy.tools import ROOT

INSIDE = {8404, 9101, 8500, *range(30000, 31001), 6379, 52365, 10001}  # for the nodes of a cluster alone
NAMESPACES = {"rayapp", "mlflow", "airflow", "kuberay", "external-secrets", "monitoring", "kueue-system"}


def ingress_rules(objects: list[Json]) -> list[tuple[str, Json]]:
    policies = [obj for obj in objects if obj["kind"] == "NetworkPolicy"]
    return [(obj["metadata"]["name"], rule) for obj in policies for rule in obj["spec"].get("ingress") or []]


def opened(objects: list[Json]) -> list[str]:
    """Ports of Ray and HAProxy that somebody else than a node of Ray may reach."""
    found = []
    for name, rule in ingress_rules(objects):
        among_nodes = rule.get("from") == [{"podSelector": {"matchLabels": {"ray.io/is-ray-node": "yes"}}}]
        ports = {port["port"] for port in rule.get("ports") or []}
        if not among_nodes and not ports:
            found.append(f"NetworkPolicy/{name}: spec.ingress: opens all ports")
        if not among_nodes and ports & INSIDE and name != "redis":
            found.append(f"NetworkPolicy/{name}: spec.ingress.ports: opens {sorted(ports & INSIDE)}")
    return found


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_nothing_is_allowed_that_is_not_named(environment: str):
    objects = rendered(environment)
    deny = the("NetworkPolicy", "nothing-else", objects)["spec"]

    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert opened(objects) == []


def test_an_opened_port_is_found():
    objects = rendered("prod")
    the("NetworkPolicy", "serve", objects)["spec"]["ingress"][0]["ports"].append({"port": 9101, "protocol": "TCP"})

    assert opened(objects) == ["NetworkPolicy/serve: spec.ingress.ports: opens [9101]"]


def test_the_nodes_own_credentials_are_out_of_reach():
    egress = the("NetworkPolicy", "outward", rendered("prod"))["spec"]["egress"]
    blocks = [(peer["ipBlock"], rule["ports"]) for rule in egress for peer in rule.get("to", []) if "ipBlock" in peer]

    assert ({"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}, [{"port": 443, "protocol": "TCP"}]) in blocks
    assert [block["cidr"] for block, _ in blocks] == ["0.0.0.0/0", "169.254.170.23/32"]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_load_balancers_have_tls_and_the_dashboard_is_internal(environment: str):
    ingresses = {obj["metadata"]["name"]: obj for obj in rendered(environment) if obj["kind"] == "Ingress"}

    assert set(ingresses) == {"dev": {"api"}, "prod": {"api", "dashboard"}}[environment]
    for name, obj in ingresses.items():
        notes = {key.rpartition("/")[2]: value for key, value in obj["metadata"]["annotations"].items()}
        assert notes["scheme"] == {"api": "internet-facing", "dashboard": "internal"}[name]
        assert notes["group.name"] == {"api": "rayapp-public", "dashboard": "rayapp-internal"}[name]
        assert notes["ssl-redirect"] == "443"
        assert notes["certificate-arn"].startswith("arn:aws:acm:")
        assert notes["ssl-policy"].startswith("ELBSecurityPolicy-TLS13")


def test_the_public_sees_the_contract_and_no_metrics():
    (rule,) = the("Ingress", "api", rendered("prod"))["spec"]["rules"]
    paths = {entry["path"] for entry in rule["http"]["paths"]}
    source = (ROOT / "rayapp/serve/asgi.py").read_text(encoding="utf-8")

    assert rule["host"] == "api.example.org"
    assert {entry["pathType"] for entry in rule["http"]["paths"]} == {"Exact"}
    assert all(f'"{path}"' in source for path in paths), "each is one of the application's"
    assert paths >= {"/predict_image", "/predict_batch", "/get_model_info", "/health", "/readyz"}
    assert not paths & {"/metrics", "/shadow", "/-/routes"}


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_service_accounts_exist_and_only_who_calls_the_api_has_a_token(environment: str):
    objects = rendered(environment)
    accounts = {obj["metadata"]["name"] for obj in objects if obj["kind"] == "ServiceAccount"}
    for obj in [*objects, *jobs().values()]:
        for path, template in pod_templates(obj):
            spec = template["spec"]
            assert spec["serviceAccountName"] in accounts, path
            autoscaled = obj["kind"] in ("RayCluster", "RayService") and "headGroupSpec" in path
            assert spec["automountServiceAccountToken"] == (autoscaled or obj["kind"] == "CronJob"), path


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_namespaces_enforce_pod_security_and_every_object_is_in_one(environment: str):
    objects = rendered(environment)
    namespaces = {obj["metadata"]["name"]: obj for obj in objects if obj["kind"] == "Namespace"}

    assert set(namespaces) == NAMESPACES
    enforced = {
        name: obj["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] for name, obj in namespaces.items()
    }
    assert (enforced["rayapp"], enforced["mlflow"]) == ("restricted", "restricted")
    assert [name for name, level in enforced.items() if level == "privileged"] == ["monitoring"]
    assert {obj["metadata"]["namespace"] for obj in objects if "namespace" in obj["metadata"]} == {"rayapp"}


def budgets_of(objects: list[Json]) -> dict[str, Json]:
    return {obj["metadata"]["name"]: obj["spec"] for obj in objects if obj["kind"] == "PodDisruptionBudget"}


def test_drains_keep_a_serving_pod_and_wait_for_jobs():
    objects = rendered("prod")
    budgets = budgets_of(objects)
    roles = {
        template["metadata"]["labels"]["rayapp.io/role"]
        for obj in [*objects, *jobs().values()]
        for _, template in pod_templates(obj)
    }

    assert {name: spec["minAvailable"] for name, spec in budgets.items()} == {"serve": 1, "job-heads": 100}
    assert all(spec["selector"]["matchLabels"]["rayapp.io/role"] in roles for spec in budgets.values())


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_a_node_with_a_serving_pod_can_be_drained(environment: str):
    """Of a maxUnavailable, or of as many pods as there are, none may be evicted: drains hung for ever."""
    objects = rendered(environment)
    budgets = budgets_of(objects)
    (service,) = (obj for obj in objects if obj["kind"] == "RayService")
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]

    assert not any("maxUnavailable" in spec for spec in budgets.values())  # a RayCluster has no scale to reckon it from
    assert budgets.get("serve", {"minAvailable": 0})["minAvailable"] < group["minReplicas"]


def test_the_limit_range_gives_no_container_a_gpu():
    """A maximum without a default is the default: each container would ask for a GPU."""
    (limits,) = the("LimitRange", "rayapp", rendered("prod"))["spec"]["limits"]

    assert set(limits["max"]) <= set(limits["default"])


def test_volumes_are_encrypted():
    storage = the("StorageClass", "gp3", rendered("prod"))

    assert storage["parameters"] == {"type": "gp3", "encrypted": "true"}
    claims = [
        claim["spec"]["storageClassName"]
        for obj in rendered("prod")
        for claim in obj.get("spec", {}).get("volumeClaimTemplates", [])
    ]
    assert claims == ["gp3"]


def test_no_literal_secret_stands_here(tmp_path: Path):
    assert rules.faults(rules.secrets) == []

    settings = "cluster/manifests/base/settings.yaml"
    root = planted(copied(tmp_path), settings, "\ndata:\n", "\ndata:\n  MLFLOW_TRACKING_PASSWORD: letmein\n")
    redis = "cluster/manifests/base/redis.yaml"
    planted(root, redis, "valueFrom:\n                secretKeyRef: {name: ray-redis, key: password}", "value: letmein")
    assert rules.faults(rules.secrets, root) == [
        f"{redis}: StatefulSet/redis: spec.template.spec.containers[0].env.REDIS_PASSWORD: is a literal",
        f"{settings}: ConfigMap/rayapp-settings: data.MLFLOW_TRACKING_PASSWORD: looks like a secret",
    ]
