"""cluster/manifests: rendered for both environments, valid in strict schemas, and with what each object promises."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayapp.serve.haproxy import HAPROXY_ENV
from tests.deploy import manifest_rules as rules
from tests.deploy.manifests import (
    ENVIRONMENTS,
    EXAMPLES,
    FOLDER,
    VALUES,
    Json,
    copied,
    jobs,
    planted,
    render,
    rendered,
    rendered_text,
    the,
)
from tests.deploy.tools import ROOT, kube_validate, python, run

CHECKS = [rules.operator, rules.security, rules.resources, rules.probes, rules.shared_memory]
RAYSERVICE = "cluster/manifests/ray/rayservice.yaml"
DEV = "cluster/manifests/ray/raycluster-dev.yaml"
# Custom resources whose schemas are not at hand; their kinds are looked at one by one below.
UNCHECKED = {"external-secrets.io", "kueue.x-k8s.io", "monitoring.coreos.com"}


# --- schemas and rules ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_all_objects_are_valid_in_strict_schemas(environment: str):
    done = kube_validate(rendered_text(environment))

    assert done.returncode == 0, done.stdout + done.stderr
    unchecked = sum(obj["apiVersion"].split("/")[0] in UNCHECKED for obj in rendered(environment))
    assert f"{len(rendered(environment))} objects, 0 bad, {unchecked} skipped" in done.stdout + done.stderr


def test_job_templates_and_examples_are_valid_in_strict_schemas():
    texts = [path.read_text(encoding="utf-8") for path in [*sorted((FOLDER / "ray/rayjobs").glob("*.yaml")), *EXAMPLES]]
    done = kube_validate("---\n".join(texts))

    assert done.returncode == 0, done.stdout + done.stderr


def test_a_misspelt_field_is_found(tmp_path: Path):
    root = planted(copied(tmp_path), DEV, "maxReplicas", "maxReplica")

    done = kube_validate(render("dev", root=root))

    assert done.returncode == 1
    assert "RayCluster/dev" in done.stdout + done.stderr
    assert "maxReplica" in done.stdout + done.stderr


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_object_keeps(check: Any):
    assert rules.faults(check) == []


PLANTED = [
    (rules.operator, DEV, "version: v2", "version: v1", f"{DEV}: RayCluster/dev: spec.workerGroupSpecs[0].idleTimeout"),
    (rules.security, RAYSERVICE, "runAsUser: 10001", "runAsUser: 0", "runAsNonRoot: the pod"),
    (
        rules.security,
        DEV,
        "readOnlyRootFilesystem: true",
        "readOnlyRootFilesystem: false",
        "readOnlyRootFilesystem: is",
    ),
    (rules.security, "cluster/manifests/base/redis.yaml", "drop: [ALL]", "add: [ALL]", "securityContext.capabilities"),
    (rules.resources, DEV, "nvidia.com/gpu: 1", "nvidia.com/gpu: 2", "nvidia.com/gpu differ"),
    (rules.probes, RAYSERVICE, "readinessProbe", "startupProbe", "readinessProbe: is missing"),
    (rules.probes, DEV, "path: /api/gcs_healthz", "path: ''", "readinessProbe: is missing or asks nothing"),
    (rules.shared_memory, DEV, "medium: Memory", "medium: ''", "/dev/shm is not in memory"),
]


@pytest.mark.parametrize(("check", "file", "old", "new", "told"), PLANTED)
def test_a_planted_fault_is_found(check: Any, file: str, old: str, new: str, told: str, tmp_path: Path):
    rules.assert_told(check, file, planted(copied(tmp_path), file, old, new), told)


# --- generated files --------------------------------------------------------------------------------------------------


def generate(root: Path, *words: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
    return run([python(), "-B", root / "cluster/manifests/generate.py", *words], cwd=root, ok=ok)


def test_what_is_committed_is_what_the_generator_writes():
    assert generate(ROOT, "--check").stdout == ""


def test_a_change_of_a_source_or_a_generated_file_is_found_and_written_once(tmp_path: Path):
    root = planted(copied(tmp_path), "serve_configs/production.yaml", "max_queue: 1024", "max_queue: 512")
    planted(root, "cluster/manifests/ray/rayjobs/train.yaml", "backoffLimit: 2", "backoffLimit: 9")

    told = generate(root, "--check", ok=False)
    assert told.returncode == 1
    assert "rayjobs/train.yaml is not what its sources say" in told.stdout
    assert "ray/rayservice.yaml is not what its sources say" in told.stdout

    assert "wrote cluster/manifests/ray/rayservice.yaml" in generate(root).stdout
    assert generate(root).stdout == ""
    assert generate(root, "--check").returncode == 0


# --- render.sh --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(VALUES) - {"PYTHON"}))
def test_a_missing_value_is_said(name: str):
    done = run([ROOT / "cluster/scripts/render.sh", "dev"], env=VALUES | {name: ""}, ok=False)

    assert done.returncode == 2
    assert f"{name} is not set" in done.stderr
    assert done.stdout == ""


def test_another_environment_is_refused():
    done = run([ROOT / "cluster/scripts/render.sh", "stage"], env=VALUES, ok=False)

    assert (done.returncode, "say dev or prod, not 'stage'" in done.stderr) == (2, True)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_values_and_registry_are_everywhere(environment: str):
    objects = rendered(environment)
    templates = [yaml.safe_load(text) for text in the("ConfigMap", "rayjob-templates", objects)["data"].values()]
    images = [one["image"] for obj in [*objects, *templates] for _, one in rules.containers(obj)]

    assert "${" not in rendered_text(environment)
    assert the("ConfigMap", "rayapp-settings", objects)["data"]["RAYAPP_BUCKET"] == VALUES["BUCKET"]
    assert len(images) >= 15
    assert {image for image in images if not image.startswith(f"{VALUES['REGISTRY']}/rayapp:")} == {
        the("StatefulSet", "redis", objects)["spec"]["template"]["spec"]["containers"][0]["image"]
    }


def test_a_value_can_break_out_of_nothing():
    bucket = 'x"\n- kind: Secret # ${DOMAIN}'
    (obj,) = (o for o in yaml.safe_load_all(render("dev", BUCKET=bucket)) if o["metadata"]["name"] == "rayapp-settings")

    assert obj["data"]["RAYAPP_BUCKET"].startswith('x"\n- kind: Secret')


def test_a_placeholder_that_nothing_fills_is_an_error(tmp_path: Path):
    root = planted(copied(tmp_path), "cluster/manifests/base/settings.yaml", "${BUCKET}", "${BUKET}")

    done = run([root / "cluster/scripts/render.sh", "prod"], env=VALUES, ok=False)

    assert done.returncode == 1
    assert "ConfigMap/rayapp-settings.data.RAYAPP_BUCKET: nothing replaces ${BUKET}" in done.stderr


def test_the_small_environment_sleeps_until_it_is_woken():
    for awake in ("", "true"):
        objects = list(yaml.safe_load_all(render("dev", AWAKE=awake)))
        sleepers = [the("RayCluster", "dev", objects), the("RayService", "vision", objects)]
        assert [obj["spec"]["suspend"] for obj in sleepers] == [awake != "true"] * 2
    assert all("suspend" not in obj["spec"] for obj in rendered("prod") if obj["kind"] in ("RayCluster", "RayService"))


def test_what_is_not_installed_is_left_out_and_irsa_roles_are_put_in():
    role = "arn:aws:iam::111122223333:role/jobs"
    text = render("dev", WITHOUT="kueue.x-k8s.io monitoring.coreos.com", RAY_JOBS_ROLE_ARN=role)
    objects = list(yaml.safe_load_all(text))

    assert {obj["apiVersion"].split("/")[0] for obj in objects} & UNCHECKED == {"external-secrets.io"}
    account = the("ServiceAccount", "ray-jobs", objects)
    assert account["metadata"]["annotations"] == {"eks.amazonaws.com/role-arn": role}
    assert "annotations" not in the("ServiceAccount", "ray-serve", objects)["metadata"]


# --- what is promised -------------------------------------------------------------------------------------------------


def group_of(cluster: Json, name: str) -> Json:
    (group,) = (one for one in cluster["workerGroupSpecs"] if one["groupName"] == name)
    return group


def test_the_development_cluster():
    spec = the("RayCluster", "dev", rendered("prod"))["spec"]
    gpu = group_of(spec, "gpu")

    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert (spec["enableInTreeAutoscaling"], spec["autoscalerOptions"]["version"]) == (True, "v2")
    assert spec["autoscalerOptions"]["idleTimeoutSeconds"] == 300
    assert (gpu["replicas"], gpu["minReplicas"], gpu["maxReplicas"]) == (0, 0, 5)
    assert gpu["template"]["spec"]["nodeSelector"] == {"rayapp.io/pool": "gpu"}


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_clusters_that_stay_want_a_token_and_survive_their_head(environment: str):
    objects = rendered(environment)
    service = the("RayService", "vision", objects)["spec"]

    for cluster in (the("RayCluster", "dev", objects)["spec"], service["rayClusterConfig"]):
        assert cluster["authOptions"] == {"mode": "token"}
        password = cluster["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]["secretKeyRef"]
        assert password == {"name": "ray-redis", "key": "password"}
        assert cluster["gcsFaultToleranceOptions"]["redisAddress"] == "redis.rayapp.svc.cluster.local:6379"
    assert all(job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"} for job in jobs().values())


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_service(environment: str):
    spec = the("RayService", "vision", rendered(environment))["spec"]
    cluster, config = spec["rayClusterConfig"], yaml.safe_load(spec["serveConfigV2"])
    group = group_of(cluster, "serve")
    worker = group["template"]["spec"]

    assert spec["upgradeStrategy"] == {"type": "NewCluster"}
    assert spec["rayClusterDeletionDelaySeconds"] > config["http_options"]["request_timeout_s"]
    assert worker["nodeSelector"] == cluster["headGroupSpec"]["template"]["spec"]["nodeSelector"]
    assert worker["nodeSelector"] == {"rayapp.io/pool": "cpu"}
    assert worker["containers"][0]["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": 3000}
    for one in (cluster["headGroupSpec"], group):
        ray = one["template"]["spec"]["containers"][0]
        env = {variable["name"]: variable.get("value") for variable in ray["env"]}
        assert env | HAPROXY_ENV == env, "HAProxy's flags on every pod"
        assert {"name": "serve", "containerPort": config["http_options"]["port"]} in ray["ports"]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_replicas_have_room_and_time_to_end(environment: str):
    spec = the("RayService", "vision", rendered(environment))["spec"]
    group = group_of(spec["rayClusterConfig"], "serve")
    deployment = yaml.safe_load(spec["serveConfigV2"])["applications"][0]["deployments"][0]
    per_pod = int(group["rayStartParams"]["num-cpus"]) // deployment["ray_actor_options"]["num_cpus"]
    scaling, worker = deployment["autoscaling_config"], group["template"]["spec"]

    assert group["minReplicas"] * per_pod >= scaling["min_replicas"]
    assert group["maxReplicas"] * per_pod >= scaling["max_replicas"]
    assert per_pod <= deployment["max_replicas_per_node"]
    assert group["minReplicas"] == {"dev": 1, "prod": 2}[environment]
    wait = int(worker["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert worker["terminationGracePeriodSeconds"] >= wait + deployment["graceful_shutdown_timeout_s"]


def test_keys_lie_where_the_service_looks():
    spec = the("RayService", "vision", rendered("prod"))["spec"]
    worker = group_of(spec["rayClusterConfig"], "serve")["template"]["spec"]
    path = Path(yaml.safe_load(spec["serveConfigV2"])["applications"][0]["args"]["api_keys"])
    mounts = {mount["mountPath"]: mount["name"] for mount in worker["containers"][0]["volumeMounts"]}
    volume = next(one for one in worker["volumes"] if one["name"] == mounts[str(path.parent)])
    external = the("ExternalSecret", volume["secret"]["secretName"], rendered("prod"))["spec"]

    assert [one["secretKey"] for one in external["data"]] == [path.name]
    assert external["secretStoreRef"] == {"kind": "ClusterSecretStore", "name": "aws"}


def test_jobs_can_be_queued_and_tried_again():
    queues = {obj["metadata"]["name"] for obj in rendered("prod") if obj["kind"] == "LocalQueue"}
    priorities = {obj["metadata"]["name"] for obj in rendered("prod") if obj["kind"] == "WorkloadPriorityClass"}

    assert len(queues) >= 2, "one for each team"
    for job in jobs().values():
        labels, spec = job["metadata"]["labels"], job["spec"]
        assert labels["kueue.x-k8s.io/queue-name"] in queues
        assert labels["kueue.x-k8s.io/priority-class"] in priorities
        assert spec["shutdownAfterJobFinishes"] is True, "Kueue wants it"
        assert not spec["rayClusterSpec"].get("enableInTreeAutoscaling"), "Kueue refuses it"
        assert ("--resume auto" in spec["entrypoint"]) or ("train.py" not in spec["entrypoint"])


def test_schedules_are_the_small_environments_only():
    crons = {obj["metadata"]["name"]: obj for obj in rendered("dev") if obj["kind"] == "CronJob"}

    assert set(crons) == {"pipeline-daily", "tune-weekly"}
    assert not [obj for obj in rendered("prod") if obj["kind"] == "CronJob"], "there Airflow has the schedules"
    for cron in crons.values():
        _, _, template, *_ = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["command"]
        assert Path(template).stem in jobs()
        assert cron["spec"]["concurrencyPolicy"] == "Forbid"
    assert not [obj for obj in rendered("dev") + rendered("prod") if obj["kind"] == "RayCronJob"], "alpha"
