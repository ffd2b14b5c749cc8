"""KubeRay 1.7.0's own rules of a Ray cluster, alone or inside a RayJob or RayService; see operator_rules.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]
LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
START_RESOURCES = ("num-cpus", "num-gpus", "memory", "resources")
AUTOSCALER_V2 = "RAY_enable_autoscaler_v2"
GATED = ("networkPolicy", "tlsOptions", "historyServerOptions")  # alpha, off
REDIS_ENV = ("REDIS_PASSWORD", "RAY_REDIS_ADDRESS")
FT_ANNOTATIONS = ("ray.io/ft-enabled", "ray.io/external-storage-namespace")


def cluster_violations(spec: Json, at: str, notes: Json) -> Iterator[str]:
    """A line for each rule that the spec at this path breaks. notes: the annotations of the object."""
    head, workers = spec["headGroupSpec"], spec.get("workerGroupSpecs") or []
    groups = [(f"{at}.headGroupSpec", head)]
    groups += [(f"{at}.workerGroupSpecs[{index}]", group) for index, group in enumerate(workers)]
    for where, group in groups:
        yield from _group(group, where)
    for where, group in groups[1:]:
        yield from _sizes(group, where, autoscaled=bool(spec.get("enableInTreeAutoscaling")))
    yield from _autoscaler(spec, at, groups)
    yield from _auth(spec, at)
    yield from _fault_tolerance(spec, at, notes)
    for field in GATED:
        if spec.get(field):
            yield f"{at}.{field}: its feature gate is off"


def _group(group: Json, at: str) -> Iterator[str]:
    start = group.get("rayStartParams") or {}
    if not group["template"].get("spec", {}).get("containers"):
        yield f"{at}.template.spec.containers: at least one is needed"
    if group.get("resources") and any(start.get(name) for name in START_RESOURCES):
        yield f"{at}.resources: also in rayStartParams; say it in one place"
    if "labels" in start:
        yield f"{at}.rayStartParams.labels: use {at}.labels"
    for key, value in (group.get("labels") or {}).items():
        if not (LABEL_KEY.fullmatch(key) and LABEL_VALUE.fullmatch(value)):
            yield f"{at}.labels: '{key}: {value}' is no Kubernetes label"


def _sizes(group: Json, at: str, *, autoscaled: bool) -> Iterator[str]:
    least, most = group.get("minReplicas", 0), group.get("maxReplicas", 2147483647)  # the API server's defaults
    for field, number in (("minReplicas", least), ("maxReplicas", most)):
        if number is None and not autoscaled:
            yield f"{at}.{field}: must be set without autoscaling"
        if number is not None and number < 0:
            yield f"{at}.{field}: {number} is negative"
    if least is not None and most is not None and least > most:
        yield f"{at}.minReplicas: {least} is above maxReplicas {most}"
    if group.get("suspend") and autoscaled:
        yield f"{at}.suspend: not with autoscaling"


def _autoscaler(spec: Json, at: str, groups: list[tuple[str, Json]]) -> Iterator[str]:
    on, options = bool(spec.get("enableInTreeAutoscaling")), spec.get("autoscalerOptions") or {}
    v2 = on and (options.get("version") == "v2" or _env(spec).get(AUTOSCALER_V2) in ("1", "true"))
    if not on and _env(spec).get(AUTOSCALER_V2) in ("1", "true"):
        yield f"{at}.headGroupSpec: {AUTOSCALER_V2} needs enableInTreeAutoscaling"
    if on and options.get("version") and AUTOSCALER_V2 in _env(spec):
        yield f"{at}.autoscalerOptions.version: not together with {AUTOSCALER_V2} of the head"
    if "KUBERAY_GEN_AUTOSCALER_START_CMD" in _named(options.get("env")):
        yield f"{at}.autoscalerOptions.env: KUBERAY_GEN_AUTOSCALER_START_CMD is the operator's"
    for where, group in groups:
        policy = group["template"].get("spec", {}).get("restartPolicy")
        if v2 and policy not in (None, "", "Never"):
            yield f"{where}.template.spec.restartPolicy: '{policy}', with autoscaler v2 it is Never or unset"
        idle = group.get("idleTimeoutSeconds")
        if idle is not None and idle < 0:
            yield f"{where}.idleTimeoutSeconds: {idle} is negative"
        if idle is not None and not v2:
            yield f"{where}.idleTimeoutSeconds: needs autoscaler v2"
        if group.get("priority") is not None and not (v2 and _version(spec) >= (2, 56, 0)):
            yield f"{where}.priority: needs autoscaler v2 and Ray 2.56"


def _auth(spec: Json, at: str) -> Iterator[str]:
    options = spec.get("authOptions") or {}
    if options.get("mode") == "token" and _version(spec) < (2, 52, 0):
        yield f"{at}.rayVersion: '{spec.get('rayVersion', '')}', authOptions.mode token needs 2.52.0"
    if not options.get("enableK8sTokenAuth"):
        return
    if options.get("mode") != "token" or options.get("secretName"):
        yield f"{at}.authOptions.enableK8sTokenAuth: needs mode token and no secretName"
    if _version(spec) < (2, 55, 0):
        yield f"{at}.authOptions.enableK8sTokenAuth: needs Ray 2.55.0"
    if at != "spec":
        yield f"{at}.authOptions.enableK8sTokenAuth: not in a RayJob or RayService"


def _fault_tolerance(spec: Json, at: str, notes: Json) -> Iterator[str]:
    options = spec.get("gcsFaultToleranceOptions")
    start, env = spec["headGroupSpec"].get("rayStartParams") or {}, _env(spec)
    if start.get("redis-username") or "REDIS_USERNAME" in env:
        yield f"{at}.headGroupSpec: the Redis user belongs to gcsFaultToleranceOptions.redisUsername"
    if options is None:
        if "RAY_REDIS_ADDRESS" in env and notes.get(FT_ANNOTATIONS[0]) != "true":
            yield f"{at}.headGroupSpec: RAY_REDIS_ADDRESS without gcsFaultToleranceOptions"
        return
    for name in FT_ANNOTATIONS:
        if notes.get(name):
            yield f"metadata.annotations.{name}: not together with gcsFaultToleranceOptions"
    for name in REDIS_ENV:
        if name in env:
            yield f"{at}.headGroupSpec: env {name} belongs to gcsFaultToleranceOptions"
    if start.get("redis-password"):
        yield f"{at}.headGroupSpec.rayStartParams.redis-password: belongs to gcsFaultToleranceOptions"
    if options.get("backend") == "rocksdb":
        yield f"{at}.gcsFaultToleranceOptions.backend: rocksdb's feature gate is off"


def _named(env: list[Json] | None) -> dict[str, Any]:
    return {variable["name"]: variable.get("value") for variable in env or []}


def _env(spec: Json) -> dict[str, Any]:
    containers = spec["headGroupSpec"]["template"].get("spec", {}).get("containers") or [{}]
    return _named(containers[0].get("env"))


def _version(spec: Json) -> tuple[int, ...]:
    """(0,) for what is absent or no version."""
    text = spec.get("rayVersion") or ""
    return tuple(map(int, text.split("."))) if re.fullmatch(r"\d+(\.\d+){1,2}", text) else (0,)
