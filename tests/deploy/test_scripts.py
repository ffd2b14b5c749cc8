"""What the scripts of cluster/scripts do with programs that play aws, helm, kubectl, terraform.

Each run happens in a copy of cluster/ and is followed by the same question (machine.py): does any secret stand in an
argument, on stdout or stderr, or in a file that is left?
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.machine import STARTED, WORLD, Machine, make_machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine with all settings, and an account in which nothing is yet."""
    return make_machine(tmp_path / "m")


@pytest.fixture(scope="module")
def first_setup(tmp_path_factory: pytest.TempPathFactory) -> tuple[Machine, str, list[str]]:
    """The machine, the output and the calls of a setup from nothing."""
    made = make_machine(tmp_path_factory.mktemp("setup") / "m")
    done = made.run("setup/all", "dev", "--yes")
    return made, done.stdout + done.stderr, made.calls(changing=False)


@pytest.fixture
def ready(first_setup: tuple[Machine, str, list[str]], tmp_path: Path) -> Machine:
    """A machine after setup, of its own."""
    shutil.copytree(first_setup[0].folder, tmp_path / "m")
    return Machine(tmp_path / "m")


@pytest.mark.parametrize("script", STARTED, ids=lambda path: path.stem)
def test_help_needs_no_settings(machine: Machine, script: Path) -> None:
    (machine.folder / "a b/cluster/settings.env").unlink()
    done = machine.run(f"{script.parent.name}/{script.stem}", "--help")
    assert done.stdout.startswith(f"usage: {script.name} dev|prod")
    assert not machine.calls(changing=False)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"DEV_DOMAIN": ""}, "does not set DOMAIN for dev"),
        ({"DOMIAN": "example.org"}, "'DOMIAN' is no setting"),
        ({"ALERT_EMAILS": "AKIA" + "IOSFODNN7EXAMPLE"}, "ALERT_EMAILS holds an access key"),
        ({"NAME": "$(touch owned)"}, "NAME has a character that no setting has"),
        ({"PROFILE": "big"}, "PROFILE is 'big': lean, standard or empty"),
        ({"GPU_NODES_MAX": "0"}, "GPU_NODES_MAX is '0': 1 to 5 or empty"),  # neither EKS nor Terraform takes it
        ({"POD_IAM": "IRSA"}, "POD_IAM is 'IRSA': pod_identity, irsa or empty"),
        ({"GPU_NODES_MAX": "6"}, "GPU_NODES_MAX is '6': 1 to 5 or empty"),
        (
            {"AWS_ACCOUNT_ID": "999999999999"},
            "you are signed in to account 111122223333, the settings say 999999999999",
        ),
    ],
)
def test_wrong_settings_are_named(machine: Machine, changes: dict[str, str], told: str) -> None:
    machine.settings(**changes)
    assert told in machine.run("setup/02-aws", "dev", "--yes", ok=False).stderr
    assert not machine.calls()


def test_the_environment_is_asked_for(machine: Machine) -> None:
    assert "environment is 'production': give dev or prod" in machine.run("ops/teardown", "production", ok=False).stderr
    assert "'--yse' is no option" in machine.run("ops/teardown", "dev", "--yse", ok=False).stderr
    assert "does not set DOMAIN for prod" in machine.run("ops/teardown", "prod", ok=False).stderr


def test_setup_from_nothing(first_setup: tuple[Machine, str, list[str]]) -> None:
    machine, printed, calls = first_setup
    order = [
        "sts get-caller-identity", "acm describe-certificate", "create-bucket", "put-bucket-versioning",
        "terraform init", "terraform plan", "terraform apply", "ecr describe-images",
        "helm upgrade --install kube-prometheus-stack",
        "helm upgrade --install aws-load-balancer-controller", "helm upgrade --install external-secrets",
        "put-secret-value", "helm upgrade --install mlflow", "port-forward",
        "kubectl wait --for=condition=Established", "helm upgrade --install kuberay-operator",
        "kubectl wait --for=condition=Ready pod/", "helm upgrade --install airflow",
        "kubectl wait --for=condition=Ready node",
    ]  # fmt: skip
    places = [next(number for number, call in enumerate(calls) if words in call) for words in order]
    assert places == sorted(places), printed
    assert "--version 9.9.9" in calls[places[8]]
    world = machine.world
    accounts = json.loads(world["vault"]["rayapp-dev/mlflow"]["AWSCURRENT"]["value"])
    assert world["users"] == {"admin": accounts["admin_password"], "ray": accounts["ray_password"]}
    assert {len(accounts[key]) for key in ("admin_password", "ray_password", "flask_secret_key")} == {40, 64}
    assert "PASS          a prediction" in printed
    assert "PASS          a RayJob trains to success" in printed
    assert not (machine.folder / "a b/cluster/.state/rayapp-dev/next-step").exists()


def test_a_second_setup_changes_nothing(ready: Machine) -> None:
    for script in (
        "00-credentials",
        "01-prerequisites",
        "02-aws",
        "03-addons",
        "04-mlflow",
        "05-kuberay",
        "07-airflow",
    ):
        ready.run(f"setup/{script}", "dev")
        assert ready.calls() == [], script
    ready.run("setup/06-verify-all", "dev", "--without-job")
    assert ready.calls() == []


def test_what_has_changed_is_applied_and_nothing_else(ready: Machine) -> None:
    values = ready.folder / "a b/cluster/helm-values/external-secrets.yaml"
    values.write_text("replicaCount: 2\n")
    ready.run("setup/03-addons", "dev")
    (call,) = ready.calls()
    assert call.startswith("helm upgrade --install external-secrets")
    assert f"--values {values}" in call


@pytest.mark.parametrize(
    ("script", "world", "told"),
    [
        ("00-credentials", {"offered": "t4g.nano\tg6.xlarge"}, "eu-central-1 offers no t3a.large, which the lean"),
        ("01-prerequisites", {"versions": {"kubectl": "Client Version: v1.38.1"}}, "kubectl is 1.38, at most 1.37"),
        ("01-prerequisites", {"versions": {"helm": "v3.11.0"}}, "helm is 3.11, needed is 3.19 or newer"),
        ("01-prerequisites", {"no_charts": ["0.19.4"]}, "(Error: chart not found): correct KUEUE_CHART_VERSION"),
    ],
)
def test_what_would_stop_the_setup_later_stops_it_before_it_costs_anything(
    machine: Machine, script: str, world: dict[str, Any], told: str
) -> None:
    versions = WORLD["versions"] | world.pop("versions", {})
    if "no_charts" in world:  # the machine's pins are all the same
        pins = machine.folder / "a b/cluster/versions.env"
        pins.write_text(f"{pins.read_text()}KUEUE_CHART_VERSION=0.19.4\n")
    machine.set(versions=versions, **world)
    assert told in machine.run(f"setup/{script}", "dev", ok=False).stderr


@pytest.mark.parametrize(
    ("quota", "told"),
    [(64.0, ""), (8.0, "is 8.0 cores, the CPU nodes of lean need 16"), (None, "is 5.0 cores, 5 GPU nodes need 20")],
)
def test_quotas_are_those_asked_for_or_else_the_defaults(machine: Machine, quota: float | None, told: str) -> None:
    machine.set(quota=quota)
    said = machine.run("setup/00-credentials", "dev").stderr
    assert told in said
    assert ("warning" in said) == bool(told)


@pytest.mark.parametrize(("version", "option"), [("v3.19.0", "--atomic"), ("v4.2.3", "--rollback-on-failure")])
def test_a_release_that_does_not_get_ready_is_rolled_back(ready: Machine, version: str, option: str) -> None:
    ready.set(versions=WORLD["versions"] | {"helm": version}, releases={})
    ready.run("setup/05-kuberay", "dev")
    assert any(f" {option} " in call for call in ready.calls() if call.startswith("helm upgrade"))


def test_a_dry_run_touches_nothing(ready: Machine) -> None:
    files = snapshot(ready)
    ready.set(terraform=["old"], releases={}, objects=[], vault={}, applied=[], images=False)
    (ready.folder / "a b/folder").mkdir()
    for script in STARTED:
        words = {"scale": ["gpu", "2"], "rotate-secrets": ["mlflow"], "backup": ["b"]}.get(script.stem, [])
        if script.stem != "restore":
            ready.run(f"{script.parent.name}/{script.stem}", "dev", *words, "--dry-run")
            assert ready.calls() == [], script
    (ready.folder / "a b/folder").rmdir()
    assert snapshot(ready) == files


def snapshot(machine: Machine) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in (machine.folder / "a b").rglob("*") if path.is_file()}


def test_setup_goes_on_where_it_stopped(machine: Machine) -> None:
    machine.set(fail=["helm upgrade --install cluster-autoscaler", 1])
    done = machine.run("setup/all", "dev", "--yes", ok=False)
    assert "helm could not install cluster-autoscaler" in done.stderr
    assert "03-addons did not end" in done.stderr
    done = machine.run("setup/all", "dev", "--yes")
    assert "going on with 03-addons" in done.stderr
    calls = "\n".join(machine.calls(changing=False))
    assert "terraform plan" not in calls
    assert "helm upgrade --install external-secrets" not in calls
    assert "helm upgrade --install cluster-autoscaler" in calls
    assert "PASS          a prediction" in done.stdout


@pytest.mark.parametrize("script", ["02-aws", "04-mlflow"])
def test_a_step_that_fails_anywhere_can_be_run_again(ready: Machine, script: str) -> None:
    blank = {"vault": {}, "users": {}, "releases": {}, "objects": [], "applied": [], "calls": []}
    blank |= {"bucket": {"exists": False, "versioning": False}}
    yes = ["--yes"] if script == "02-aws" else []
    ready.set(**blank)
    ready.run(f"setup/{script}", "dev", *yes)
    steps, whole = ready.calls(), ready.world
    assert len(steps) > 2
    for number, step in enumerate(steps):
        words = " ".join(step.split()[:3])
        nth = sum(earlier.startswith(words) for earlier in steps[: number + 1])
        ready.set(**blank, fail=[words, nth])
        ready.run(f"setup/{script}", "dev", *yes, ok=False)
        ready.set(fail=None)
        ready.run(f"setup/{script}", "dev", *yes)
        assert shape(ready.world) == shape(whole), step


def shape(world: dict[str, Any]) -> object:
    """The world without what is random."""
    releases = {name: mark for name, mark in world["releases"].items() if name != "airflow"}
    return sorted(set(world["objects"])), releases, sorted(world["vault"]), sorted(world["users"]), world["bucket"]


def test_verification_tells_what_is_wrong(ready: Machine) -> None:
    ready.set(policies=[], job="Failed FAILED", champion=404)
    done = ready.run("setup/06-verify-all", "dev", ok=False)
    assert "FAIL          namespace rayapp closes its pods but for what it lists: its policies are: none" in done.stdout
    assert re.search("FAIL          a RayJob trains to success: .* ended as Failed FAILED", done.stdout)
    assert "NOT VERIFIED  predictions: no model has the alias champion yet" in done.stdout
    ready.set(policies=WORLD["policies"], users={"admin": "x", "ray": "y"})
    assert (
        "FAIL          MLflow knows the user ray"
        in ready.run("setup/06-verify-all", "dev", "--without-job", ok=False).stdout
    )


def test_lean_has_no_airflow_and_no_prometheus(ready: Machine) -> None:
    ready.set(outputs=WORLD["outputs"] | {"profile": "lean"}, releases={}, objects=[])
    for script in ("03-addons", "07-airflow", "04-mlflow"):
        ready.run(f"setup/{script}", "dev")
    assert {"external-secrets", "mlflow"} < set(ready.world["releases"])
    assert not {"airflow", "kube-prometheus-stack"} & set(ready.world["releases"])
    assert "values-lean.yaml" in "\n".join(ready.calls())


def test_a_plan_that_destroys_says_so_and_asks(machine: Machine) -> None:
    machine.set(planned=[{"address": "module.rds.this", "change": {"actions": ["delete", "create"]}}])
    done = machine.run("setup/02-aws", "dev", stdin="yes\n", ok=False)
    assert "DESTROYS or replaces:\n  module.rds.this" in done.stderr
    assert "'yes' is not 'rayapp-dev': nothing was changed" in done.stderr
    assert not [call for call in machine.calls() if "terraform" in call]
    machine.run("setup/02-aws", "dev", stdin="rayapp-dev\n")
    assert "terraform apply" in "\n".join(machine.calls())


@pytest.mark.parametrize(
    "words",
    [("teardown",), ("rotate-secrets", "mlflow"), ("rotate-secrets", "serving", "--drop-old"), ("scale", "gpu", "1")],
)
def test_nothing_is_lost_without_the_cluster_s_name(ready: Machine, words: tuple[str, ...]) -> None:
    ready.set(nodegroup={"minSize": 0, "maxSize": 5, "desiredSize": 2})
    done = ready.run(f"ops/{words[0]}", "dev", *words[1:], stdin="rayapp-prod\n", ok=False)
    assert "'rayapp-prod' is not 'rayapp-dev': nothing was changed" in done.stderr
    assert ready.calls() == []
    ready.run(f"ops/{words[0]}", "dev", *words[1:], stdin="rayapp-dev\n")
    assert ready.calls()


def test_teardown_removes_what_terraform_does_not_know_first(ready: Machine) -> None:
    ready.run("ops/teardown", "dev", "--yes")
    calls, order = (
        ready.calls(),
        ("delete rayjobs", "delete ingress", "helm uninstall mlflow", "deletion_protection=false"),
    )
    places = [next(number for number, call in enumerate(calls) if words in call) for words in order]
    assert places == sorted(places)
    assert ready.world["terraform"] is None


def test_a_rotation_that_is_stopped_anywhere_loses_no_password(ready: Machine) -> None:
    before = ready.world
    ready.run("ops/rotate-secrets", "dev", "mlflow", "--yes")
    steps = ready.calls()
    assert ready.world["users"].keys() == before["users"].keys()
    for number in (1, 2, 3, 4):  # from the first password to the last mark in Secrets Manager
        words = " ".join(steps[number].split()[:3])
        nth = sum(step.startswith(words) for step in steps[: number + 1])
        ready.set(**{key: before[key] for key in ("vault", "users")}, fail=[words, nth])
        ready.run("ops/rotate-secrets", "dev", "mlflow", "--yes", ok=False)
        ready.set(fail=None)
        ready.run("ops/rotate-secrets", "dev", "mlflow", "--yes")
        accounts = json.loads(ready.world["vault"]["rayapp-dev/mlflow"]["AWSCURRENT"]["value"])
        assert ready.world["users"] == {"admin": accounts["admin_password"], "ray": accounts["ray_password"]}, steps[
            number
        ]


def test_a_new_api_key_stands_beside_the_old_until_it_is_dropped(ready: Machine) -> None:
    ready.run("ops/rotate-secrets", "dev", "serving", "--yes")
    keys = json.loads(ready.world["vault"]["rayapp-dev/serving"]["AWSCURRENT"]["value"])["keys.sha256"]
    assert re.fullmatch(r"([0-9a-f]{64} first\n){2}", keys)
    ready.run("ops/rotate-secrets", "dev", "serving", "--yes", "--drop-old")
    secret = json.loads(ready.world["vault"]["rayapp-dev/serving"]["AWSCURRENT"]["value"])
    assert secret["keys.sha256"] == keys.splitlines(keepends=True)[1]
    assert secret["keys.sha256"].split()[0] == hashlib.sha256(secret["client_key"].encode()).hexdigest()


def test_images_that_are_not_in_the_registry_are_pushed(ready: Machine) -> None:
    ready.set(images=False)
    done = ready.run("setup/all", "dev", "--from=images", ok=False)  # what is played here pushes nothing
    called = (ready.folder / "a b/cluster/scripts/build-images.sh.called").read_text().splitlines()
    assert called == ["--push cpu cuda mlflow", f"{ready.folder}/a b/cluster/.state/rayapp-dev/terraform"]
    assert "image rayapp-mlflow:" in done.stderr


def test_a_leak_would_be_found(machine: Machine) -> None:
    library = machine.folder / "a b/cluster/scripts/lib/secrets.sh"
    library.write_text(library.read_text().replace("--secret-string file:///dev/stdin", '--secret-string "$(cat)"'))
    machine.set(terraform=["x"], bucket={"exists": True, "versioning": True})
    with pytest.raises(AssertionError, match="a secret stands in arguments of aws"):
        machine.run("setup/04-mlflow", "dev", ok=False)
