"""All that the setup applies, on a real API server with real controllers and the real operator; there are no nodes."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import yaml

from tests.cluster.conftest import Platform, without_what_is_later
from tests.cluster.control_plane import ControlPlane, Json, within_a_minute
from tests.deploy.manifests import ENVIRONMENTS, EXAMPLES, jobs, label, load

NAMESPACE = ("--namespace", "rayapp")
SERVING = "rayapp.io/role=serve"


def plain_pod(name: str, **spec: Any) -> Json:
    """A pod that keeps to the Pod Security Standard of the namespace, and names no resources."""
    container = {"name": "main", "image": "example.org/none", **spec}
    container.setdefault("securityContext", {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}})
    pod_security = {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}}
    return {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "rayapp"},
        "spec": {"securityContext": pod_security, "containers": [container]},
    }  # fmt: skip


def created(plane: ControlPlane, obj: Json, *words: str) -> tuple[bool, str]:
    """Whether the API server takes an object, and what it says."""
    done = plane.kubectl("create", "--filename", "-", *words, stdin=yaml.safe_dump(obj), ok=False)
    return done.returncode == 0, done.stdout + done.stderr


# --- objects ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_every_object_is_accepted_and_a_second_time_nothing_differs(platform: Platform, environment: str):
    """The setup applies what `kubectl diff` finds: a field that is stored otherwise would never be right."""
    assert platform.differences[environment] == ""


@pytest.mark.parametrize("obj", [*jobs().values(), *map(load, EXAMPLES)], ids=label)
def test_a_job_or_example_is_accepted(platform: Platform, obj: Json):
    accepted, told = created(platform.plane, without_what_is_later(obj), "--dry-run=server", *NAMESPACE)

    assert accepted, told


def test_a_misspelt_field_is_refused(platform: Platform):
    (job, *_) = jobs().values()
    misspelt = {**job, "spec": {**job["spec"], "entrypiont": "true"}}

    accepted, told = created(platform.plane, misspelt, "--dry-run=server", *NAMESPACE)

    assert not accepted
    assert 'unknown field "spec.entrypiont"' in told


# --- pods -------------------------------------------------------------------------------------------------------------


def pods(plane: ControlPlane, selector: str, namespace: str = "rayapp") -> list[Json]:
    """The pods of a selector that are not being deleted."""
    found = plane.get("pods", "--namespace", namespace, "--selector", selector)["items"]
    return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]


@pytest.fixture(scope="session")
def serving(platform: Platform) -> ControlPlane:
    """Once the operator has made the pods of the service."""
    plane = platform.plane
    within_a_minute(
        lambda: len(pods(plane, SERVING)) == 2 and len(pods(plane, "rayapp.io/role=serve-head")) == 1,
        otherwise=lambda: f"{plane.refused('rayapp')}\n{plane.last_words()}",
    )
    return plane


def test_the_operator_makes_the_pods_of_the_service_and_nothing_is_refused(serving: ControlPlane):
    """What the operator adds to a pod (containers that wait, volumes) has to keep to `restricted` and the quota too."""
    within_a_minute(lambda: len(pods(serving, "app.kubernetes.io/name=redis")) == 1)

    assert serving.refused("rayapp") == []


@pytest.mark.parametrize("kind", jobs())
def test_a_job_makes_its_pods(serving: ControlPlane, kind: str):
    """Its head, its workers and who submits it."""
    job = jobs()[kind]
    job["spec"]["suspend"] = False  # else it is Kueue's to let it begin, and Kueue is not here
    job["metadata"]["labels"].pop("kueue.x-k8s.io/queue-name")
    done = serving.kubectl("create", "--filename", "-", "--output", "name", *NAMESPACE, stdin=yaml.safe_dump(job))
    name = done.stdout.strip().rpartition("/")[2]
    wanted = 1 + sum(group["replicas"] for group in job["spec"]["rayClusterSpec"].get("workerGroupSpecs", []))

    def made() -> list[Json]:
        cluster = serving.get("rayjob", name, *NAMESPACE).get("status", {}).get("rayClusterName")
        return pods(serving, f"ray.io/cluster={cluster}") if cluster else []

    try:
        within_a_minute(lambda: len(made()) >= wanted, otherwise=lambda: str(serving.refused("rayapp")))
        assert serving.refused("rayapp") == []
    finally:
        left = made()
        serving.kubectl("delete", "rayjob", name, *NAMESPACE)
        names = {pod["metadata"]["name"] for pod in left}
        within_a_minute(lambda: not names & {pod["metadata"]["name"] for pod in pods(serving, "")})


@pytest.mark.parametrize("name", ["pipeline-daily", "tune-weekly"])
def test_a_schedule_makes_its_pod(platform: Platform, name: str):
    platform.plane.kubectl("create", "job", f"{name}-now", f"--from=cronjob/{name}", *NAMESPACE)
    within_a_minute(
        lambda: len(pods(platform.plane, f"job-name={name}-now")) == 1,
        otherwise=lambda: str(platform.plane.refused("rayapp")),
    )
    platform.plane.kubectl("delete", "job", f"{name}-now", *NAMESPACE, "--wait=false")


# --- disruption budgets -----------------------------------------------------------------------------------------------


def make_ready(plane: ControlPlane, pod: Json) -> None:
    """What a kubelet says of a pod whose probes pass."""
    status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    plane.kubectl(
        "patch", "pod", pod["metadata"]["name"], *NAMESPACE, "--subresource=status", "--type=merge",
        "--patch", json.dumps({"status": status}),
    )  # fmt: skip


def evicted(plane: ControlPlane, pod: Json) -> tuple[bool, str]:
    """Whether `kubectl drain` could take a pod off its node, and what it is told."""
    name = pod["metadata"]["name"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": "rayapp"}}
    path = f"/api/v1/namespaces/rayapp/pods/{name}/eviction"
    done = plane.kubectl("create", "--raw", path, "--filename", "-", stdin=json.dumps(eviction), ok=False)
    return done.returncode == 0, done.stdout + done.stderr


def allowed(plane: ControlPlane, name: str) -> int:
    """How many pods a budget lets go at the moment."""
    return int(plane.get("poddisruptionbudget", name, *NAMESPACE)["status"].get("disruptionsAllowed", 0))


def test_a_drain_takes_one_serving_pod_and_waits_with_the_other(serving: ControlPlane):
    """`kubectl drain` of a node with a serving pod never ended: a RayCluster has no scale to take a share of."""
    first, second = pods(serving, SERVING)
    for pod in (first, second):
        make_ready(serving, pod)
    within_a_minute(lambda: allowed(serving, "serve") == 1, otherwise=lambda: str(serving.get("pdb", *NAMESPACE)))

    assert evicted(serving, first)[0]
    gone, told = evicted(serving, second)
    assert not gone
    assert "disruption budget" in told

    within_a_minute(lambda: len(pods(serving, SERVING)) == 2)
    for pod in pods(serving, SERVING):
        make_ready(serving, pod)
    within_a_minute(lambda: allowed(serving, "serve") == 1)


def test_a_budget_that_asks_for_the_scale_lets_nobody_go(serving: ControlPlane):
    """What the test above guards: with maxUnavailable the controller says so, and allows nothing."""
    budget = {
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
        "metadata": {"name": "planted", "namespace": "rayapp"},
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"rayapp.io/role": "serve"}}},
    }  # fmt: skip
    looks = itertools.count()

    def told() -> bool:
        budget["metadata"]["annotations"] = {"look": str(next(looks))}  # the controller forgets that it failed
        serving.apply([budget])
        status = serving.get("pdb", "planted", *NAMESPACE).get("status", {})
        return any("scale subresource" in condition["message"] for condition in status.get("conditions", []))

    within_a_minute(told)
    assert allowed(serving, "planted") == 0
    serving.kubectl("delete", "pdb", "planted", *NAMESPACE)


# --- what is not allowed ----------------------------------------------------------------------------------------------


def test_the_quota_stops_at_five_gpus(platform: Platform):
    gpu = {"limits": {"nvidia.com/gpu": "1", "cpu": "1", "memory": "1Gi"}}
    answers = [created(platform.plane, plain_pod(f"gpu-{number}", resources=gpu)) for number in range(6)]
    platform.plane.kubectl("delete", "pod", *NAMESPACE, *(f"gpu-{number}" for number in range(5)))

    assert [accepted for accepted, _ in answers] == [True] * 5 + [False]
    assert "exceeded quota: rayapp" in answers[-1][1]


def test_a_container_without_resources_gets_some_and_none_may_have_more_than_a_node(platform: Platform):
    accepted, _ = created(platform.plane, plain_pod("modest"))
    made = platform.plane.get("pod", "modest", *NAMESPACE)
    platform.plane.kubectl("delete", "pod", "modest", *NAMESPACE)
    greedy = created(platform.plane, plain_pod("greedy", resources={"limits": {"cpu": "9", "memory": "1Gi"}}))

    assert accepted
    assert made["spec"]["containers"][0]["resources"]["limits"] == {"cpu": "1", "memory": "512Mi"}
    assert not greedy[0]
    assert "maximum cpu usage per Container is 8" in greedy[1]


@pytest.mark.parametrize("namespace", ["rayapp", "mlflow"])
def test_a_pod_that_may_become_root_is_refused(platform: Platform, namespace: str):
    pod = plain_pod("root", securityContext={"privileged": True})
    pod["metadata"]["namespace"] = namespace

    accepted, told = created(platform.plane, pod)

    assert not accepted
    assert 'violates PodSecurity "restricted' in told


def test_a_service_that_opens_a_load_balancer_is_refused(platform: Platform):
    """What is reached from outside has an Ingress, with TLS and a name."""
    service = {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "open", "namespace": "rayapp"},
        "spec": {"type": "LoadBalancer", "ports": [{"port": 80}], "selector": {"rayapp.io/role": "serve"}},
    }  # fmt: skip

    accepted, told = created(platform.plane, service)

    assert not accepted
    assert "exceeded quota" in told


# --- rights -----------------------------------------------------------------------------------------------------------

WRITES_JOBS = {"create rayjobs.ray.io", "get rayjobs.ray.io"}
RIGHTS = {
    "rayapp:ray-jobs": set(),
    "rayapp:ray-serve": set(),
    "rayapp:redis": set(),
    "rayapp:rayjob-creator": WRITES_JOBS,
    "airflow:airflow": {
        *WRITES_JOBS,
        "list rayjobs.ray.io",
        "delete rayjobs.ray.io",
        "get configmaps/rayjob-templates",
    },
}
ASKED = sorted(
    {*RIGHTS["airflow:airflow"], "get secrets", "list secrets", "create pods", "create pods/exec", "get configmaps"}
    | {"patch rayjobs.ray.io", "delete pods", "create rolebindings.rbac.authorization.k8s.io", "get rayservices.ray.io"}
)


@pytest.mark.parametrize("account", RIGHTS)
def test_an_account_may_do_what_it_is_for_and_nothing_else(platform: Platform, account: str):
    namespaces = {"rayapp", account.split(":")[0], "default"}
    found = {
        (namespace, asked)
        for namespace in namespaces
        for asked in ASKED
        if platform.plane.kubectl(
            "auth", "can-i", *asked.split(), f"--as=system:serviceaccount:{account}", "--namespace", namespace, ok=False
        ).stdout.strip() == "yes"
    }  # fmt: skip

    assert found == {("rayapp", asked) for asked in RIGHTS[account]}
