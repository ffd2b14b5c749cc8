"""The pods of all Ray objects: one container each, as a restricted namespace wants it.

KubeRay adds to them: the autoscaler's container, an init container that waits for the head, the token, `ray start`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

Json = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
SERVE_PORT = 3000
DASHBOARD_PORT = 8265


def versions() -> dict[str, str]:
    """cluster/versions.env."""
    text = (ROOT / "cluster/versions.env").read_text(encoding="utf-8")
    return dict(re.findall(r"^(\w+)=(\S+)", text, re.MULTILINE))


VERSIONS = versions()
RAY_VERSION = VERSIONS["RAY_VERSION"]
IMAGE = f"rayapp:{VERSIONS['RAYAPP_VERSION']}-ray{RAY_VERSION}"  # render.sh puts the registry before it
CUDA_IMAGE = f"{IMAGE}-cuda"
CONTAINER_SECURITY: Json = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
}
POD_SECURITY: Json = {
    "runAsNonRoot": True,
    "runAsUser": 10001,
    "runAsGroup": 10001,
    "fsGroup": 10001,
    "seccompProfile": {"type": "RuntimeDefault"},
}
ENV_FROM: list[Json] = [
    {"configMapRef": {"name": "rayapp-settings"}},
    {"secretRef": {"name": "mlflow-client"}},
]
# Everything that is written is below /tmp, home and Ray's session included: the root file system is read-only.
ENV: list[Json] = [{"name": "HOME", "value": "/tmp"}]  # noqa: S108 - a path in a pod
CPU_NODE = {"rayapp.io/pool": "cpu"}  # on demand
GPU_NODE = {"rayapp.io/pool": "gpu"}  # spot, one GPU each
GPU_TOLERATION: Json = {"key": "nvidia.com/gpu", "operator": "Equal", "value": "present", "effect": "NoSchedule"}
NOT_MOVED = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}


def container(name: str, *, image: str, cpu: tuple[str, str], memory: str, gpus: int = 0) -> Json:
    """A container of the image. cpu: request and limit. memory: both, so that no node is promised twice."""
    gpu = {"nvidia.com/gpu": gpus} if gpus else {}
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": "IfNotPresent",  # a tag never changes
        "env": list(ENV),
        "envFrom": ENV_FROM,
        "resources": {
            "requests": {"cpu": cpu[0], "memory": memory} | gpu,
            "limits": {"cpu": cpu[1], "memory": memory} | gpu,
        },
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108 - a path in a pod
    }


def pod(
    of: Json,
    *,
    role: str,
    service_account: str,
    node: Json,
    token: bool = False,
    tolerations: tuple[Json, ...] = (),
    moved: bool = False,
) -> Json:
    """The template of a pod. token: it calls the Kubernetes API. moved: the autoscaler may empty its node."""
    spec: Json = {
        "serviceAccountName": service_account,
        "automountServiceAccountToken": token,
        "nodeSelector": node,
        "securityContext": POD_SECURITY,
        "containers": [of],
        "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "15Gi"}}],
    }
    if tolerations:
        spec["tolerations"] = list(tolerations)
    metadata: Json = {"labels": {"app.kubernetes.io/part-of": "rayapp", "rayapp.io/role": role}}
    if not moved:
        metadata["annotations"] = dict(NOT_MOVED)
    return {"metadata": metadata, "spec": spec}


def with_shared_memory(template: Json, size: str) -> Json:
    """The template with room in memory for Ray's object store, which else lies in files, slowly."""
    template["spec"]["volumes"].append({"name": "shared-mem", "emptyDir": {"medium": "Memory", "sizeLimit": size}})
    template["spec"]["containers"][0]["volumeMounts"].append({"name": "shared-mem", "mountPath": "/dev/shm"})  # noqa: S108
    return template


def probe(path: str, port: int, *, every_s: int, failures: int, delay_s: int = 0) -> Json:
    """An HTTP probe. KubeRay's own run wget in the container: no image needs that for ours."""
    return {
        "httpGet": {"path": path, "port": port},
        "initialDelaySeconds": delay_s,
        "periodSeconds": every_s,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def ports(**named: int) -> list[Json]:
    """Container ports by name; KubeRay makes its services of them."""
    return [{"name": name.replace("_", "-"), "containerPort": port} for name, port in named.items()]
