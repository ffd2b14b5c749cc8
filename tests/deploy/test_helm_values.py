"""The values that we give to upstream charts. The charts cannot be fetched here: checked is what is ours in them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from tests.deploy.chart_rules import faults
from tests.deploy.tools import ROOT, VERSIONS

HELM_VALUES = ROOT / "cluster/helm-values"


def upstream(*names: str) -> Sequence[Path]:
    return sorted(
        path for path in HELM_VALUES.glob("*.yaml") if not names or path.stem.removesuffix("-standard") in names
    )


@pytest.mark.parametrize("file", upstream(), ids=lambda file: file.stem)
def test_upstream_values_belong_to_a_chart_and_hold_no_secret(file: Path) -> None:
    prefix = file.stem.removesuffix("-standard").removesuffix("-lean").upper().replace("-", "_")
    version = VERSIONS.get(f"{prefix}_CHART_VERSION", "")
    assert re.fullmatch(r"\d+\.\d+\.\d+", version), f"cluster/versions.env: {prefix}_CHART_VERSION is {version!r}"
    values = yaml.safe_load(file.read_text())
    as_object = {"kind": "Values", "metadata": {"name": file.stem}, "data": values}
    assert faults([(file.name, as_object)]) == []
    assert not re.search(r"tag: [\"']?(latest|nightly|main)", file.read_text()), f"{file.name}: a tag that moves"


def test_the_operators_alpha_gates_are_off_and_its_version_is_the_platforms() -> None:
    values = yaml.safe_load((HELM_VALUES / "kuberay-operator.yaml").read_text())
    gates = {gate["name"]: gate["enabled"] for gate in values["featureGates"]}
    beta = {
        "RayClusterStatusConditions",
        "RayJobDeletionPolicy",
        "RayMultiHostIndexing",
        "RayServiceIncrementalUpgrade",
    }
    assert {name for name, enabled in gates.items() if enabled} == beta
    assert len(gates) == 11  # all that KubeRay 1.7.0 has
    versions = {
        values["image"]["tag"],
        *(f"v{VERSIONS[name]}" for name in ("KUBERAY_VERSION", "KUBERAY_OPERATOR_CHART_VERSION")),
    }
    assert len(versions) == 1, versions
    assert values["singleNamespaceInstall"] is True
    assert values["watchNamespace"] == ["rayapp"]


def test_while_kueue_is_away_only_what_it_queues_waits() -> None:
    """Its chart's webhooks have failurePolicy Fail: they stopped every Job and RayCluster of all namespaces."""
    kueue, standard = (
        yaml.safe_load((HELM_VALUES / f"{name}.yaml").read_text()) for name in ("kueue", "kueue-standard")
    )
    config = yaml.safe_load(kueue["managerConfig"]["controllerManagerConfigYaml"])
    assert config["managedJobsNamespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "rayapp"}}
    assert standard["controllerManager"]["replicas"] == 2


def test_the_autoscaler_is_made_for_the_clusters_kubernetes() -> None:
    values = yaml.safe_load((HELM_VALUES / "cluster-autoscaler.yaml").read_text())
    assert values["image"]["tag"].startswith(f"v{VERSIONS['KUBERNETES_VERSION']}.")
    assert values["rbac"]["serviceAccount"]["name"] == "cluster-autoscaler"
    assert values["extraArgs"]["skip-nodes-with-local-storage"] is False


def test_no_upstream_chart_opens_an_ingress_or_a_load_balancer() -> None:
    for file in upstream():
        text = file.read_text()
        assert not re.search(r"type: (LoadBalancer|NodePort)", text), file.name
        assert not re.search(r"ingress:\s*(\{enabled: true|\n\s+enabled: true)", text), file.name
