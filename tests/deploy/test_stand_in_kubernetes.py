"""The stand-in for the Kubernetes API refuses what Kubernetes refuses; otherwise the runs of the DAGs prove little."""

from __future__ import annotations

import yaml

from tests.deploy.airflow_tools import stand_in, template
from tests.deploy.stand_in_kubernetes import CONFIG_MAPS, RAYJOBS
from tests.deploy.tools import shared


def test_what_kubernetes_refuses_is_refused():
    rayjob = {**yaml.safe_load(template("train")), "metadata": {"name": "train-1"}}
    api = stand_in()

    assert api.answer("POST", RAYJOBS, rayjob)[0] == 201
    assert api.answer("POST", RAYJOBS, rayjob)[0] == 409
    assert api.answer("POST", RAYJOBS, {**rayjob, "metadata": {"name": "t" * 48}})[0] == 422
    assert api.answer("POST", RAYJOBS, {**rayjob, "kind": "RayCluster"})[0] == 422
    assert api.answer("GET", f"{RAYJOBS}/train-2", None)[0] == 404
    assert api.answer("DELETE", f"{RAYJOBS}/train-2", None)[0] == 404
    assert api.answer("GET", "/api/v1/namespaces/rayapp/secrets/mlflow-client", None)[0] == 404
    assert len(api.refused) == 6


def test_a_field_that_ray_io_does_not_know_is_refused():
    shared("schemas/kuberay-1.7.0/RayJob_v1.json")
    rayjob = yaml.safe_load(template("train").replace("shutdownAfterJobFinishes", "shutdownAfterJobFinish"))
    status, answer = stand_in().answer("POST", RAYJOBS, {**rayjob, "metadata": {"name": "train-1"}})

    assert status == 422
    assert answer["message"].startswith("$.spec: ")
    assert "'shutdownAfterJobFinish' was unexpected" in answer["message"]


def test_a_rayjob_goes_one_step_at_each_look():
    api = stand_in()
    api.answer("POST", RAYJOBS, {**yaml.safe_load(template("train")), "metadata": {"name": "train-1"}})

    looks = [api.answer("GET", f"{RAYJOBS}/train-1", None)[1].get("status", {}) for _ in range(8)]

    phases = [look.get("jobDeploymentStatus") for look in looks]
    assert phases == [None, "Initializing", "Running", "Retrying", "Running", *["Complete"] * 3]
    assert api.answer("DELETE", f"{RAYJOBS}/train-1", None)[0] == 200
    assert api.answer("GET", f"{RAYJOBS}/train-1", None)[0] == 404
    assert api.answer("GET", f"{CONFIG_MAPS}/rayjob-templates", None)[0] == 200
