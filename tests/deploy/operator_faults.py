"""A planted fault for each rule of KubeRay's operator, in the least object that it takes."""

from __future__ import annotations

import copy
from typing import Any

Json = dict[str, Any]


def pod_of(name: str = "ray", **spec: Any) -> Json:
    return {"spec": {"containers": [{"name": name, "image": "ray"}], **spec}}


def cluster_spec() -> Json:
    worker = {"groupName": "w", "minReplicas": 0, "maxReplicas": 2, "rayStartParams": {}, "template": pod_of()}
    return {
        "rayVersion": "2.60.0",
        "headGroupSpec": {"rayStartParams": {}, "template": pod_of()},
        "workerGroupSpecs": [worker],
    }


def smallest(kind: str) -> Json:
    """The least object of a kind that the operator takes."""
    job_spec = {"entrypoint": "true", "rayClusterSpec": cluster_spec()}
    specs: dict[str, Json] = {
        "RayCluster": cluster_spec(),
        "RayJob": job_spec,
        "RayService": {"serveConfigV2": "", "rayClusterConfig": cluster_spec()},
        "RayCronJob": {"schedule": "0 3 * * *", "jobTemplate": job_spec},
    }
    return copy.deepcopy({"kind": kind, "metadata": {"name": "a"}, "spec": specs[kind]})


def planted(kind: str, changes: Json) -> Json:
    """The least object with changes: path.of.field -> value; numbers are places in lists."""
    obj = smallest(kind)
    for path, value in changes.items():
        *way, last = path.split(".")
        here: Any = obj
        for step in way:
            here = here[int(step)] if step.isdigit() else here.setdefault(step, {})
        here[last] = value
    return obj


HEAD, WORKER = "spec.headGroupSpec", "spec.workerGroupSpecs.0"
V2 = {"spec.enableInTreeAutoscaling": True, "spec.autoscalerOptions": {"version": "v2"}}
REDIS = {"spec.gcsFaultToleranceOptions": {"redisAddress": "redis:6379"}}
HEAD_ENV = f"{HEAD}.template.spec.containers.0.env"
SELECTED = {"spec.rayClusterSpec": None, "spec.clusterSelector": {"ray.io/cluster": "dev"}}
RULES = {"policy": "DeleteSelf", "condition": {"jobStatus": "FAILED", "ttlSeconds": 1}}
LATER = {"policy": "DeleteCluster", "condition": {"jobStatus": "FAILED", "ttlSeconds": 60}}
INCREMENTAL = {"type": "NewClusterWithIncrementalUpgrade", "clusterUpgradeOptions": {"gatewayClassName": "g"}}
STEPS = {"gatewayClassName": "g", "stepSizePercent": 50, "maxSurgePercent": 20, "intervalSeconds": 1}


def env(name: str, value: str = "1") -> list[Json]:
    return [{"name": name, "value": value}]


FAULTS: list[tuple[str, str, Json]] = [  # kind, what has to be found, the change
    ("RayCluster", "metadata.name: 54 characters, at most 53", {"metadata.name": "a" * 54}),
    ("RayService", "metadata.name: 48 characters, at most 47", {"metadata.name": "a" * 48}),
    ("RayCronJob", "metadata.name: 37 characters, at most 36", {"metadata.name": "a" * 37}),
    ("RayJob", "metadata.generateName: 48 characters", {"metadata": {"generateName": "a" * 42 + "-"}}),
    ("RayCluster", "metadata.name: '1a' is not", {"metadata.name": "1a"}),
    ("RayCluster", "headGroupSpec.template.spec.containers: at least", {f"{HEAD}.template.spec.containers": []}),
    ("RayCluster", "workerGroupSpecs[0].template.spec.containers", {f"{WORKER}.template.spec.containers": []}),
    ("RayCluster", "minReplicas: -1 is negative", {f"{WORKER}.minReplicas": -1}),
    ("RayCluster", "minReplicas: 3 is above maxReplicas 2", {f"{WORKER}.minReplicas": 3}),
    ("RayCluster", "maxReplicas: must be set", {f"{WORKER}.maxReplicas": None}),
    (
        "RayCluster",
        "resources: also in rayStartParams",
        {f"{HEAD}.resources": {"CPU": "1"}, f"{HEAD}.rayStartParams.num-cpus": "0"},
    ),
    ("RayCluster", "rayStartParams.labels: use", {f"{HEAD}.rayStartParams.labels": "a=b"}),
    ("RayCluster", "headGroupSpec.labels: '-a: b'", {f"{HEAD}.labels": {"-a": "b"}}),
    ("RayCluster", "suspend: not with autoscaling", V2 | {f"{WORKER}.suspend": True}),
    ("RayCluster", "headGroupSpec.template.spec.restartPolicy", V2 | {f"{HEAD}.template.spec.restartPolicy": "Always"}),
    ("RayCluster", "workerGroupSpecs[0].template.spec.r", V2 | {f"{WORKER}.template.spec.restartPolicy": "OnFailure"}),
    ("RayCluster", "autoscalerOptions.version: not together", V2 | {HEAD_ENV: env("RAY_enable_autoscaler_v2")}),
    ("RayCluster", "needs enableInTreeAutoscaling", {HEAD_ENV: env("RAY_enable_autoscaler_v2")}),
    ("RayCluster", "idleTimeoutSeconds: needs autoscaler v2", {f"{WORKER}.idleTimeoutSeconds": 1}),
    ("RayCluster", "idleTimeoutSeconds: -1 is negative", V2 | {f"{WORKER}.idleTimeoutSeconds": -1}),
    ("RayCluster", "priority: needs autoscaler v2", V2 | {f"{WORKER}.priority": 1, "spec.rayVersion": "2.55.0"}),
    (
        "RayCluster",
        "KUBERAY_GEN_AUTOSCALER_START_CMD",
        {"spec.autoscalerOptions": {"env": env("KUBERAY_GEN_AUTOSCALER_START_CMD")}},
    ),
    ("RayCluster", "rayVersion: '2.51.0'", {"spec.authOptions": {"mode": "token"}, "spec.rayVersion": "2.51.0"}),
    ("RayCluster", "rayVersion: ''", {"spec.authOptions": {"mode": "token"}, "spec.rayVersion": ""}),
    ("RayCluster", "enableK8sTokenAuth: needs mode token", {"spec.authOptions": {"enableK8sTokenAuth": True}}),
    (
        "RayCluster",
        "enableK8sTokenAuth: needs Ray 2.55.0",
        {"spec.authOptions": {"mode": "token", "enableK8sTokenAuth": True}, "spec.rayVersion": "2.54.0"},
    ),
    (
        "RayService",
        "enableK8sTokenAuth: not in a RayJob or RayService",
        {"spec.rayClusterConfig.authOptions": {"mode": "token", "enableK8sTokenAuth": True}},
    ),
    ("RayCluster", "ft-enabled: not together", REDIS | {"metadata.annotations": {"ray.io/ft-enabled": "true"}}),
    ("RayCluster", "env REDIS_PASSWORD belongs", REDIS | {HEAD_ENV: env("REDIS_PASSWORD")}),
    ("RayCluster", "RAY_REDIS_ADDRESS without", {HEAD_ENV: env("RAY_REDIS_ADDRESS")}),
    ("RayCluster", "redis-password: belongs", REDIS | {f"{HEAD}.rayStartParams.redis-password": "x"}),
    ("RayCluster", "the Redis user belongs", {f"{HEAD}.rayStartParams.redis-username": "x"}),
    ("RayCluster", "rocksdb's feature gate is off", {"spec.gcsFaultToleranceOptions": {"backend": "rocksdb"}}),
    ("RayCluster", "spec.networkPolicy: its feature gate", {"spec.networkPolicy": {"mode": "DenyAll"}}),
    ("RayCluster", "spec.tlsOptions: its feature gate", {"spec.tlsOptions": {"mode": "x"}}),
    ("RayCluster", "spec.historyServerOptions: its", {"spec.historyServerOptions": {"x": 1}}),
    ("RayJob", "exactly one of", {"spec.rayClusterSpec": None}),
    ("RayJob", "exactly one of", {"spec.clusterSelector": {"ray.io/cluster": "dev"}}),
    ("RayJob", "names no cluster", {"spec.rayClusterSpec": None, "spec.clusterSelector": {"x": "y"}}),
    ("RayJob", "spec.backoffLimit: not with clusterSelector", SELECTED | {"spec.backoffLimit": 1}),
    ("RayJob", "spec.suspend: not with clusterSelector", SELECTED | {"spec.suspend": True}),
    ("RayJob", "SidecarMode not with clusterSelector", SELECTED | {"spec.submissionMode": "SidecarMode"}),
    ("RayJob", "spec.suspend: needs shutdownAfterJobFinishes", {"spec.suspend": True}),
    ("RayJob", "ttlSecondsAfterFinished: needs", {"spec.ttlSecondsAfterFinished": 5}),
    ("RayJob", "ttlSecondsAfterFinished: -1 is below 0", {"spec.ttlSecondsAfterFinished": -1}),
    ("RayJob", "activeDeadlineSeconds: 0 is below 1", {"spec.activeDeadlineSeconds": 0}),
    ("RayJob", "preRunningDeadlineSeconds: 0 is below 1", {"spec.preRunningDeadlineSeconds": 0}),
    ("RayJob", "backoffLimit: -1 is below 0", {"spec.backoffLimit": -1}),
    ("RayJob", "not in InteractiveMode", {"spec.submissionMode": "InteractiveMode", "spec.backoffLimit": 1}),
    (
        "RayJob",
        "submitterPodTemplate: not in SidecarMode",
        {"spec.submissionMode": "SidecarMode", "spec.submitterPodTemplate": pod_of()},
    ),
    (
        "RayJob",
        "restartPolicy: 'Always', Never in SidecarMode",
        {
            "spec.submissionMode": "SidecarMode",
            "spec.rayClusterSpec.headGroupSpec.template": pod_of(restartPolicy="Always"),
        },
    ),
    ("RayJob", "runtimeEnvYAML: is no YAML", {"spec.runtimeEnvYAML": "a: [b"}),
    ("RayJob", "upgradeStrategy: not in a cluster", {"spec.rayClusterSpec.upgradeStrategy": {"type": "Recreate"}}),
    (
        "RayJob",
        "deletionRules: not with shutdown",
        {"spec.shutdownAfterJobFinishes": True, "spec.deletionStrategy": {"deletionRules": [RULES]}},
    ),
    ("RayJob", "either onSuccess and onFailure", {"spec.deletionStrategy": {"onSuccess": {"policy": "DeleteSelf"}}}),
    ("RayJob", "the times must grow", {"spec.deletionStrategy": {"deletionRules": [RULES, LATER]}}),
    (
        "RayJob",
        "no DeleteWorkers with autoscaling",
        {
            "spec.rayClusterSpec.enableInTreeAutoscaling": True,
            "spec.deletionStrategy": {"deletionRules": [{"policy": "DeleteWorkers", "condition": {}}]},
        },
    ),
    (
        "RayService",
        "headService.metadata.name: is the operator's",
        {"spec.rayClusterConfig.headGroupSpec.headService": {"metadata": {"name": "x"}}},
    ),
    (
        "RayService",
        "upgradeStrategy: not in a cluster",
        {"spec.rayClusterConfig.upgradeStrategy": {"type": "Recreate"}},
    ),
    ("RayService", "rayClusterDeletionDelaySeconds: is negative", {"spec.rayClusterDeletionDelaySeconds": -1}),
    ("RayService", "'0s' is no positive", {"metadata.annotations": {"ray.io/initializing-timeout": "0s"}}),
    ("RayService", "'soon' is no positive", {"metadata.annotations": {"ray.io/initializing-timeout": "soon"}}),
    ("RayService", "type: 'Rolling' is none of", {"spec.upgradeStrategy": {"type": "Rolling"}}),
    ("RayService", "an incremental upgrade needs autoscaling", {"spec.upgradeStrategy": INCREMENTAL}),
    ("RayService", "gatewayClassName: an incremental", {"spec.upgradeStrategy": {"type": INCREMENTAL["type"]}}),
    (
        "RayService",
        "stepSizePercent <= maxSurgePercent",
        {"spec.upgradeStrategy": INCREMENTAL | {"clusterUpgradeOptions": STEPS}},
    ),
    (
        "RayService",
        "intervalSeconds: must be above 0",
        {"spec.upgradeStrategy": INCREMENTAL | {"clusterUpgradeOptions": STEPS | {"intervalSeconds": 0}}},
    ),
    ("RayCronJob", "spec.schedule: no TZ=", {"spec.schedule": "CRON_TZ=UTC 0 3 * * *"}),
    ("RayCronJob", "'daily' is no cron", {"spec.schedule": "daily"}),
    ("RayCronJob", "spec.timeZone: is empty", {"spec.timeZone": ""}),
    ("RayCronJob", "spec.jobTemplate.backoffLimit: -1", {"spec.jobTemplate.backoffLimit": -1}),
]
