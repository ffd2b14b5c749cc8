"""The DAGs, run by Airflow itself (`airflow dags test`) against a stand-in for the Kubernetes API."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.deploy.airflow_tools import (
    BAG,
    DAGS,
    SCHEMA,
    Airflow,
    read_dags,
    rendered_templates,
    stand_in,
    template,
    templates,
)
from tests.deploy.stand_in_kubernetes import CONFIG_MAPS, RAYJOBS, RUNNING, STOPPED, SUCCEEDED, StandIn, failed
from tests.deploy.tools import ROOT

# DAG -> its tasks, which are the names of its RayJobs, in order.
TASKS = {
    "daily_training": ["train"],
    "evaluation_and_promotion": ["evaluate", "promote"],
    "weekly_tuning": ["tune", "promote"],
}
BAD_SETTINGS = failed(2, "data.dataset: 'digit' is none of digits, cifar10")

# A DAG whose RayJob has a second, and prints what it is told.
IMPATIENT = """
from datetime import timedelta
from airflow.sdk import DAG
from rayjobs.dag import SETTINGS
from rayjobs.operator import RayJobOperator

with DAG("impatient", schedule=None, **SETTINGS):
    RayJobOperator(task_id="train", job="train", timeout=timedelta(seconds=1))
"""


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    with Airflow(tmp_path_factory.mktemp("airflow")) as here:
        yield here


@pytest.fixture(scope="module")
def dags(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """What Airflow reads in jobs/dags, and what it says meanwhile."""
    return read_dags(DAGS, tmp_path_factory.mktemp("dags"))


# --- reading ----------------------------------------------------------------------------------------------------------


def test_all_dags_are_read_without_errors_and_warnings(dags, capsys):
    bag, said = dags

    with capsys.disabled():
        print(f"\nthe DAGs are read in {bag['seconds']:.2f} s")
    assert bag["errors"] == {}
    assert bag["warnings"] == {}
    assert "warning" not in said.lower(), said
    assert {dag_id: [task["task_id"] for task in dag["tasks"]] for dag_id, dag in bag["dags"].items()} == TASKS
    for dag in bag["dags"].values():
        assert (dag["catchup"], dag["max_active_runs"]) == (False, 1)
        for task in dag["tasks"]:
            assert task["retries"] == 2
            assert task["delays"] == [300, 2]  # backs off: 5 to 10 minutes, then 10 to 20
            assert task["execution_timeout_s"] == 600
            assert 3600 <= task["timeout_s"] <= 16 * 3600
            assert task["alerts"] == ["WebhookAlert"]
            if task["entrypoint"]:
                assert (ROOT / task["entrypoint"].split()[1]).is_file()


def test_a_broken_import_is_named(airflow, tmp_path):
    folder = shutil.copytree(DAGS, tmp_path / "dags")
    file = folder / "weekly_tuning.py"
    file.write_text(file.read_text().replace("import RayJobOperator", "import RayJobOperatr"))

    _, said = airflow.run("-c", f"import sys; sys.argv[1:] = [{str(folder)!r}]\n{BAG}")
    bag = json.loads(said.splitlines()[-1])

    assert list(bag["errors"]) == ["weekly_tuning.py"]
    assert "cannot import name 'RayJobOperatr'" in bag["errors"]["weekly_tuning.py"]


# --- running ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dag_id", TASKS)
def test_a_dag_succeeds_with_its_rayjobs(airflow, dag_id):
    with stand_in() as api:
        code, log = airflow.test(dag_id, api)

    assert code == 0, log
    assert [name.split("-")[0] for name in api.names()] == TASKS[dag_id]
    assert api.refused == []
    assert api.deleted == []
    assert airflow.alerts == []
    assert log.count("Pausing task as DEFERRED") == len(TASKS[dag_id])  # waited once, KubeRay's own retry included
    for phase in ("Initializing", "Running RUNNING", "Retrying FAILED", "Complete SUCCEEDED"):
        assert f"RayJob rayapp/{api.names()[0]}: {phase}" in log


@pytest.mark.parametrize("dag_id", TASKS)
def test_a_dag_fails_with_the_words_of_its_rayjob(airflow, dag_id):
    first = TASKS[dag_id][0]
    with stand_in(plan={first: [BAD_SETTINGS]}) as api:
        code, log = airflow.test(dag_id, api)

    assert code == 1
    (name,) = api.names()  # bad settings are not tried again, and no further task starts
    assert name.split("-")[0] == first
    assert f"RayJob rayapp/{name}: Failed FAILED, AppFailed: Job entrypoint command failed with exit code 2" in log
    assert "'digit' is none of digits" in log
    (alert,) = airflow.alerts
    assert alert.startswith(f"{dag_id}.{first} failed in manual__")
    assert "'digit' is none of digits" in alert
    assert airflow.webhook_url not in log


def test_the_rayjob_is_the_template_with_a_name_of_its_own(airflow):
    with stand_in() as api:
        airflow.test("evaluation_and_promotion", api)

    evaluate, promote = api.created
    given = yaml.safe_load(template("evaluate"))
    assert evaluate["spec"]["rayClusterSpec"] == given["spec"]["rayClusterSpec"] == promote["spec"]["rayClusterSpec"]
    assert [job["spec"]["entrypoint"] for job in api.created] == ["python jobs/evaluate.py", "python jobs/promote.py"]
    assert [job["spec"]["activeDeadlineSeconds"] for job in api.created] == [7200, 3600]
    assert [job["spec"].get("backoffLimit") for job in api.created] == [None, 0]
    labels, annotations = promote["metadata"]["labels"], promote["metadata"]["annotations"]
    assert labels["app.kubernetes.io/name"] == "evaluate"  # the template's own stay
    assert labels["rayapp.io/airflow-task"] != evaluate["metadata"]["labels"]["rayapp.io/airflow-task"]
    assert annotations["rayapp.io/airflow-dag"] == "evaluation_and_promotion"
    assert annotations["rayapp.io/airflow-try"] == "1"


def test_the_templates_of_the_platform_serve_the_dags(airflow, dags):
    given = rendered_templates()
    bag, _ = dags
    with stand_in(templates=given) as api:
        code, log = airflow.test("evaluation_and_promotion", api)

    assert {task["template"] for dag in bag["dags"].values() for task in dag["tasks"]} <= set(given)
    assert code == 0, log
    assert api.refused == []


@pytest.mark.parametrize("end", [failed(1, "the node is gone"), STOPPED], ids=["failed", "stopped"])
def test_a_failed_rayjob_is_tried_again_as_another_one(airflow, end):
    with stand_in(plan={"train": [end, SUCCEEDED]}) as api:
        code, log = airflow.test("daily_training", api)

    assert code == 0, log
    first, second = api.names()
    assert (first[-2:], second[-2:]) == ("-1", "-2")
    assert airflow.alerts == []


def test_a_rayjob_that_fails_in_each_try_fails_the_run(airflow):
    with stand_in(plan={"train": [failed(1, "out of memory")]}) as api:
        code, _ = airflow.test("daily_training", api)

    assert code == 1
    assert [name[-2:] for name in api.names()] == ["-1", "-2", "-3"]
    (alert,) = airflow.alerts  # one, at the end
    assert "try 3" in alert


def test_a_retry_waits_for_the_rayjob_whose_creation_was_not_answered(airflow):
    with stand_in(answers={("POST", RAYJOBS): [500]}) as api:
        code, log = airflow.test("daily_training", api)

    assert code == 0, log
    (name,) = api.names()
    assert f"RayJob rayapp/{name} of an earlier try still runs: waiting for it" in log


def test_a_retry_waits_for_the_rayjob_that_its_trigger_lost(airflow):
    with stand_in(answers={("GET", f"{RAYJOBS}/"): [403]}) as api:
        code, log = airflow.test("daily_training", api)

    assert code == 0, log
    assert len(api.names()) == 1
    assert "the API server refuses: 403" in log


def test_waiting_outlives_an_api_server_that_is_down_for_a_while(airflow):
    with stand_in(answers={("GET", f"{RAYJOBS}/"): [500, 503, 429]}) as api:
        code, log = airflow.test("daily_training", api)

    assert code == 0, log
    assert len(api.names()) == 1
    assert log.count("asking again") == 3
    assert log.count("Pausing task as DEFERRED") == 1


def test_a_promotion_that_the_gate_refuses_is_skipped_and_alerts_nobody(airflow):
    with stand_in(plan={"promote": [failed(3, "not better than version 7")]}) as api:
        code, log = airflow.test("evaluation_and_promotion", api)

    assert code == 0, log
    assert [name.split("-")[0] for name in api.names()] == ["evaluate", "promote"]
    assert "not better than version 7" in log
    assert "state=skipped" in log
    assert airflow.alerts == []


# --- stopping ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def impatient(airflow: Airflow) -> tuple[int, str, StandIn]:
    """A run whose RayJob does not end: exit code, log, Kubernetes."""
    (airflow.dags / "impatient.py").write_text(IMPATIENT)
    with stand_in(plan={"train": [RUNNING]}) as api:
        return *airflow.test("impatient", api), api


def test_a_rayjob_that_takes_too_long_is_deleted_and_not_tried_again(impatient):
    code, log, api = impatient

    assert code == 1
    assert api.deleted == api.names()
    assert len(api.names()) == 1
    assert api.created[0]["spec"]["activeDeadlineSeconds"] == 1  # KubeRay does it where Airflow is down
    assert "not finished in time, last seen: " in log  # what that is depends on how far it comes in a second


def test_the_role_allows_what_the_tasks_do_and_no_more(impatient):
    _, _, api = impatient
    role, _ = yaml.safe_load_all((ROOT / "cluster/manifests/base/airflow-rbac.yaml").read_text())

    done = {f"{method} {path}".replace(api.names()[0], "NAME") for method, path in api.asked}
    asked = {
        f"GET {CONFIG_MAPS}/rayjob-templates": ("configmaps", "get"),
        f"GET {RAYJOBS}": ("rayjobs", "list"),
        f"GET {RAYJOBS}/NAME": ("rayjobs", "get"),
        f"POST {RAYJOBS}": ("rayjobs", "create"),
        f"DELETE {RAYJOBS}/NAME": ("rayjobs", "delete"),
    }
    assert done == set(asked)
    allowed = {(name, verb) for rule in role["rules"] for name in rule["resources"] for verb in rule["verbs"]}
    assert allowed == set(asked.values())


@pytest.mark.parametrize("who", ["trigger", "operator"])
def test_a_task_that_somebody_stops_deletes_its_rayjob(airflow, who):
    code = {
        "trigger": "import asyncio; from rayjobs.trigger import RayJobTrigger as Trigger\n"
        "t = Trigger(name='train-1', conn_id='kubernetes_default', give_up_at=0, poll_interval_s=1)\n"
        "asyncio.run(t.on_kill()); asyncio.run(t.on_kill())",
        "operator": "from datetime import timedelta; from rayjobs.operator import RayJobOperator\n"
        "o = RayJobOperator(task_id='train', job='train', timeout=timedelta(hours=1))\n"
        "o.on_kill(); o.rayjob = 'train-1'; o.on_kill(); o.on_kill()",
    }[who]
    rayjob = yaml.safe_load(template("train"))
    rayjob["metadata"] = {"name": "train-1"}
    with stand_in() as api:
        api.answer("POST", RAYJOBS, rayjob)
        api.kubeconfig(airflow.folder)
        status, log = airflow.run("-c", code)

    assert status == 0, log
    assert api.deleted == ["train-1"]
    assert len(api.refused) == 1  # the second time it is gone, and that is no error


# --- templates that are wrong -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tune.yaml": template("tune")}, "train.yaml is missing; the ConfigMap has: tune.yaml"),
        ({"train.yaml": "a: [b"}, "train.yaml is not YAML"),
        ({"train.yaml": template("train").replace("RayJob", "RayCluster")}, "train.yaml: kind is 'RayCluster'"),
        ({"train.yaml": template("train").replace("entrypoint", "entry")}, "train.yaml: spec.entrypoint is missing"),
    ],
)  # fmt: skip
def test_a_wrong_template_is_named_and_not_tried_again(airflow, given, said):
    with stand_in(templates=given) as api:
        code, log = airflow.test("daily_training", api)

    assert code == 1
    assert f"ConfigMap rayapp/rayjob-templates: {said}" in log
    assert api.names() == []
    assert len(airflow.alerts) == 1


def test_what_kubernetes_refuses_is_said(airflow):
    if SCHEMA is None or not SCHEMA.is_file():
        pytest.skip("the schema of ray.io is not beside the repository: fields of RayJobs are not checked here")
    misspelt = {"train.yaml": template("train").replace("shutdownAfterJobFinishes", "shutdownAfterJobFinish")}
    with stand_in(templates={**templates(), **misspelt}) as api:
        code, log = airflow.test("daily_training", api)

    assert code == 1
    assert "'shutdownAfterJobFinish' was unexpected" in log
    assert "is not created" in log
