"""How many CPU nodes the pods of an environment need, by what they ask for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml

from tests.deploy.manifests import Json, rendered, the
from tests.deploy.tools import ROOT, render_chart

CHART, HELM_VALUES = ROOT / "cluster/charts/mlflow", ROOT / "cluster/helm-values"
PROFILES = {"lean": "dev", "standard": "prod"}  # the overlay of cluster/manifests that is made for it
STANDARD_ONLY = {"airflow", "kube-prometheus-stack"}


class Size(NamedTuple):
    """Cores and GiB."""

    cores: float
    gib: float


# What EKS leaves of a node, less 0.2 cores and half a GiB for the daemons that run on every one.
ROOM = {"t3a.large": Size(1.7, 6.5), "m6a.xlarge": Size(3.7, 13.5), "g4dn.xlarge": Size(3.7, 13.5)}
# EKS' add-ons as they come (two replicas each), from their public manifests: not asked of a cluster.
ADDONS = 2 * [Size(0.1, 0.07), Size(0.1, 0.2), Size(0.06, 0.24)]  # coredns, metrics-server, the EBS controller
GIVEN = {  # at installation
    "image": {"repository": "registry/rayapp-mlflow"}, "artifacts": {"bucket": "bucket"}, "auth": {"secret": "s"},
    "database": {"host": "d", "secret": "arn:aws:secretsmanager:x"},
    "networkPolicy": {"vpcCidr": "10.40.0.0/16"},
    "ingress": {"host": "mlflow.example.org", "certificateArn": "arn:aws:acm:x"},
}  # fmt: skip


def quantity(text: str | int) -> float:
    """A Kubernetes quantity as a number."""
    number, unit = re.fullmatch(r"([\d.]+)(m|Mi|Gi)?", str(text)).groups()  # type: ignore[union-attr]
    return float(number) * {None: 1, "m": 0.001, "Mi": 2**20, "Gi": 2**30}[unit]


def asked(*resources: Json) -> Size:
    """The sum of what containers ask for."""
    requests = [one["requests"] for one in resources]
    cores, memory = (sum(quantity(each[name]) for each in requests) for name in ("cpu", "memory"))
    return Size(round(cores, 3), memory / 2**30)


def pod(template: Json, *added: Json) -> Size:
    """Of a pod template, with the containers that an operator adds."""
    return asked(*(one["resources"] for one in template["spec"]["containers"]), *added)


def autoscalers(spec: Json) -> list[Json]:
    """What the autoscaler's container in the head of a Ray cluster asks for."""
    return [spec["autoscalerOptions"]["resources"]] if "autoscalerOptions" in spec else []


def ray_cluster(spec: Json) -> list[Size]:
    """Head and CPU workers at the start."""
    head = pod(spec["headGroupSpec"]["template"], *autoscalers(spec))
    groups = [group for group in spec.get("workerGroupSpecs", []) if "num-gpus" not in group["rayStartParams"]]
    return [head, *(pod(group["template"]) for group in groups for _ in range(group["replicas"]))]


def charts(profile: str) -> list[Size]:
    """The pods of upstream charts: each container that our values size, as a pod of its own."""
    found = []
    for file in sorted(HELM_VALUES.glob("*.yaml")):
        name = file.stem.removesuffix("-standard")
        if name == "nvidia-device-plugin" or (profile == "lean" and (file.stem != name or name in STANDARD_ONLY)):
            continue
        found += [asked(one) for one in sized(yaml.safe_load(file.read_text(encoding="utf-8")))]
    return found


def sized(value: Any) -> Iterator[Json]:
    """All `resources` with requests at any depth; not those of what runs on demand or on every node."""
    if isinstance(value, dict):
        if "requests" in value and "cpu" in value["requests"]:
            yield value
        for key, inner in value.items():
            if key not in ("workers", "migrateDatabaseJob", "prometheus-node-exporter"):
                yield from sized(inner)


def mlflow_objects(profile: str) -> list[Json]:
    """MLflow's chart, rendered as a profile has it."""
    values = CHART / ("values-lean.yaml" if profile == "lean" else "values-prod.yaml")
    return [obj for _, obj in render_chart(CHART, values, release="mlflow", namespace="mlflow", sets=GIVEN)]


def mlflow(profile: str) -> list[Size]:
    """MLflow's servers, as many as there always are."""
    objects = mlflow_objects(profile)
    server = the("Deployment", "mlflow", objects)["spec"]
    least = [obj["spec"]["minReplicas"] for obj in objects if obj["kind"] == "HorizontalPodAutoscaler"]
    return (least or [server["replicas"]])[0] * [pod(server["template"])]


def always(profile: str) -> list[Size]:
    """What always runs. In lean Ray sleeps."""
    objects = rendered(PROFILES[profile])
    redis = pod(the("StatefulSet", "redis", objects)["spec"]["template"])
    return [*ADDONS, *charts(profile), *mlflow(profile), redis, *([] if profile == "lean" else ray(profile))]


def ray(profile: str) -> list[Size]:
    """The RayService and the RayCluster, awake."""
    objects = rendered(PROFILES[profile])
    service = the("RayService", "vision", objects)["spec"]["rayClusterConfig"]
    return [*ray_cluster(service), *ray_cluster(the("RayCluster", "dev", objects)["spec"])]


def nodes(pods: list[Size], room: Size) -> int:
    """How many nodes hold the pods: the largest first, each where it fits."""
    free: list[Size] = []
    for one in sorted(pods, key=lambda size: -max(size.cores / room.cores, size.gib / room.gib)):
        index = next((n for n, left in enumerate(free) if left.cores >= one.cores and left.gib >= one.gib), None)
        if index is None:
            free.append(room)
            index = len(free) - 1
        free[index] = Size(free[index].cores - one.cores, free[index].gib - one.gib)
    return len(free)
