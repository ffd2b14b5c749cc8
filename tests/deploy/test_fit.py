"""What one room of the platform leaves to the next: outputs, settings, roles, images, secrets, prefixes."""

from __future__ import annotations

import json
import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy import manifest_rules as rules
from tests.deploy import nodes
from tests.deploy.machine import OURS, OUTPUTS, WORLD, Machine, make_machine
from tests.deploy.manifests import Json, jobs, pod_templates, rendered, the
from tests.deploy.nodes import CHART, PROFILES
from tests.deploy.tools import ROOT, VERSIONS, render_chart, run

TERRAFORM = ROOT / "terraform"
STORAGE = (TERRAFORM / "modules/pod_iam/storage.tf").read_text()
POD_IAM = "\n".join(path.read_text() for path in sorted((TERRAFORM / "modules/pod_iam").glob("*.tf")))
ACCOUNTS = set(re.findall(r'^ +"([a-z-]+/[a-z-]+)"\s+=', POD_IAM, re.MULTILINE))
OF_TERRAFORM = "kube-system/ebs-csi-controller-sa"  # an add-on of EKS, to which Terraform gives the role itself
ROLES = {account: f"arn:aws:iam::111122223333:role/{account.replace('/', '-')}" for account in ACCOUNTS}


# --- Terraform's outputs, settings and versions -----------------------------------------------------------------------


def test_the_scripts_ask_for_outputs_that_terraform_has():
    there = set(re.findall(r'^output "(\w+)"', (TERRAFORM / "outputs.tf").read_text(), re.MULTILINE))
    asked = {name for path in OURS for name in re.findall(r"\$\(output (\w+)", path.read_text())}

    assert {"vpc_cidr", "pod_iam", "bucket", "database_secret_arn"} <= asked
    assert asked <= there
    assert set(OUTPUTS) <= there, "what the tests' machine answers"


def test_the_version_of_kubernetes_reaches_terraform(begun: Machine):
    begun.run("setup/02-aws", "dev", "--dry-run")
    variables = (TERRAFORM / "variables.tf").read_text()

    (plan,) = (call for call in begun.calls(changing=False) if call.startswith("terraform plan"))
    assert f"kubernetes_version={VERSIONS['KUBERNETES_VERSION']}" in plan
    default = re.search(r'variable "kubernetes_version".*?default\s+= "([\d.]+)"', variables, re.DOTALL)
    assert default
    assert default[1] == VERSIONS["KUBERNETES_VERSION"]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A machine after the whole setup, where service accounts carry their roles."""
    made = make_machine(tmp_path_factory.mktemp("fit") / "m")
    made.set(outputs=OUTPUTS | {"pod_iam": "irsa", "pod_role_arns": ROLES})
    made.run("setup/all", "dev", "--yes")
    return made


# --- roles ------------------------------------------------------------------------------------------------------------


def test_with_irsa_every_account_gets_its_role_and_with_pod_identity_none(begun: Machine):
    accounts_of_manifests = {"rayapp/ray-jobs", "rayapp/ray-serve"}
    assert len(ACCOUNTS) == 8
    for mode, wanted in (("irsa", ACCOUNTS - {OF_TERRAFORM}), ("pod_identity", set())):
        begun.set(outputs=OUTPUTS | {"pod_iam": mode, "pod_role_arns": ROLES}, releases={})
        calls: list[str] = []
        for script in ("03-addons", "04-mlflow", "05-kuberay", "07-airflow"):
            begun.run(f"setup/{script}", "dev")
            calls += [call for call in begun.calls() if call.startswith("helm upgrade")]
        annotated = re.findall(r"(\S+) (\S+) .*?serviceAccount\.annotations\.eks\\\.amazonaws\\\.com/role-arn=(\S+)",
                               "\n".join(call.removeprefix("helm upgrade --install ") for call in calls))  # fmt: skip
        rendered_with = begun.rendered_with()
        found = {account for account, role in ROLES.items() if role in {arn for *_, arn in annotated}}
        found |= {account for account in accounts_of_manifests if ROLES[account] in rendered_with}
        assert found == wanted, mode
        if mode == "irsa":
            assert "--set-string rbac.serviceAccount.annotations" in "\n".join(calls), "the autoscaler's own key"
            assert {name for name, *_ in annotated} == {
                "aws-load-balancer-controller", "external-secrets", "cluster-autoscaler", "mlflow", "airflow",
            }  # fmt: skip


def test_accounts_have_the_names_that_the_roles_answer_to():
    values = {path.stem: yaml.safe_load(path.read_text()) for path in nodes.HELM_VALUES.glob("*.yaml")}
    named = {
        f"kube-system/{values['aws-load-balancer-controller']['serviceAccount']['name']}",
        f"kube-system/{values['cluster-autoscaler']['rbac']['serviceAccount']['name']}",
        f"external-secrets/{values['external-secrets']['serviceAccount']['name']}",
        f"airflow/{values['airflow']['triggerer']['serviceAccount']['name']}",
        f"mlflow/{yaml.safe_load((CHART / 'values.yaml').read_text())['serviceAccount']['name']}",
        *(
            f"rayapp/{template['spec']['serviceAccountName']}"
            for obj in rendered("prod") if obj["kind"].startswith("Ray") for _, template in pod_templates(obj)
        ),
    }  # fmt: skip

    assert named == ACCOUNTS - {OF_TERRAFORM}


def prefixes(account: str) -> dict[str, list[str]]:
    """By verb, what a service account may do below which prefix of the bucket."""
    (line,) = re.findall(rf'^ +"{account}"\s+= (.*?\}})', STORAGE, re.MULTILINE)
    return {verb: re.findall(r'"([^"]+)"', words) for verb, words in re.findall(r"(\w+) = \[(.*?)\]", line)}


def test_what_jobs_read_and_write_lies_where_their_role_may():
    options = {"--data.path": "read", "--compute.storage_path": "write", "--output": "write"}
    seen = []
    for job in jobs().values():
        for option, address in re.findall(r"(--\S+) s3://\$RAYAPP_BUCKET/(\S+)", job["spec"]["entrypoint"]):
            assert address.split("/")[0] in prefixes("rayapp/ray-jobs")[options[option]], f"{option} {address}"
            seen.append(option)
    assert set(seen) == set(options)
    assert (
        yaml.safe_load((CHART / "values.yaml").read_text())["artifacts"]["prefix"] in prefixes("mlflow/mlflow")["write"]
    )
    airflow = (ROOT / "cluster/scripts/setup/07-airflow.sh").read_text()
    assert (
        re.search(r"remote_base_log_folder=s3://\$BUCKET/(\S+)\"", airflow)[1] in prefixes("airflow/airflow")["write"]
    )  # type: ignore[index]


# --- MLflow as script 04 installs it ----------------------------------------------------------------------------------


def installed_mlflow(machine: Machine, profile: str) -> list[Json]:
    """What Helm makes of the chart with the options that the script gives it."""
    machine.set(outputs=OUTPUTS | {"profile": profile, "pod_iam": "irsa", "pod_role_arns": ROLES}, releases={})
    machine.run("setup/04-mlflow", "dev")
    (call,) = (
        one["words"] for one in machine.world["calls"] if one["program"] == "helm" and one["words"][0] == "upgrade"
    )
    sets: dict[str, Any] = {}
    for option, text in pairwise(call):
        if option in ("--set", "--set-string"):
            path, _, value = text.partition("=")
            *folders, last = [part.replace("\0", ".") for part in path.replace("\\.", "\0").split(".")]
            here = sets
            for folder in folders:
                here = here.setdefault(folder, {})
            here[last] = int(value) if option == "--set" else value
    values = [CHART / Path(text).name for option, text in pairwise(call) if option == "--values"]
    namespace = call[call.index("--namespace") + 1]
    return [obj for _, obj in render_chart(CHART, *values, release=call[2], namespace=namespace, sets=sets)]


@pytest.mark.parametrize("profile", PROFILES)
def test_mlflow_is_found_by_those_who_call_it(profile: str, begun: Machine):
    objects = installed_mlflow(begun, profile)
    server = the("Deployment", "mlflow", objects)["spec"]["template"]["spec"]["containers"][0]
    (allowed,) = (arg.partition("=")[2].split(",") for arg in server["args"] if arg.startswith("--allowed-hosts="))
    settings = the("ConfigMap", "rayapp-settings", rendered(PROFILES[profile]))["data"]
    script = re.search(r"^MLFLOW_HOST=(\S+)", (ROOT / "cluster/scripts/lib/mlflow.sh").read_text(), re.MULTILINE)
    service = the("Service", "mlflow", objects)

    assert script
    assert {settings["MLFLOW_TRACKING_URI"].removeprefix("http://"), script[1]} <= set(allowed)
    assert service["metadata"]["namespace"] == "mlflow"
    assert service["spec"]["ports"][0]["port"] == 5000
    assert ("mlflow.example.org" in allowed) == (profile == "standard")
    assert ("localhost:*" in allowed) == (profile == "lean"), "there people come by kubectl port-forward"
    blocks = [peer["ipBlock"]["cidr"] for rule in the("NetworkPolicy", "mlflow", objects)["spec"]["egress"]
              for peer in rule["to"] if "ipBlock" in peer and rule["ports"][0]["port"] == 5432]  # fmt: skip
    assert blocks == [OUTPUTS["vpc_cidr"]]
    account = the("ServiceAccount", "mlflow", objects)["metadata"]
    assert account["annotations"] == {"eks.amazonaws.com/role-arn": ROLES["mlflow/mlflow"]}


# --- images and secrets -----------------------------------------------------------------------------------------------


def test_images_are_asked_for_by_the_names_under_which_they_are_pushed(begun: Machine):
    printed = run([ROOT / "cluster/scripts/build-images.sh", "--dry-run", "cpu", "cuda", "mlflow"]).stdout
    built = {words[words.index("--tag") + 1] for words in map(shlex.split, printed.splitlines()) if "--tag" in words}
    everything = [*rendered("prod"), *rendered("dev"), *jobs().values(), *installed_mlflow(begun, "standard")]
    asked = {one["image"].rpartition("/")[2] for obj in everything for _, one in rules.containers(obj)}

    assert len(built) == 3
    assert {image for image in asked if not image.startswith("redis:")} == built
    repositories = re.search(r"repositories\s+= \{ (.*) \}", (TERRAFORM / "main.tf").read_text())
    assert repositories
    assert set(re.findall(r"cluster_name\}/([\w-]+)", repositories[1])) == {image.split(":")[0] for image in built}


def test_every_secret_that_a_pod_wants_is_made(begun: Machine):
    vault = {name: json.loads(stages["AWSCURRENT"]["value"]) for name, stages in begun.world["vault"].items()}
    made = {words.split()[1] for words in begun.world["objects"] if words.startswith("secret ")}
    everything = [*rendered("prod"), *jobs().values(), *installed_mlflow(begun, "standard")]
    for obj in everything:
        if obj["kind"] == "ExternalSecret":
            made.add(obj["spec"]["target"]["name"])
            for item in obj["spec"]["data"]:
                key, wanted = item["remoteRef"]["key"], item["remoteRef"]["property"]
                of_rds = {"username", "password"} if key.startswith("arn:") else set()
                assert wanted in of_rds | set(vault.get(f"rayapp-dev/{key.rpartition('/')[2]}", {})), f"{key}: {wanted}"

    used = set(
        re.findall(r'"(?:secretRef|secretKeyRef|redisPassword)": \{[^{}]*?"name": "([\w-]+)"', json.dumps(everything))
    )
    used |= set(re.findall(r'"secretName": "([\w-]+)"', json.dumps(everything)))
    airflow = yaml.safe_load((nodes.HELM_VALUES / "airflow.yaml").read_text())
    used |= {airflow["data"]["metadataSecretName"], *(airflow[f"{name}Name"] for name in (
        "fernetKeySecret", "apiSecretKeySecret", "jwtSecret"))}  # fmt: skip
    assert used >= {"mlflow-client", "serving-keys", "ray-redis", "mlflow-auth", "airflow-keys"}
    assert used <= made


# --- profiles ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("environment", "profile"), [("dev", "standard"), ("prod", "lean")])
def test_the_profile_says_which_overlay_is_applied(environment: str, profile: str, begun: Machine):
    """Schedules, say, are CronJobs where there is no Airflow, whatever the environment is called."""
    begun.settings(PROD_DOMAIN="example.org")
    begun.set(outputs=WORLD["outputs"] | {"profile": profile})
    begun.run("setup/05-kuberay", environment)

    assert begun.rendered_with()[0] == PROFILES[profile]


def test_lean_is_verified_without_what_it_does_not_have(begun: Machine):
    occupied = [name for name in begun.world["occupied"] if name not in ("monitoring", "airflow")]
    begun.set(outputs=WORLD["outputs"] | {"profile": "lean"}, occupied=occupied)
    done = begun.run("setup/06-verify-all", "dev", "--without-job")

    assert "deployments of mlflow" in done.stdout
    assert "FAIL" not in done.stdout
    begun.set(outputs=WORLD["outputs"])
    assert "FAIL          deployments of airflow" in begun.run("setup/06-verify-all", "dev", ok=False).stdout
