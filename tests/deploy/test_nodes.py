"""Pods and nodes: each pod fits on the smallest node, and all that runs at once on the nodes of its profile."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain, combinations_with_replacement
from pathlib import Path

import pytest

from tests.deploy import manifest_rules as rules
from tests.deploy import nodes
from tests.deploy.machine import make_machine
from tests.deploy.manifests import Json, copied, jobs, planted, pod_templates, rendered, the
from tests.deploy.nodes import PROFILES, ROOM
from tests.deploy.tools import ROOT

SERVICE = "cluster/manifests/ray/rayservice.yaml"
VCPUS = {"t3a.large": 2, "m6a.xlarge": 4, "t4g.nano": 2}  # as quotas count them
LOCALS = (ROOT / "terraform/locals.tf").read_text(encoding="utf-8")


def too_large(obj: Json) -> Iterator[tuple[str, str]]:
    """Pods that fit on no node of the smallest type of their pool: they would wait for ever."""
    for path, template in pod_templates(obj):
        added = nodes.autoscalers(obj["spec"].get("rayClusterConfig", obj["spec"])) if "headGroupSpec" in path else []
        size = nodes.pod(template, *added)
        room = ROOM[{"cpu": "t3a.large", "gpu": "g4dn.xlarge"}[template["spec"]["nodeSelector"]["rayapp.io/pool"]]]
        if size.cores > room.cores or size.gib > room.gib:
            yield f"{path}.spec.containers.resources", f"{size.cores} cores and {size.gib} GiB fit on no node"


def test_every_pod_fits_on_the_smallest_node(tmp_path: Path):
    assert rules.faults(too_large) == []

    root = planted(copied(tmp_path), SERVICE, "memory: 3Gi", "memory: 8Gi")
    assert [line.partition(".template")[0] for line in rules.faults(too_large, root)] == [
        f"{SERVICE}: RayService/vision: spec.rayClusterConfig.headGroupSpec"
    ]


def of_profile(name: str) -> tuple[str, int, int]:
    """Type, least and most of the CPU nodes."""
    block = re.search(rf"^    {name} = \{{(.*?)^    \}}", LOCALS, re.DOTALL | re.MULTILINE)
    assert block
    values = dict(re.findall(r"^ +(cpu_\w+)\s+= \"?([\w.]+)", block[1], re.MULTILINE))
    return values["cpu_instance_type"], int(values["cpu_nodes_min"]), int(values["cpu_nodes_max"])


@pytest.mark.parametrize("profile", PROFILES)
def test_the_setup_asks_aws_for_the_nodes_that_terraform_makes(profile: str):
    """Types that the region has to offer, and cores of quotas, with a node more in each group while it is updated."""
    script = (ROOT / "cluster/scripts/setup/00-credentials.sh").read_text(encoding="utf-8")
    case = {"lean": "lean", "standard": r"\*"}[profile]
    asked = re.search(rf"^    {case}\) CPU_TYPE=(\S+) NAT_TYPE=(\S+) CPU_CORES=(\d+) ;;", script, re.MULTILINE)
    types = re.search(r'^GPU_TYPES="(.*)"', script, re.MULTILINE)
    assert asked
    assert types
    nat = (ROOT / "terraform/modules/network/nat.tf").read_text(encoding="utf-8")
    gpus = (ROOT / "terraform/variables.tf").read_text(encoding="utf-8").split('"gpu_instance_types"')[1]

    kind, _, most = of_profile(profile)
    groups = {"lean": 1, "standard": 3}[profile]
    instance = re.search(r'instance_type += "(\S+)"', nat)
    assert instance
    assert asked[1] == kind
    assert asked[2].strip('"') == (instance[1] if profile == "lean" else "")
    assert int(asked[3]) == (most + groups) * VCPUS[kind] + (VCPUS[instance[1]] if profile == "lean" else 0)
    assert types[1].split() == re.findall(r'"(g\w+\.\w+)"', gpus.split("default")[1].split("]")[0])


def test_groups_are_scaled_by_the_names_that_terraform_gives_them(tmp_path: Path):
    """The CPU group became one of each zone, and scale.sh went on asking for `cpu`."""
    made = re.findall(
        r'^  name +=\s+"(cpu-\$\{each\.key\}|gpu)"$', (ROOT / "terraform/main.tf").read_text(), re.MULTILINE
    )
    names = [name.replace("${each.key}", "b") for name in made]
    machine = make_machine(tmp_path / "m")

    assert names == ["cpu-b", "gpu"]
    for name in names:
        assert f"--nodegroup-name {name} " in machine.run("ops/scale", "dev", name, "3", "--dry-run").stderr
    assert "the group is gpu" in machine.run("ops/scale", "dev", "cpu", "3", "--dry-run", ok=False).stderr


@pytest.mark.parametrize("profile", PROFILES)
def test_what_always_runs_fits_on_the_nodes_that_are_paid_for(profile: str):
    kind, least, _ = of_profile(profile)

    assert nodes.nodes(nodes.always(profile), ROOM[kind]) == least


@pytest.mark.parametrize("profile", PROFILES)
def test_a_job_fits_beside_all_that_is_awake_and_so_does_an_upgrade_of_serving(profile: str):
    kind, _, most = of_profile(profile)
    awake = nodes.always(profile) + (nodes.ray(profile) if profile == "lean" else [])
    beside = {name: nodes.ray_cluster(job["spec"]["rayClusterSpec"]) for name, job in jobs().items()}
    beside["upgrade"] = nodes.ray_cluster(
        the("RayService", "vision", rendered(PROFILES[profile]))["spec"]["rayClusterConfig"]
    )

    needed = {name: nodes.nodes(awake + pods, ROOM[kind]) for name, pods in beside.items()}
    assert max(needed.values()) < most, f"and one for what the scheduler places worse: {needed}"


@pytest.mark.parametrize("profile", PROFILES)
def test_jobs_that_the_queue_lets_start_together_find_nodes_together(profile: str):
    kind, _, most = of_profile(profile)
    queue = the("ClusterQueue", "rayapp", rendered(PROFILES[profile]))["spec"]["resourceGroups"][0]["flavors"][0]
    quota = {one["name"]: nodes.quantity(one["nominalQuota"]) for one in queue["resources"]}
    awake = nodes.always(profile) + (nodes.ray(profile) if profile == "lean" else [])
    kinds = [
        [*nodes.ray_cluster(job["spec"]["rayClusterSpec"]), nodes.pod(job["spec"]["submitterPodTemplate"])]
        for name, job in jobs().items() if name in ("train", "batch-predict")  # the others are of the first's size
    ]  # fmt: skip
    together = [list(chain(*mix)) for number in range(1, 12) for mix in combinations_with_replacement(kinds, number)]
    admitted = [
        pods for pods in together
        if sum(one.cores for one in pods) <= quota["cpu"] and sum(one.gib for one in pods) * 2**30 <= quota["memory"]
    ]  # fmt: skip

    assert all(any(job == pods for pods in admitted) for job in kinds), "each alone may start"
    assert max(nodes.nodes(awake + pods, ROOM[kind]) for pods in admitted) <= most
