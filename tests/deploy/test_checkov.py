"""checkov's rules, beside our own, for Terraform and for what Helm and render.sh make: none is broken without a reason.

Two runs, one of each framework, over what is right and what a fault was planted in: most of a run is checkov's start.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy import chart_rules as charts
from tests.deploy.manifests import ENVIRONMENTS, Json, jobs, label, pod_templates, rendered
from tests.deploy.terraform_faults import FAULTS, TERRAFORM, copy_with
from tests.deploy.tools import dump, run, tool

Found = dict[str, dict[str, list[str]]]  # folder or file -> rule -> what breaks it

# Why a rule does not count for a chart or the manifests. A rule that no object breaks any more has to go from its list.
SECRETS = "secrets as files: MLflow, its client and KubeRay read theirs from the environment; the database's is a file"
CHARTS = {
    "CKV_K8S_15": "always pull: tags are immutable in ECR, and a node that has the image starts without the registry",
    "CKV_K8S_35": SECRETS,
    "CKV_K8S_43": "digest: as above; the tag names the version, which a digest does not",
}
MANIFESTS = CHARTS | {
    "CKV_K8S_38": "tokens: autoscalers and CronJobs call Kubernetes' API; test_network.py: nobody else"
}


def failed(folder: Path, *words: str | Path) -> Found:
    """What is broken in the folders or files of a folder, by the first part of their path."""
    command = [tool("checkov"), *words, "--output", "json", "--quiet", "--skip-download"]
    report: dict[str, Any] = json.loads(run(command, cwd=folder, ok=False).stdout)
    assert report["summary"]["passed"] > 100, "it looked at something"
    assert report["summary"]["parsing_errors"] == 0
    found: Found = {}
    for check in report["results"]["failed_checks"]:
        first, _, rest = check["file_path"].lstrip("/").partition("/")
        found.setdefault(first, {}).setdefault(check["check_id"], []).append(f"{rest}: {check['resource']}")
    return found


# --- Terraform --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def terraform(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("terraform")
    copy_with(folder / "clean")
    copy_with(folder / "faulty", *FAULTS.values())
    return failed(folder, "--directory", ".", "--config-file", "clean/checkov.yaml")


def test_nothing_is_found_in_terraform(terraform: Found) -> None:
    assert terraform.get("clean", {}) == {}


@pytest.mark.parametrize(
    ("rule", "file"),
    [
        ("CKV_AWS_17", "modules/rds/main.tf"),  # public database
        ("CKV_AWS_16", "modules/rds/main.tf"),  # unencrypted database
        ("CKV_AWS_54", "modules/s3/main.tf"),  # public bucket
        ("CKV_AWS_51", "modules/ecr/main.tf"),  # mutable tags
        ("CKV_AWS_7", "modules/kms/main.tf"),  # no rotation
    ],
)
def test_the_faults_are_found_in_terraform(rule: str, file: str, terraform: Found) -> None:
    assert any(line.startswith(f"{file}: ") for line in terraform["faulty"][rule]), terraform["faulty"]


def test_every_exception_of_terraform_has_a_reason() -> None:
    config = (TERRAFORM / "checkov.yaml").read_text()
    listed = yaml.safe_load(config)["skip-check"]
    assert re.findall(r"^ +- (\w+) +# \w.{30,}$", config, re.MULTILINE) == listed
    beside = "\n".join(file.read_text() for file in TERRAFORM.rglob("*.tf"))
    assert len(re.findall(r"checkov:skip=\w+:\w.{20,}", beside)) == beside.count("checkov:skip")


# --- Kubernetes -------------------------------------------------------------------------------------------------------


def pods_of_ray(objects: list[Json]) -> list[Json]:
    """The pods that KubeRay makes, as Pods; the submitters, which end, as Jobs. checkov knows no Ray objects."""
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


def planted_chart(folder: Path, given: Path) -> list[Json]:
    """The chart, whose containers may gain rights."""
    chart = Path(shutil.copytree(charts.CHART, folder / "chart"))
    charts.damage(chart / "templates/_helpers.tpl", "allowPrivilegeEscalation: false", "allowPrivilegeEscalation: true")
    return [obj for _, obj in charts.mlflow(given, chart=chart)]


@pytest.fixture(scope="module")
def kubernetes(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Of the chart with each file of values, of both environments with the jobs that they share, and of faults."""
    folder = tmp_path_factory.mktemp("kubernetes")
    given = folder / "given"
    given.write_text(yaml.safe_dump(charts.GIVEN))
    everything = [obj for environment in ENVIRONMENTS for obj in rendered(environment)] + list(jobs().values())
    pods = pods_of_ray(everything)
    privileged = json.loads(json.dumps(pods[0]))
    privileged["spec"]["containers"][0]["securityContext"] = {"privileged": True}
    files = {
        **{name: [obj for _, obj in charts.mlflow(*files, given)] for name, files in charts.FILES.items()},
        "manifests": [*everything, *pods],
        "planted-chart": planted_chart(folder, given),
        "planted-pod": [privileged],
    }
    for name, objects in files.items():
        (folder / f"{name}.yaml").write_text(dump(objects))
    return failed(folder, *(word for name in files for word in ("-f", f"{name}.yaml")), "--framework", "kubernetes")


@pytest.mark.parametrize(("file", "skipped"), [*((name, CHARTS) for name in charts.FILES), ("manifests", MANIFESTS)])
def test_only_rules_with_a_reason_are_broken(file: str, skipped: Mapping[str, str], kubernetes: Found) -> None:
    assert {rule: found for rule, found in kubernetes[f"{file}.yaml"].items() if rule not in skipped} == {}


def test_no_rule_is_skipped_for_nothing(kubernetes: Found) -> None:
    assert set(MANIFESTS) <= set(kubernetes["manifests.yaml"])
    assert set(CHARTS) <= {rule for name in charts.FILES for rule in kubernetes[f"{name}.yaml"]}


def test_planted_faults_are_found(kubernetes: Found) -> None:
    assert ": Deployment.mlflow.mlflow" in kubernetes["planted-chart.yaml"]["CKV_K8S_20"]
    assert len(kubernetes["planted-pod.yaml"]["CKV_K8S_16"]) == 1
