"""Who reaches whom through the NetworkPolicies of the manifests and of MLflow's chart, taken together."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from functools import cache

import pytest

from tests.deploy.manifests import Json, jobs, rendered, the
from tests.deploy.nodes import mlflow_objects

RAY_NODE = {"ray.io/is-ray-node": "yes"}  # KubeRay's own labels
HEAD = RAY_NODE | {"ray.io/node-type": "head"}
WORKER = RAY_NODE | {"ray.io/node-type": "worker"}


@dataclass(frozen=True)
class Pod:
    """As far as policies look at it; or an address outside the cluster."""

    namespace: str
    labels: tuple[tuple[str, str], ...] = ()
    address: str = ""

    def has(self, selector: Json) -> bool:
        """Whether a label selector means it."""
        labels = dict(self.labels)
        for one in selector.get("matchExpressions", []):
            assert one["operator"] in ("In", "NotIn"), "no other is used"
            if (labels.get(one["key"]) in one["values"]) != (one["operator"] == "In"):
                return False
        return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def pod(namespace: str, template: Json | None = None, **labels: str) -> Pod:
    own = template["metadata"]["labels"] if template else {}
    return Pod(namespace, tuple(sorted((own | labels).items())))


@cache
def pods() -> dict[str, Pod]:
    """Those that talk to each other, with the labels of the templates that make them."""
    objects, job, server = rendered("prod"), jobs()["batch-predict"]["spec"], mlflow_objects("standard")
    service = the("RayService", "vision", objects)["spec"]["rayClusterConfig"]
    dev = the("RayCluster", "dev", objects)["spec"]
    cron = the("CronJob", "pipeline-daily", rendered("dev"))["spec"]["jobTemplate"]["spec"]["template"]
    return {
        "job head": pod("rayapp", job["rayClusterSpec"]["headGroupSpec"]["template"], **HEAD),
        "job worker": pod("rayapp", job["rayClusterSpec"]["workerGroupSpecs"][0]["template"], **WORKER),
        "submitter": pod("rayapp", job["submitterPodTemplate"]),
        "serve head": pod("rayapp", service["headGroupSpec"]["template"], **HEAD),
        "serve worker": pod("rayapp", service["workerGroupSpecs"][0]["template"], **WORKER),
        "dev head": pod("rayapp", dev["headGroupSpec"]["template"], **HEAD),
        "redis": pod("rayapp", the("StatefulSet", "redis", objects)["spec"]["template"]),
        "redis cleanup": pod("rayapp", **{"ray.io/node-type": "redis-cleanup"}),
        "schedule": pod("rayapp", cron),
        "mlflow": pod("mlflow", the("Deployment", "mlflow", server)["spec"]["template"]),
        "mlflow schema": pod("mlflow", the("Job", "mlflow-schema-1", server)["spec"]["template"]),
        **{name: pod(name) for name in ("kuberay", "monitoring", "airflow", "default", "kube-system")},
        "load balancer": Pod("", address="10.40.3.7"),
        "database": Pod("", address="10.40.8.5"),
        "AWS": Pod("", address="52.94.1.1"),
        "Kubernetes API": Pod("", address="172.20.0.1"),
        "identity agent": Pod("", address="169.254.170.23"),
        "node metadata": Pod("", address="169.254.169.254"),
    }


def policies() -> list[Json]:
    everything = [*rendered("prod"), *mlflow_objects("standard")]
    return [obj for obj in everything if obj["kind"] == "NetworkPolicy"]


def is_peer(peer: Json, other: Pod, namespace: str) -> bool:
    """Whether a peer of a policy in this namespace means the other."""
    if "ipBlock" in peer:
        block = peer["ipBlock"]
        address = ipaddress.ip_address(other.address or "10.40.20.9")  # pods lie in the VPC too
        cidrs = [ipaddress.ip_network(cidr) for cidr in (block["cidr"], *block.get("except", []))]
        return address in cidrs[0] and not any(address in cidr for cidr in cidrs[1:])
    if other.address:
        return False
    if "namespaceSelector" in peer:
        of_namespace = pod(other.namespace, **{"kubernetes.io/metadata.name": other.namespace})
        if not of_namespace.has(peer["namespaceSelector"]):
            return False
    elif other.namespace != namespace:
        return False
    return other.has(peer.get("podSelector", {}))


def lets(direction: str, one: Pod, other: Pod, port: int, found: list[Json]) -> bool:
    """Whether the policies of one let traffic with the other through, as `from` or `to`."""
    kind = {"from": "Ingress", "to": "Egress"}[direction]
    mine = [
        obj for obj in found if obj["metadata"]["namespace"] == one.namespace and one.has(obj["spec"]["podSelector"])
    ]
    mine = [obj for obj in mine if kind in obj["spec"]["policyTypes"]]
    rules = [rule for obj in mine for rule in obj["spec"].get(kind.lower()) or []]
    return not mine or any(
        (direction not in rule or any(is_peer(peer, other, one.namespace) for peer in rule[direction]))
        and ("ports" not in rule or port in [given["port"] for given in rule["ports"]])
        for rule in rules
    )


def reaches(source: str, target: str, port: int, found: list[Json] | None = None) -> bool:
    one, other = pods()[source], pods()[target]
    found = policies() if found is None else found
    return lets("to", one, other, port, found) and lets("from", other, one, port, found)


NEEDED = [
    ("job worker", "job head", 6379), ("job head", "job worker", 30123), ("serve worker", "serve head", 8265),
    ("submitter", "job head", 8265), ("kuberay", "job head", 8265), ("kuberay", "serve head", 8265),
    ("kuberay", "serve head", 3000), ("serve head", "redis", 6379), ("redis cleanup", "redis", 6379),
    ("job head", "mlflow", 5000), ("job worker", "mlflow", 5000), ("serve worker", "mlflow", 5000),
    ("submitter", "mlflow", 5000), ("serve head", "Kubernetes API", 443), ("schedule", "Kubernetes API", 443),
    ("job worker", "AWS", 443), ("job worker", "identity agent", 80), ("serve worker", "identity agent", 80),
    ("job worker", "kube-system", 53), ("mlflow", "kube-system", 53), ("mlflow", "database", 5432),
    ("mlflow schema", "database", 5432), ("mlflow", "AWS", 443), ("mlflow", "identity agent", 80),
    ("monitoring", "job worker", 8080), ("monitoring", "serve worker", 3000), ("monitoring", "mlflow", 9090),
    ("load balancer", "serve worker", 3000), ("load balancer", "dev head", 8265), ("load balancer", "mlflow", 5000),
]  # fmt: skip
REFUSED = [
    ("default", "job head", 8265), ("default", "job head", 6379), ("airflow", "job head", 8265),
    ("load balancer", "job head", 8265), ("load balancer", "serve head", 8265), ("default", "redis", 6379),
    ("job worker", "redis", 6379), ("redis", "AWS", 443), ("job worker", "node metadata", 80),
    ("mlflow", "node metadata", 80), ("job worker", "database", 5432), ("schedule", "AWS", 80),
    ("default", "mlflow", 9090), ("monitoring", "serve worker", 8265),
]  # fmt: skip


@pytest.mark.parametrize(("source", "target", "port"), NEEDED)
def test_what_has_to_talk_may(source: str, target: str, port: int):
    assert reaches(source, target, port)


@pytest.mark.parametrize(("source", "target", "port"), REFUSED)
def test_nobody_else_may(source: str, target: str, port: int):
    assert not reaches(source, target, port)


@pytest.mark.parametrize(
    ("policy", "broken"),
    [("ray-nodes", ("submitter", "job head", 8265)), ("serve", ("load balancer", "serve worker", 3000)),
     ("outward", ("job worker", "mlflow", 5000)), ("redis", ("serve head", "redis", 6379))],
)  # fmt: skip
def test_a_policy_that_is_missing_is_noticed(policy: str, broken: tuple[str, str, int]):
    assert not reaches(*broken, [obj for obj in policies() if obj["metadata"]["name"] != policy])
