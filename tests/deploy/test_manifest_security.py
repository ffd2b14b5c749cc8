"""checkov's rules of Kubernetes for what render.sh prints. It knows no Ray objects, so it is shown their pods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.manifests import ENVIRONMENTS, Json, jobs, label, pod_templates, rendered
from tests.deploy.tools import dump, run, tool

# Why a rule does not count here. A rule that no object breaks any more has to go from this list.
SKIPPED = {
    "CKV_K8S_15": "pull policy Always: tags never change (the registry forbids it), and a start needs no registry",
    "CKV_K8S_35": "secrets as files: MLflow's client and KubeRay read theirs from the environment",
    "CKV_K8S_38": "tokens: autoscalers and CronJobs call the Kubernetes API; test_network.py: nobody else",
    "CKV_K8S_43": "digests: they are known only once images are pushed; tags are immutable",
}


def pods_of_ray(objects: list[Json]) -> list[Json]:
    """The pods that KubeRay makes, as Pods; the submitters, which end, as Jobs."""
    return [
        as_pod(f"{label(obj)}-{path}", template, ends="submitter" in path)
        for obj in objects
        if obj["apiVersion"] == "ray.io/v1"
        for path, template in pod_templates(obj)
    ]


def as_pod(name: str, template: Json, *, ends: bool) -> Json:
    metadata = {"name": name.lower().translate(_NAMES), "namespace": "rayapp"}
    if ends:
        return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {"template": template}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


_NAMES = str.maketrans({"/": "-", ".": "-", "[": "-", "]": ""})


def failed(objects: list[Json], folder: Path) -> dict[str, list[str]]:
    """The objects that break a rule, by rule."""
    file = folder / "rendered.yaml"
    file.write_text(dump(objects), encoding="utf-8")
    words = ["-f", file, "--framework", "kubernetes", "--output", "json", "--quiet", "--skip-download"]
    report: dict[str, Any] = json.loads(run([tool("checkov"), *words], ok=False).stdout)
    assert report["summary"]["passed"] > 100, "it looked at something"
    found: dict[str, list[str]] = {}
    for check in report["results"]["failed_checks"]:
        found.setdefault(check["check_id"], []).append(f"{check['resource']}: {check['check_name']}")
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What both environments and all jobs break; for jobs it is the same in both."""
    everything = [obj for environment in ENVIRONMENTS for obj in rendered(environment)] + list(jobs().values())
    return failed([*everything, *pods_of_ray(everything)], tmp_path_factory.mktemp("checkov"))


def test_only_rules_with_a_reason_are_broken(results: dict[str, list[str]]):
    assert {rule: found for rule, found in results.items() if rule not in SKIPPED} == {}


def test_no_rule_is_skipped_for_nothing(results: dict[str, list[str]]):
    assert set(SKIPPED) <= set(results)


def test_a_planted_fault_is_found(tmp_path: Path):
    objects = rendered("prod")
    pods = pods_of_ray(objects)
    pods[0]["spec"]["containers"][0]["securityContext"] = {"privileged": True}

    found = failed([*objects, *pods], tmp_path)

    assert any(pods[0]["metadata"]["name"] in line for line in found["CKV_K8S_16"]), found
