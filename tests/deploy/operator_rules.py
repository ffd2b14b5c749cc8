"""What KubeRay 1.7.0 refuses although the API server took it: such an object sits there with an event and never runs.

violations(obj) knows the operator's own validation of RayCluster, RayJob, RayService and RayCronJob, with the feature
gates at their defaults. Not covered: rules about status, and what the schemas of the CRDs say already.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from tests.deploy.operator_cluster_rules import cluster_violations

Json = dict[str, Any]
NAME_LENGTH = {"RayCluster": 53, "RayJob": 47, "RayService": 47, "RayCronJob": 36}
GENERATED = 5  # characters that the API server adds to a generateName
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
INITIALIZING = "ray.io/initializing-timeout"
DURATION = re.compile(r"([0-9]+(\.[0-9]+)?(h|m|s|ms|us|ns))+")
POSITIVE = re.compile("[1-9]")
DELETION_ORDER = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")


def violations(obj: Json) -> list[str]:
    """A line for each rule that the object breaks, each beginning with the path of the field."""
    spec, notes = obj["spec"], obj["metadata"].get("annotations") or {}
    found = list(_name(obj))
    match obj["kind"]:
        case "RayCluster":
            found += cluster_violations(spec, "spec", notes)
        case "RayJob":
            found += _job(spec, "spec", notes)
        case "RayService":
            found += _service(spec, notes)
        case "RayCronJob":
            found += _cron_job(spec, notes)
        case kind:
            raise ValueError(f"{kind} is not KubeRay's")
    return found


def _name(obj: Json) -> Iterator[str]:
    limit, metadata = NAME_LENGTH[obj["kind"]], obj["metadata"]
    field = "name" if metadata.get("name") else "generateName"
    name = metadata.get("name") or metadata.get("generateName", "") + "x" * GENERATED
    if len(name) > limit:
        yield f"metadata.{field}: {len(name)} characters, at most {limit} for a {obj['kind']}"
    if not DNS_1035.fullmatch(name):
        yield f"metadata.{field}: '{name}' is not a DNS-1035 label"


# --- jobs -------------------------------------------------------------------------------------------------------------


def _job(spec: Json, at: str, notes: Json) -> Iterator[str]:
    cluster, selector = spec.get("rayClusterSpec"), spec.get("clusterSelector")
    shutdown, mode = spec.get("shutdownAfterJobFinishes"), spec.get("submissionMode", "K8sJobMode")
    if bool(cluster) == bool(selector):
        yield f"{at}: exactly one of rayClusterSpec and clusterSelector"
    if spec.get("suspend") and not shutdown:
        yield f"{at}.suspend: needs shutdownAfterJobFinishes"
    yield from _numbers(spec, at)
    if spec.get("ttlSecondsAfterFinished", 0) > 0 and not shutdown:
        yield f"{at}.ttlSecondsAfterFinished: needs shutdownAfterJobFinishes"
    if mode == "InteractiveMode" and spec.get("backoffLimit"):
        yield f"{at}.backoffLimit: not in InteractiveMode"
    if selector:
        yield from _selected(spec, at, mode)
    if mode == "SidecarMode":
        yield from _sidecar(spec, at)
    yield from _deletion(spec, at)
    try:
        yaml.safe_load(spec.get("runtimeEnvYAML") or "")
    except yaml.YAMLError:
        yield f"{at}.runtimeEnvYAML: is no YAML"
    if cluster:
        yield from cluster_violations(cluster, f"{at}.rayClusterSpec", notes)
        if cluster.get("upgradeStrategy"):
            yield f"{at}.rayClusterSpec.upgradeStrategy: not in a cluster that a RayJob makes"


def _numbers(spec: Json, at: str) -> Iterator[str]:
    least = {
        "ttlSecondsAfterFinished": 0,
        "backoffLimit": 0,
        "activeDeadlineSeconds": 1,
        "preRunningDeadlineSeconds": 1,
    }
    for field, low in least.items():
        if spec.get(field) is not None and spec[field] < low:
            yield f"{at}.{field}: {spec[field]} is below {low}"


def _selected(spec: Json, at: str, mode: str) -> Iterator[str]:
    if not spec["clusterSelector"].get("ray.io/cluster"):
        yield f"{at}.clusterSelector: names no cluster (ray.io/cluster)"
    for field in ("suspend", "backoffLimit"):
        if spec.get(field):
            yield f"{at}.{field}: not with clusterSelector"
    if mode == "SidecarMode":
        yield f"{at}.submissionMode: SidecarMode not with clusterSelector"


def _sidecar(spec: Json, at: str) -> Iterator[str]:
    for field in ("submitterPodTemplate", "submitterConfig"):
        if spec.get(field):
            yield f"{at}.{field}: not in SidecarMode"
    head = (spec.get("rayClusterSpec") or {}).get("headGroupSpec", {})
    policy = head.get("template", {}).get("spec", {}).get("restartPolicy")
    if policy not in (None, "", "Never"):
        yield f"{at}.rayClusterSpec.headGroupSpec.template.spec.restartPolicy: '{policy}', Never in SidecarMode"


def _deletion(spec: Json, at: str) -> Iterator[str]:
    strategy = spec.get("deletionStrategy")
    if strategy is None:
        return
    at, rules = f"{at}.deletionStrategy", strategy.get("deletionRules")
    legacy = [field for field in ("onSuccess", "onFailure") if strategy.get(field)]
    if rules and spec.get("shutdownAfterJobFinishes"):
        yield f"{at}.deletionRules: not with shutdownAfterJobFinishes"
    if (rules and legacy) or (not rules and len(legacy) != 2):
        yield f"{at}: either onSuccess and onFailure, or deletionRules"
    autoscaled = (spec.get("rayClusterSpec") or {}).get("enableInTreeAutoscaling")
    policies = [rule["policy"] for rule in rules or []] + [strategy[field]["policy"] for field in legacy]
    if autoscaled and "DeleteWorkers" in policies:
        yield f"{at}: no DeleteWorkers with autoscaling"
    yield from _deletion_times(rules or [], at)


def _deletion_times(rules: list[Json], at: str) -> Iterator[str]:
    by_condition: dict[str, dict[str, int]] = {}
    for rule in rules:
        condition = rule["condition"]
        key = str(condition.get("jobStatus") or condition.get("jobDeploymentStatus"))
        by_condition.setdefault(key, {})[rule["policy"]] = condition.get("ttlSeconds", 0)
    for key, times in by_condition.items():
        waits = [times[policy] for policy in DELETION_ORDER if policy in times]
        if waits != sorted(waits):
            yield f"{at}.deletionRules: for {key} the times must grow from workers over cluster to the job itself"


# --- services and schedules -------------------------------------------------------------------------------------------


def _service(spec: Json, notes: Json) -> Iterator[str]:
    cluster, at = spec["rayClusterConfig"], "spec.rayClusterConfig"
    yield from cluster_violations(cluster, at, notes)
    if cluster["headGroupSpec"].get("headService", {}).get("metadata", {}).get("name"):
        yield f"{at}.headGroupSpec.headService.metadata.name: is the operator's"
    if cluster.get("upgradeStrategy"):
        yield f"{at}.upgradeStrategy: not in a cluster that a RayService makes"
    if spec.get("rayClusterDeletionDelaySeconds", 0) < 0:
        yield "spec.rayClusterDeletionDelaySeconds: is negative"
    timeout = notes.get(INITIALIZING)
    if timeout and not (POSITIVE.search(timeout) and (DURATION.fullmatch(timeout) or timeout.isdigit())):
        yield f"metadata.annotations.{INITIALIZING}: '{timeout}' is no positive duration"
    yield from _upgrade(spec)


def _upgrade(spec: Json) -> Iterator[str]:
    strategy, at = spec.get("upgradeStrategy") or {}, "spec.upgradeStrategy"
    kind, options = strategy.get("type"), strategy.get("clusterUpgradeOptions")
    if kind not in (None, "NewCluster", "NewClusterWithIncrementalUpgrade", "None"):
        yield f"{at}.type: '{kind}' is none of NewCluster, NewClusterWithIncrementalUpgrade, None"
    if kind != "NewClusterWithIncrementalUpgrade":
        return
    if not spec["rayClusterConfig"].get("enableInTreeAutoscaling"):
        yield f"{at}.type: an incremental upgrade needs autoscaling"
    if not options or not options.get("gatewayClassName"):
        yield f"{at}.clusterUpgradeOptions.gatewayClassName: an incremental upgrade needs it"
        return
    if not 0 <= options.get("stepSizePercent", -1) <= options.get("maxSurgePercent", 100) <= 100:
        yield f"{at}.clusterUpgradeOptions: 0 <= stepSizePercent <= maxSurgePercent <= 100"
    if options.get("intervalSeconds", 0) <= 0:
        yield f"{at}.clusterUpgradeOptions.intervalSeconds: must be above 0"


def _cron_job(spec: Json, notes: Json) -> Iterator[str]:
    if re.search(r"\b(CRON_)?TZ=", spec["schedule"]):
        yield "spec.schedule: no TZ=, use timeZone"
    elif len(spec["schedule"].split()) != 5 and not spec["schedule"].startswith("@"):
        yield f"spec.schedule: '{spec['schedule']}' is no cron schedule"
    if spec.get("timeZone") == "":
        yield "spec.timeZone: is empty"
    yield from _job(spec["jobTemplate"], "spec.jobTemplate", notes)
