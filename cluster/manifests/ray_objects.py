"""What Ray runs in the cluster: a RayCluster for development, five RayJobs, a RayService, an example of a RayCronJob.

The sizes are for the nodes of terraform/: CPU nodes of 2 cores and 8 GB at least, GPU nodes of 4 cores and 16 GB.
"""

from __future__ import annotations

from ray_pods import (
    CONTAINER_SECURITY,
    CPU_NODE,
    CUDA_IMAGE,
    DASHBOARD_PORT,
    GPU_NODE,
    GPU_TOLERATION,
    IMAGE,
    RAY_VERSION,
    SERVE_PORT,
    Json,
    container,
    pod,
    ports,
    probe,
    with_shared_memory,
)

NAMESPACE = "rayapp"
LABELS = {"app.kubernetes.io/part-of": "rayapp"}
AGENT_PORT = 52365  # of Ray's agent on each node
RAYLET_ALIVE = probe("/api/local_raylet_healthz", AGENT_PORT, every_s=10, failures=12, delay_s=30)
REDIS = {
    "redisAddress": "redis.rayapp.svc.cluster.local:6379",
    "redisPassword": {"valueFrom": {"secretKeyRef": {"name": "ray-redis", "key": "password"}}},
}
SERVE_SWITCH_S = 120  # the old cluster of an upgrade goes this long after the switch; a request takes 75 s at most


def head(*, role: str, account: str, memory: str, autoscaled: bool, serves: bool = False) -> Json:
    """A head that runs no tasks (num-cpus 0): it must outlive whatever fills the memory of a worker."""
    ray = container("ray-head", image=IMAGE, cpu=("500m", "2"), memory=memory)
    named = {"gcs_server": 6379, "dashboard": DASHBOARD_PORT, "metrics": 8080}
    ray["ports"] = ports(**named, **({"serve": SERVE_PORT} if serves else {}))
    ray["livenessProbe"] = RAYLET_ALIVE
    ray["readinessProbe"] = probe("/api/gcs_healthz", DASHBOARD_PORT, every_s=5, failures=10)
    template = pod(ray, role=role, service_account=account, node=CPU_NODE, token=autoscaled)
    return {
        "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},  # noqa: S104 - behind NetworkPolicies
        "template": with_shared_memory(template, "1Gi"),
    }


def gpu_workers(group: str, *, replicas: tuple[int, int, int]) -> Json:
    """Workers with a GPU each, on spot nodes: only what goes on from a checkpoint may be there."""
    ray = container("ray-worker", image=CUDA_IMAGE, cpu=("3", "3"), memory="12Gi", gpus=1)
    template = pod(ray, role="worker", service_account="ray-jobs", node=GPU_NODE, tolerations=(GPU_TOLERATION,))
    return _group(group, ray, template, replicas, start={"num-cpus": "3", "num-gpus": "1"}, shared="4Gi")


def cpu_workers(group: str, *, replicas: tuple[int, int, int]) -> Json:
    """Workers without a GPU, on nodes that stay."""
    ray = container("ray-worker", image=IMAGE, cpu=("1500m", "2"), memory="5Gi")
    template = pod(ray, role="worker", service_account="ray-jobs", node=CPU_NODE)
    return _group(group, ray, template, replicas, start={"num-cpus": "2"}, shared="1500Mi")


def serve_workers(env: list[Json], *, replicas: tuple[int, int, int]) -> Json:
    """Workers with two replicas of the service each, spread over nodes and zones."""
    ray = container("ray-worker", image=IMAGE, cpu=("1500m", "2"), memory="5Gi")
    ray["env"] = ray["env"] + env
    # The load balancer asks the same: a pod without a replica that has a model gets no request.
    ray["readinessProbe"] = probe("/readyz", SERVE_PORT, every_s=5, failures=2)
    ray["volumeMounts"].append({"name": "keys", "mountPath": "/etc/rayapp/keys", "readOnly": True})
    # The load balancer hears within this time that the pod goes; Serve then ends what has begun (70 s).
    ray["lifecycle"] = {"preStop": {"exec": {"command": ["sleep", "15"]}}}
    template = pod(ray, role="serve", service_account="ray-serve", node=CPU_NODE, moved=True)
    template["spec"] |= {
        "terminationGracePeriodSeconds": 120,
        "topologySpreadConstraints": [_spread("kubernetes.io/hostname"), _spread("topology.kubernetes.io/zone")],
    }
    template["spec"]["volumes"].append({"name": "keys", "secret": {"secretName": "serving-keys", "defaultMode": 0o440}})
    group = _group("serve", ray, template, replicas, start={"num-cpus": "2"}, shared="1Gi")
    ray["ports"] = ports(metrics=8080, serve=SERVE_PORT)
    return group | {"idleTimeoutSeconds": 600}


def _spread(key: str) -> Json:
    # Of one cluster: during an upgrade the new one is spread on its own.
    return {
        "maxSkew": 1,
        "topologyKey": key,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {"rayapp.io/role": "serve"}},
        "matchLabelKeys": ["ray.io/cluster"],
    }


def _group(name: str, ray: Json, template: Json, replicas: tuple[int, int, int], *, start: Json, shared: str) -> Json:
    """A worker group. replicas: at the start, at least, at most."""
    ray.setdefault("ports", ports(metrics=8080))
    ray["livenessProbe"] = RAYLET_ALIVE
    ray.setdefault("readinessProbe", probe("/api/local_raylet_healthz", AGENT_PORT, every_s=5, failures=10))
    at_start, least, most = replicas
    return {
        "groupName": name,
        "replicas": at_start,
        "minReplicas": least,
        "maxReplicas": most,
        "rayStartParams": start,
        "template": with_shared_memory(template, shared),
    }


def cluster_spec(head_group: Json, *worker_groups: Json, autoscaled: bool = False, survives_head: bool = False) -> Json:
    """The spec of a Ray cluster. survives_head: its state is in Redis, so workers outlive the loss of the head."""
    spec: Json = {"rayVersion": RAY_VERSION, "authOptions": {"mode": "token"}}
    if autoscaled:
        spec["enableInTreeAutoscaling"] = True
        spec["autoscalerOptions"] = {
            "version": "v2",
            "idleTimeoutSeconds": 300,
            "securityContext": CONTAINER_SECURITY,
            "resources": {
                "requests": {"cpu": "200m", "memory": "512Mi"},
                "limits": {"cpu": "500m", "memory": "512Mi"},
            },
            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108 - a path in a pod
        }
    if survives_head:
        spec["gcsFaultToleranceOptions"] = REDIS
    spec["headGroupSpec"] = head_group
    if worker_groups:
        spec["workerGroupSpecs"] = list(worker_groups)
    return spec


def _object(kind: str, metadata: Json, spec: Json) -> Json:
    return {
        "apiVersion": "ray.io/v1",
        "kind": kind,
        "metadata": {**metadata, "namespace": NAMESPACE, "labels": LABELS | metadata.get("labels", {})},
        "spec": spec,
    }


def dev_cluster() -> Json:
    """The cluster for development: CPU workers for what is small, GPU workers from none to all five."""
    spec = cluster_spec(
        head(role="dev-head", account="ray-jobs", memory="4Gi", autoscaled=True),
        cpu_workers("cpu", replicas=(0, 0, 2)) | {"idleTimeoutSeconds": 300},
        gpu_workers("gpu", replicas=(0, 0, 5)) | {"idleTimeoutSeconds": 300},
        autoscaled=True,
        survives_head=True,
    )
    return _object("RayCluster", {"name": "dev"}, spec)


def service(serve_config: str, env: list[Json]) -> Json:
    """The RayService of the predictions. A change of the cluster makes a second one; traffic moves when it is ready."""
    head_group = head(role="serve-head", account="ray-serve", memory="3Gi", autoscaled=True, serves=True)
    container_of_head = head_group["template"]["spec"]["containers"][0]
    container_of_head["env"] = container_of_head["env"] + env
    cluster = cluster_spec(head_group, serve_workers(env, replicas=(2, 2, 8)), autoscaled=True, survives_head=True)
    spec: Json = {
        "upgradeStrategy": {"type": "NewCluster"},
        "rayClusterDeletionDelaySeconds": SERVE_SWITCH_S,
        "excludeHeadPodFromServeSvc": True,  # no replica is there, so it would only pass requests on
        "serveConfigV2": serve_config,
        "rayClusterConfig": cluster,
    }
    return _object("RayService", {"name": "vision"}, spec)


def submitter() -> Json:
    """The pod that sends the job to its cluster and prints the job's log. The shell in it expands the entrypoint."""
    sends = container("ray-job-submitter", image=IMAGE, cpu=("100m", "500m"), memory="512Mi")
    # The same for all tries of a RayJob, so that a second one goes on with the run of the first (--resume auto).
    name = {"fieldRef": {"fieldPath": "metadata.labels['batch.kubernetes.io/job-name']"}}
    sends["env"] = [*sends["env"], {"name": "RAYAPP_RUN", "valueFrom": name}]
    template = pod(sends, role="submitter", service_account="ray-jobs", node=CPU_NODE)
    template["spec"]["restartPolicy"] = "Never"
    return template


def job(name: str, entrypoint: str, *workers: Json, queue: str, hours: int, tries: int) -> Json:
    """A RayJob: a cluster of its own, gone when the job is done. No autoscaling, for Kueue has to know its size."""
    head_group = head(role="job-head", account="ray-jobs", memory="4Gi", autoscaled=False)
    spec: Json = {
        "entrypoint": entrypoint,
        "submissionMode": "K8sJobMode",  # its log outlives the cluster
        "submitterPodTemplate": submitter(),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 300,
        "activeDeadlineSeconds": hours * 3600,
        "backoffLimit": tries - 1,
        "rayClusterSpec": cluster_spec(head_group, *workers),
    }
    labels = {
        "kueue.x-k8s.io/queue-name": queue,
        "kueue.x-k8s.io/priority-class": "scheduled" if queue == "platform" else "experiment",
    }
    return _object("RayJob", {"generateName": f"{name}-", "labels": labels}, spec)


def ray_cron_job(name: str, schedule: str, of: Json) -> Json:
    """The same job by KubeRay's own schedule, which is alpha in 1.7 and off unless its feature gate is on."""
    spec = {"schedule": schedule, "timeZone": "Etc/UTC", "jobTemplate": of["spec"]}
    return _object("RayCronJob", {"name": name, "labels": of["metadata"]["labels"]}, spec)


def cron_job(name: str, schedule: str, template: str, *, hours: int, entrypoint: str = "") -> Json:
    """A schedule that any Kubernetes has: a small pod makes a RayJob of a template and waits for it.

    entrypoint: instead of the template's.
    """
    waits = container("create", image=IMAGE, cpu=("50m", "200m"), memory="128Mi")
    waits["command"] = ["python", "/schedule/create_rayjob.py", f"/templates/{template}.yaml"]
    waits["command"] += [entrypoint] if entrypoint else []
    del waits["envFrom"]  # it needs no credentials but its own
    waits["volumeMounts"] += [
        {"name": "schedule", "mountPath": "/schedule", "readOnly": True},
        {"name": "templates", "mountPath": "/templates", "readOnly": True},
    ]
    of_pod = pod(waits, role="schedule", service_account="rayjob-creator", node=CPU_NODE, token=True)
    of_pod["spec"]["restartPolicy"] = "Never"
    of_pod["spec"]["volumes"] += [
        {"name": "schedule", "configMap": {"name": "rayjob-schedule"}},
        {"name": "templates", "configMap": {"name": "rayjob-templates"}},
    ]
    job_spec = {"backoffLimit": 0, "activeDeadlineSeconds": hours * 3600, "template": of_pod}  # RayJobs have tries
    spec = {
        "schedule": schedule,
        "timeZone": "Etc/UTC",
        "concurrencyPolicy": "Forbid",
        "startingDeadlineSeconds": 3600,
        "successfulJobsHistoryLimit": 3,
        "failedJobsHistoryLimit": 5,
        "jobTemplate": {"spec": job_spec},
    }
    metadata = {"name": name, "namespace": NAMESPACE, "labels": LABELS}
    return {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": metadata, "spec": spec}
