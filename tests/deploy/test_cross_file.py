"""What has to be the same in several files: versions, names, GPUs, the serve config."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from tests.deploy import manifest_rules as rules
from tests.deploy.manifests import copied, load, planted, rendered, the
from tests.deploy.tools import ROOT, VERSIONS
from tests.unit.serve.test_configs import unknown_keys

JOB_FOLDER = "cluster/manifests/ray/rayjobs"
SERVICE, CLUSTER = "cluster/manifests/ray/rayservice.yaml", "cluster/manifests/ray/raycluster-dev.yaml"
QUOTAS, QUEUES = "cluster/manifests/base/quotas.yaml", "cluster/manifests/kueue/queues.yaml"
CHECKS = [rules.one_version, rules.model_name, rules.spot]
SERVE_CONFIGS = {"prod": "production.yaml", "dev": "staging.yaml"}


# --- versions, names, spot, GPUs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_object_keeps(check: Any):
    assert rules.faults(check) == []


PLANTED = [
    (rules.one_version, CLUSTER, "rayVersion: 2.60.0", "rayVersion: 2.59.0", "spec.rayVersion: is 2.59.0"),
    (
        rules.one_version,
        f"{JOB_FOLDER}/tune.yaml",
        "-ray2.60.0-cuda",
        "-ray2.59.0-cuda",
        ".image: is rayapp:0.2.0-ray2.59",
    ),
    (rules.one_version, f"{JOB_FOLDER}/tune.yaml", "-ray2.60.0-cuda", "-ray2.60.0", "in a group with GPUs"),
    (rules.one_version, "cluster/manifests/base/redis.yaml", "redis:7.4.6-alpine", "redis:latest", "is not pinned"),
    (
        rules.model_name,
        f"{JOB_FOLDER}/evaluate.yaml",
        "models:/vision@",
        "models:/version@",
        "names the model 'version'",
    ),
    (
        rules.spot,
        SERVICE,
        "serviceAccountName",
        "tolerations: [{operator: Exists}]\n          serviceAccountName",
        "spot",
    ),
    (rules.spot, CLUSTER, "rayapp.io/pool: cpu", "rayapp.io/pool: gpu", "nodeSelector: pool gpu"),
]


@pytest.mark.parametrize(("check", "file", "old", "new", "told"), PLANTED)
def test_a_planted_fault_is_found(check: Any, file: str, old: str, new: str, told: str, tmp_path: Path):
    rules.assert_told(check, file, planted(copied(tmp_path), file, old, new), told)


def test_versions_are_those_of_the_package():
    pins = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")

    assert pins["ray"] == VERSIONS["RAY_VERSION"]
    assert pins["mlflow"] == VERSIONS["MLFLOW_VERSION"]
    assert f'version = "{VERSIONS["RAYAPP_VERSION"]}"' in project


def test_no_more_than_five_gpus():
    assert rules.gpus() == []


@pytest.mark.parametrize(
    ("file", "old", "new", "told"),
    [
        (
            CLUSTER,
            "maxReplicas: 5",
            "maxReplicas: 6",
            "RayCluster/dev: workerGroupSpecs.maxReplicas: 6 GPUs, at most 5",
        ),
        (
            f"{JOB_FOLDER}/train.yaml",
            "maxReplicas: 2",
            "maxReplicas: 8",
            "RayJob/train-: workerGroupSpecs.maxReplicas: 8",
        ),
        (QUOTAS, 'nvidia.com/gpu: "5"', 'nvidia.com/gpu: "50"', "spec.hard[requests.nvidia.com/gpu]: is not 5"),
        (
            QUEUES,
            'nvidia.com/gpu, nominalQuota: "5"',
            'nvidia.com/gpu, nominalQuota: "6"',
            "ClusterQueue/rayapp: nominal",
        ),
    ],
)
def test_a_sixth_gpu_is_found(file: str, old: str, new: str, told: str, tmp_path: Path):
    lines = rules.gpus(planted(copied(tmp_path), file, old, new))

    assert any(line.startswith(f"{file}: ") and told in line for line in lines), lines


# --- serve config -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("environment", "name"), SERVE_CONFIGS.items())
def test_embedded_serve_config_is_the_file_and_serve_knows_every_key(environment: str, name: str):
    embedded = the("RayService", "vision", rendered(environment))["spec"]["serveConfigV2"]

    assert embedded == (ROOT / "serve_configs" / name).read_text(encoding="utf-8")
    values = yaml.safe_load(embedded)
    assert unknown_keys(ServeDeploySchema, values) == []
    assert ServeDeploySchema.model_validate(values).applications[0].name == "vision"


def test_a_misspelt_key_of_the_embedded_config_is_found(tmp_path: Path):
    root = planted(copied(tmp_path), SERVICE, "max_ongoing_requests", "max_ongoing_request")

    assert unknown_keys(ServeDeploySchema, rules.serve_config(load(root / SERVICE))) == [
        "applications[0].deployments[0].max_ongoing_request"
    ]
