"""The entrypoints of the RayJobs: what KubeRay and Ray make of them, and that all they name is there."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from functools import cache
from pathlib import Path

import pytest

from tests.deploy.manifests import EXAMPLES, copied, jobs, load, planted, rendered, the
from tests.deploy.tools import ROOT, python, run

JOB_FOLDER = "cluster/manifests/ray/rayjobs"
RECORDER = f"""#!{python()}
import json, os, sys
with open(os.environ["RECORD"], "a") as record:
    record.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
sys.exit(int(os.environ.get("EXIT_" + os.path.basename(sys.argv[1])[:-3], "0")))
"""
SETTINGS = {"RAYAPP_BUCKET": "bucket-1", "RAYAPP_RUN": "pipeline-x7k2p"}


def stubs(folder: Path, *names: str) -> Path:
    """A folder for PATH, of programs that record their arguments."""
    folder.mkdir()
    for name in names:
        (folder / name).write_text(RECORDER, encoding="utf-8")
        (folder / name).chmod(0o755)
    return folder


def recorded(path: Path) -> list[list[str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def as_kuberay_runs(entrypoint: str, folder: Path, **exits: str) -> tuple[list[list[str]], int]:
    """The commands that an entrypoint starts in the job, and its exit code.

    As KubeRay 1.7 and Ray do it: KubeRay pastes the text behind `ray job submit ... --` into a shell of the submitter,
    ray joins the words that arrive with shlex, the head gives the result to another shell.
    """
    sent, ran = folder / "sent", folder / "ran"
    submit = stubs(folder / "submitter", "ray", "python")
    script = f"if true ; then ray job submit --no-wait -- {entrypoint} ; fi ; echo followed"
    env = {"PATH": f"{submit}:{os.environ['PATH']}", "RECORD": str(sent), **SETTINGS}
    assert (
        subprocess.run(["/bin/bash", "-ce", "--", script], env=env, check=True, capture_output=True).stdout
        == b"followed\n"
    )
    ((program, *words),) = recorded(sent)  # python ran nowhere here
    assert program == "ray"
    job = shlex.join(words[words.index("--") + 1 :])
    path = f"{stubs(folder / 'head', 'python')}:{os.environ['PATH']}"
    done = subprocess.run(job, shell=True, env={"PATH": path, "RECORD": str(ran), **exits}, check=False)
    return recorded(ran), done.returncode


@pytest.mark.parametrize("name", sorted(jobs()))
def test_entrypoint_reaches_the_job_unharmed(name: str, tmp_path: Path):
    commands, code = as_kuberay_runs(jobs()[name]["spec"]["entrypoint"], tmp_path)
    steps = ["train", "evaluate", "promote"] if name == "pipeline" else [name.replace("-", "_")]

    assert code == 0
    assert [command[:2] for command in commands] == [["python", f"jobs/{step}.py"] for step in steps]
    words = " ".join(word for command in commands for word in command)
    assert "$" not in words
    assert name in ("evaluate",) or "s3://bucket-1/" in words


@pytest.mark.parametrize(
    ("exits", "steps", "code"),
    [
        ({"EXIT_train": "1"}, ["train"], 1),
        ({"EXIT_evaluate": "1"}, ["train", "evaluate"], 1),
        ({"EXIT_promote": "1"}, ["train", "evaluate", "promote"], 1),
        ({"EXIT_promote": "3"}, ["train", "evaluate", "promote"], 0),  # the gate's refusal is an outcome
    ],
)
def test_pipeline_stops_at_the_first_failure(exits: dict[str, str], steps: list[str], code: int, tmp_path: Path):
    commands, ended = as_kuberay_runs(jobs()["pipeline"]["spec"]["entrypoint"], tmp_path, **exits)

    assert [Path(command[1]).stem for command in commands] == steps
    assert (ended == 0) == (code == 0)


def test_a_sweep_makes_a_challenger_and_its_schedule_promotes_the_better(tmp_path: Path):
    tune = jobs()["tune"]["spec"]["entrypoint"]
    cron = the("CronJob", "tune-weekly", rendered("dev"))["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    *_, entrypoint = cron["containers"][0]["command"]

    assert "--then_train true" in tune
    assert wrong_words(entrypoint) == []
    commands, code = as_kuberay_runs(entrypoint, tmp_path, EXIT_promote="3")
    assert [Path(command[1]).stem for command in commands] == ["tune", "promote"]
    assert commands[0] == as_kuberay_runs(tune, fresh(tmp_path))[0][0]
    assert code == 0


def fresh(folder: Path) -> Path:
    (folder / "fresh").mkdir()
    return folder / "fresh"


def test_the_examples_entrypoint_is_the_pipelines():
    (example,) = (load(path) for path in EXAMPLES)

    assert example["spec"]["jobTemplate"]["entrypoint"] == jobs()["pipeline"]["spec"]["entrypoint"]


def wrong_words(entrypoint: str) -> list[str]:
    """What an entrypoint names that is not there: files, settings."""
    found = []
    for command in re.findall(r"python (jobs/\S+\.py[^&|;\"]*)", entrypoint):
        file, *words = command.split()
        if not (ROOT / file).is_file():
            found.append(f"{file} does not exist")
            continue
        flags = set(re.findall(r"--[\w.]+", help_of(file)))
        found += [f"{file} has no {word}" for word in words if word.startswith("--") and word not in flags]
        found += [f"{word} does not exist" for word in words if word.endswith(".yaml") and not (ROOT / word).is_file()]
    return found


@cache
def help_of(file: str) -> str:
    return run([python(), file, "--help"], env={"COLUMNS": "200"}).stdout


@pytest.mark.parametrize("name", sorted(jobs()))
def test_entrypoints_files_and_settings_exist_and_help_works(name: str):
    entrypoint = jobs()[name]["spec"]["entrypoint"]

    assert "python jobs/" in entrypoint
    assert wrong_words(entrypoint) == []


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("jobs/train.py", "jobs/trian.py", "jobs/trian.py does not exist"),
        ("--compute.device", "--compute.devise", "jobs/train.py has no --compute.devise"),
        ("cifar10-resnet18", "cifar10-resnet19", "jobs/configs/cifar10-resnet19.yaml does not exist"),
    ],
)
def test_a_wrong_entrypoint_is_found(old: str, new: str, told: str, tmp_path: Path):
    root = planted(copied(tmp_path), f"{JOB_FOLDER}/train.yaml", old, new)

    assert wrong_words(jobs(root / "cluster/manifests")["train"]["spec"]["entrypoint"]) == [told]


def test_settings_of_the_entrypoints_are_in_the_pods():
    data = the("ConfigMap", "rayapp-settings", rendered("dev"))["data"]
    for name, job in jobs().items():
        (submitter,) = job["spec"]["submitterPodTemplate"]["spec"]["containers"]
        there = {variable["name"] for variable in submitter["env"]} | set(data)
        assert set(re.findall(r"\$(\w+)", job["spec"]["entrypoint"])) <= there, name
        assert {"configMapRef": {"name": "rayapp-settings"}} in submitter["envFrom"]
