"""What all of cluster/manifests has to keep. A check tells for each fault file, object, field and why."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.manifests import Json, label, pod_templates, sources
from tests.deploy.operator_rules import NAME_LENGTH, violations
from tests.deploy.tools import ROOT, VERSIONS

Found = Iterator[tuple[str, str]]  # field, what is wrong with it
SPOT_GROUPS = {("RayCluster", "dev"), ("RayJob", "train-"), ("RayJob", "tune-"), ("RayJob", "pipeline-")}
MAX_GPUS = 5
IMAGE_TAG = f"rayapp:{VERSIONS['RAYAPP_VERSION']}-ray{VERSIONS['RAY_VERSION']}"
CREDENTIAL = re.compile(r"(?i)(password|secret|token|api_?key|access_?key)")
KEY_ID = re.compile(r"\b(AKIA|ASIA)[A-Z0-9]{16}\b|-----BEGIN")


def faults(check: Callable[[Json], Found], root: Path = ROOT) -> list[str]:
    """What a check finds in the objects of a root."""
    return [f"{path}: {label(obj)}: {field}: {what}" for path, obj in sources(root) for field, what in check(obj)]


def assert_told(check: Callable[[Json], Found], file: str, root: Path, told: str) -> None:
    """The check finds something in a root with a planted fault, and says so of this file in these words."""
    lines = faults(check, root)
    assert lines
    assert any(line.startswith(f"{file}: ") and told in line for line in lines), lines


def containers(obj: Json) -> Iterator[tuple[str, Json]]:
    """Path and content of each container of an object."""
    for path, template in pod_templates(obj):
        for kind in ("initContainers", "containers"):
            for index, one in enumerate(template["spec"].get(kind) or []):
                yield f"{path}.spec.{kind}[{index}]", one


def operator(obj: Json) -> Found:
    """The rules of KubeRay's operator."""
    if obj["kind"] in NAME_LENGTH:
        for line in violations(obj):
            field, _, what = line.partition(": ")
            yield field, what


def security(obj: Json) -> Found:
    """What the Pod Security Standard `restricted` wants, and a root file system that nobody writes to."""
    for path, template in pod_templates(obj):
        spec = template["spec"]
        of_pod = spec.get("securityContext") or {}
        if not of_pod.get("runAsNonRoot") or not of_pod.get("runAsUser"):
            yield f"{path}.spec.securityContext.runAsNonRoot", "the pod may run as root"
        if of_pod.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{path}.spec.securityContext.seccompProfile", "is not RuntimeDefault"
        if "automountServiceAccountToken" not in spec:
            yield f"{path}.spec.automountServiceAccountToken", "say whether the pod talks to the Kubernetes API"
        for field in ("hostNetwork", "hostPID", "hostIPC"):
            if spec.get(field):
                yield f"{path}.spec.{field}", "is not allowed"
        if any("hostPath" in volume for volume in spec.get("volumes") or []):
            yield f"{path}.spec.volumes", "hostPath is not allowed"
    for path, one in [*containers(obj), *_autoscalers(obj)]:
        context = one.get("securityContext") or {}
        wanted = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
        for field, value in wanted.items():
            if context.get(field) != value:
                yield f"{path}.securityContext.{field}", f"is {context.get(field)}, has to be {value}"


def _autoscalers(value: Any, path: str = "") -> Iterator[tuple[str, Json]]:
    """The containers that KubeRay adds as these options say."""
    if isinstance(value, dict):
        for key, inner in value.items():
            here = f"{path}.{key}".strip(".")
            if key == "autoscalerOptions":
                yield here, inner
            yield from _autoscalers(inner, here)


def resources(obj: Json) -> Found:
    """Requests, a memory limit for each container, and a GPU that is asked for and limited alike (F69)."""
    for path, one in [*containers(obj), *_autoscalers(obj)]:
        asked, limits = one.get("resources", {}).get("requests", {}), one.get("resources", {}).get("limits", {})
        for name in ("cpu", "memory"):
            if name not in asked or name not in limits:
                yield f"{path}.resources", f"no request or no limit of {name}"
        if asked.get("nvidia.com/gpu") != limits.get("nvidia.com/gpu"):
            yield f"{path}.resources", "requests and limits of nvidia.com/gpu differ"


def probes(obj: Json) -> Found:
    """Both probes on what runs for ever; HTTP ones that have a path and a port (F70)."""
    for path, one in containers(obj):
        if one["name"] == "ray-job-submitter" or obj["kind"] in ("CronJob", "Job"):
            continue
        for field in ("livenessProbe", "readinessProbe"):
            probe = one.get(field) or {}
            http = probe.get("httpGet")
            if not probe.get("exec") and not (http and http.get("path") and http.get("port")):
                yield f"{path}.{field}", "is missing or asks nothing"


def shared_memory(obj: Json) -> Found:
    """/dev/shm in memory for each container of Ray (F68)."""
    for path, template in pod_templates(obj):
        ray = template["spec"]["containers"][0]
        if ray["name"] not in ("ray-head", "ray-worker"):
            continue
        at = {mount["mountPath"]: mount["name"] for mount in ray.get("volumeMounts") or []}
        memory = [v["name"] for v in template["spec"].get("volumes") or [] if v.get("emptyDir", {}).get("medium")]
        if at.get("/dev/shm") not in memory:
            yield f"{path}.spec.volumes", "/dev/shm is not in memory"


def one_version(obj: Json) -> Found:
    """One version of Ray and of our image."""
    for path, value in _leaves(obj):
        field = path.rpartition(".")[2]
        if field == "rayVersion" and value != VERSIONS["RAY_VERSION"]:
            yield path, f"is {value}, cluster/versions.env says {VERSIONS['RAY_VERSION']}"
        if field == "image" and "rayapp" in str(value) and value not in (IMAGE_TAG, f"{IMAGE_TAG}-cuda"):
            yield path, f"is {value}, has to be {IMAGE_TAG}"
        if field == "image" and re.search(r":latest$|^[^:]+$", str(value)):
            yield path, f"{value} is not pinned"
    for group in _groups(obj):
        has_gpu = "nvidia.com/gpu" in group["template"]["spec"]["containers"][0]["resources"]["limits"]
        image = group["template"]["spec"]["containers"][0]["image"]
        if has_gpu != image.endswith("-cuda"):
            yield (
                f"workerGroupSpecs.{group['groupName']}.image",
                f"{image} in a group with{'' if has_gpu else 'out'} GPUs",
            )


def model_name(obj: Json) -> Found:
    """Models are called as serve_configs/ and jobs call them."""
    for path, value in _leaves(obj):
        for name in re.findall(r"models:/([\w-]+)", str(value)):
            if name != "vision":
                yield path, f"names the model '{name}'"


def spot(obj: Json) -> Found:
    """GPU nodes are spot and tainted: only workers that train or search may go there, all others to CPU nodes."""
    who = (obj["kind"], obj["metadata"].get("name") or obj["metadata"].get("generateName"))
    for path, template in pod_templates(obj):
        spec = template["spec"]
        pool = (spec.get("nodeSelector") or {}).get("rayapp.io/pool")
        may = "workerGroupSpecs" in path and (who in SPOT_GROUPS or obj["kind"] == "RayCronJob")
        if spec.get("tolerations") and not may:
            yield f"{path}.spec.tolerations", "only train and tune workers go to spot nodes"
        if pool != ("gpu" if spec.get("tolerations") else "cpu"):
            yield f"{path}.spec.nodeSelector", f"pool {pool} with tolerations {spec.get('tolerations')}"


def gpus(root: Path = ROOT) -> list[str]:
    """GPU workers: what stands together is within the limit, so is each job, and quota and queue bound all of them."""
    found, standing = [], 0
    for path, obj in sources(root):
        most = sum(group["maxReplicas"] * _gpu(group) for group in _groups(obj))
        standing += most if obj["kind"] in ("RayCluster", "RayService") else 0
        if most > MAX_GPUS:
            found.append(f"{path}: {label(obj)}: workerGroupSpecs.maxReplicas: {most} GPUs, at most {MAX_GPUS}")
        hard = obj["spec"].get("hard", {}) if obj["kind"] == "ResourceQuota" else {}
        if hard and str(hard.get("requests.nvidia.com/gpu")) != str(MAX_GPUS):
            found.append(f"{path}: {label(obj)}: spec.hard[requests.nvidia.com/gpu]: is not {MAX_GPUS}")
        if obj["kind"] == "ClusterQueue" and _queued_gpus(obj) != MAX_GPUS:
            found.append(f"{path}: {label(obj)}: nominalQuota of nvidia.com/gpu: {_queued_gpus(obj)}, not {MAX_GPUS}")
    if standing > MAX_GPUS:
        found.append(f"cluster/manifests: RayCluster and RayService: maxReplicas: {standing} GPUs, at most {MAX_GPUS}")
    return found


def _queued_gpus(queue: Json) -> int:
    flavors = [flavor for group in queue["spec"]["resourceGroups"] for flavor in group["flavors"]]
    named = [one for flavor in flavors for one in flavor["resources"] if one["name"] == "nvidia.com/gpu"]
    return sum(int(one["nominalQuota"]) for one in named)


def secrets(obj: Json) -> Found:
    """No secret stands here: neither a Secret nor a variable with a literal one, nor a key in any text."""
    if obj["kind"] == "Secret":
        yield "kind", "secrets come from Secrets Manager"
    for path, one in containers(obj):
        for variable in one.get("env") or []:
            if CREDENTIAL.search(variable["name"]) and "value" in variable:
                yield f"{path}.env.{variable['name']}", "is a literal"
    for path, value in _leaves(obj):
        literal = CREDENTIAL.search(path.rpartition(".")[2]) and path.startswith(("data.", "stringData."))
        if KEY_ID.search(str(value)) or (literal and value):
            yield path, "looks like a secret"


def serve_config(obj: Json) -> Json:
    """The serve config inside a RayService."""
    config: Json = yaml.safe_load(obj["spec"]["serveConfigV2"])
    return config


def _groups(value: Any) -> Iterator[Json]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from inner if key == "workerGroupSpecs" else _groups(inner)


def _gpu(group: Json) -> int:
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    return int(limits.get("nvidia.com/gpu", 0))


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}".strip("."))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{index}]")
    else:
        yield path, value
