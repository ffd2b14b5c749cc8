"""The images as files: Dockerfiles, what goes into them, the script that builds. test_image_builds.py runs them."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.deploy import image_rules
from tests.deploy.dockerfile import read
from tests.deploy.tools import ROOT, VERSIONS, python, run, tool

DOCKER = ROOT / "cluster/docker"
OURS = {"PYTHON_VERSION", "RAYAPP_VERSION", "RAY_VERSION", "MLFLOW_VERSION"}
TARGETS = {
    "Dockerfile": {"cpu": OURS, "cuda": OURS},
    "mlflow.Dockerfile": {"mlflow": {"PYTHON_VERSION", "MLFLOW_VERSION"}},
}
TAGS = {
    "cpu": f"rayapp:{VERSIONS['RAYAPP_VERSION']}-ray{VERSIONS['RAY_VERSION']}",
    "cuda": f"rayapp:{VERSIONS['RAYAPP_VERSION']}-ray{VERSIONS['RAY_VERSION']}-cuda",
    "mlflow": f"rayapp-mlflow:{VERSIONS['RAYAPP_VERSION']}-mlflow{VERSIONS['MLFLOW_VERSION']}",
}
ECR = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"


def hadolint(path: Path, *, ok: bool = True) -> str:
    return run([tool("hadolint"), "--failure-threshold", "info", "--no-color", path], ok=ok).stdout


def problems(path: Path) -> list[str]:
    return image_rules.problems(read(path), ROOT, TARGETS[path.name], VERSIONS["PYTHON_VERSION"])


def planted(tmp_path: Path, name: str, old: str, new: str) -> Path:
    """A copy of a file with one fault."""
    text = (DOCKER / name).read_text()
    assert old in text
    copy = tmp_path / name
    copy.write_text(text.replace(old, new))
    return copy


# --- Dockerfiles ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TARGETS)
def test_dockerfile_is_clean(name: str):
    assert hadolint(DOCKER / name) == ""
    assert problems(DOCKER / name) == []


@pytest.mark.parametrize(
    ("name", "old", "new", "found"),
    [
        ("Dockerfile", "USER 10001:10001", "USER root", "Dockerfile: target cpu: USER is root, not 10001:10001"),
        ("mlflow.Dockerfile", "USER 10001:10001\n", "", "mlflow.Dockerfile: target mlflow: USER is None"),
        ("Dockerfile", "BASE=python:3.11-slim-bookworm", "BASE=python:latest", "Dockerfile: ARG BASE=python:latest"),
        ("Dockerfile", "BASE=python:3.11", "BASE=python:3.12", "ARG BASE=python:3.12-slim-bookworm is not python:3.11"),
        ("Dockerfile", "FROM base AS runtime", "FROM debian:12 AS runtime", "FROM debian:12 AS runtime: it is neither"),
        ("Dockerfile", "RAY_VERSION MLFLOW", "RAY_VERSION=2.9.0 MLFLOW", "ARG RAY_VERSION=2.9.0 repeats what cluster"),
        ("Dockerfile", '"ray==$RAY_VERSION"', "", "target cuda: no RUN check_image.py cuda asserts RAY_VERSION"),
        ("Dockerfile", "-c constraints.txt -r", "-r", "stage libraries-cpu: `pip install --no-cache-dir -r require"),
        ("mlflow.Dockerfile", "--no-cache-dir ", "", "requirements.txt` leaves its cache in the image"),
        ("Dockerfile", "COPY jobs ", "COPY job ", "stage application: COPY job: there is no such file"),
        ("Dockerfile", "COPY jobs ", "COPY docs ", "stage application: COPY docs: .dockerignore leaves it out"),
        ("mlflow.Dockerfile", "HEALTHCHECK", "LABEL", "target mlflow: no HEALTHCHECK"),
    ],
)  # fmt: skip
def test_fault_of_a_dockerfile_is_found(tmp_path: Path, name: str, old: str, new: str, found: str):
    assert any(found in problem for problem in problems(planted(tmp_path, name, old, new)))


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("ARG BASE=python:3.11-slim-bookworm\n\nFROM ${BASE}", "FROM python:latest", "DL3007"),
        ("USER 10001:10001\nEXPOSE", "USER root\nEXPOSE", "DL3002"),
        ('CMD ["rayapp", "serve", "--host", "0.0.0.0"]', "CMD rayapp serve", "DL3025"),
    ],
)
def test_hadolint_finds(tmp_path: Path, old: str, new: str, rule: str):
    path = planted(tmp_path, "Dockerfile", old, new)

    assert f"{path}:" in hadolint(path, ok=False)
    assert rule in hadolint(path, ok=False)


def test_haproxy_of_the_image_is_the_one_of_serve():
    (value,) = (value for _, value in read(DOCKER / "Dockerfile").all("ENV", "base"))
    written = [
        value for _, value in read(DOCKER / "Dockerfile").all("RUN", "application") if "serve.haproxy >" in value
    ]
    script = run([python(), "-m", "rayapp.serve.haproxy"]).stdout

    assert f"RAY_SERVE_HAPROXY_BINARY_PATH={image_rules.HAPROXY}" in value
    assert '> "/image$RAY_SERVE_HAPROXY_BINARY_PATH"' in written[0]
    assert script.startswith("#!/bin/sh\n")
    assert "http-buffer-request" in script


def test_nothing_gets_into_an_image_unless_it_is_named():
    first, *others = (line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] not in ("", "#"))
    let_in = [line[1:] for line in others if line.startswith("!")]

    assert first == "*"
    assert {"rayapp", "jobs", "serve_configs"} <= set(let_in)
    assert not [name for name in let_in if name.startswith((".", "tests", "terraform")) or "*" in name]


# --- the check that runs in the build ---------------------------------------------------------------------------------


@pytest.fixture
def check(tmp_path: Path) -> Iterator[ModuleType]:
    """check_image.py beside constraints.txt, as in an image."""
    shutil.copy(DOCKER / "check_image.py", tmp_path)
    shutil.copy(ROOT / "constraints.txt", tmp_path)
    spec = importlib.util.spec_from_file_location("check_image", tmp_path / "check_image.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_build_refuses_other_versions_than_it_was_given(check: ModuleType):
    found = {"ray": "2.60.0", "mlflow": "3.17.2"}

    assert list(check.wrong_versions(found, {"ray": "2.60.0", "python": VERSIONS["PYTHON_VERSION"]})) == []
    assert list(check.wrong_versions(found, {"ray": "2.59.0"})) == ["ray is 2.60.0, and the build was given 2.59.0"]
    assert list(check.wrong_versions(found, {"ray": ""})) == ["ray is 2.60.0, and the build was given no version of it"]
    assert list(check.wrong_versions({}, {"ray": "2.60.0"})) == ["ray is None, and the build was given 2.60.0"]


def test_build_refuses_what_is_not_pinned(check: ModuleType, tmp_path: Path):
    pins = check.pins_of(tmp_path / "constraints.txt")

    assert pins["ray"] == VERSIONS["RAY_VERSION"]
    assert pins["mlflow"] == VERSIONS["MLFLOW_VERSION"]
    assert list(check.not_as_pinned({"ray": VERSIONS["RAY_VERSION"], "pip": "23.0"}, pins)) == []
    assert list(check.not_as_pinned({"numpy": "1.0", "leftpad": "1"}, pins)) == [
        "leftpad 1 is installed, and nothing is pinned",
        f"numpy 1.0 is installed, and {pins['numpy']} is pinned",
    ]


def test_build_refuses_cuda_in_a_cpu_image(check: ModuleType):
    import torch

    libraries = {"nvidia-cublas": "13", "triton": "3", "torch": "2", "tritonclient": "2"}
    other = "cuda" if torch.version.cuda is None else "cpu"

    assert list(check.wrong_torch("mlflow", libraries)) == ["the mlflow image holds CUDA: nvidia-cublas, triton"]
    assert f"the {other} image has torch {torch.__version__}" in list(check.wrong_torch(other, {}))[-1]


def test_packages_of_the_server_are_pinned(check: ModuleType):
    """Those of constraints.txt and of the requirements do not contradict each other, and each has a version."""
    requirements, common = DOCKER / "mlflow-requirements.txt", ROOT / "constraints.txt"
    names = {check.canonical(line.split("==")[0].split("[")[0].split("#")[0].strip())
             for line in requirements.read_text().splitlines() if line[:1].isalpha()}  # fmt: skip

    assert names <= check.pins_of(requirements, common).keys()
    assert not check.pins_of(requirements).keys() & check.pins_of(common).keys()
    assert {"mlflow", "boto3", "psycopg2-binary"} <= names


# --- the script that builds them --------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The script in its place, with stand-ins for engine, AWS CLI and Terraform that write down how they are called."""
    for name in ("cluster/scripts/build-images.sh", "cluster/versions.env"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    urls = json.dumps({"rayapp": f"{ECR}/rayapp-dev/rayapp", "mlflow": f"{ECR}/rayapp-dev/rayapp-mlflow"})
    answers = {
        "docker": '[ "$1" != login ] || cat > /dev/null',
        "buildah": "",
        "aws": "echo password",
        "terraform": f"echo '{urls}'",
    }
    for name, answer in answers.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\necho "{name} $*" >> "{tmp_path}/calls"\n{answer}\n')
        program.chmod(0o755)
    return tmp_path


def build(tree: Path, *words: str, ok: bool = True, **environment: str) -> tuple[list[str], str]:
    """What the script called, and what it said on stderr."""
    env = {"PATH": f"{tree}/bin:{os.environ['PATH']}", "ENGINE": "", "BASE": "", "TORCH_INDEX": "", **environment}
    done = run([tree / "cluster/scripts/build-images.sh", *words], env=env, ok=ok)
    calls = tree / "calls"
    return calls.read_text().splitlines() if calls.exists() else [], done.stderr


def test_build_passes_the_versions_and_tags(tree: Path):
    calls, _ = build(tree, "cpu", "cuda", "mlflow")

    assert [call.split(" --tag ")[1].split()[0] for call in calls] == list(TAGS.values())
    for call, target in zip(calls, TAGS, strict=True):
        given = {word for word in call.split() if "_VERSION=" in word}
        expected = TARGETS["mlflow.Dockerfile" if target == "mlflow" else "Dockerfile"][target]
        assert given == {f"{name}={VERSIONS[name]}" for name in expected}
        assert f"--target {target} " in call


def test_build_pushes_only_when_asked(tree: Path):
    calls, _ = build(tree)

    assert [call.split()[:2] for call in calls] == [["docker", "build"]] * 2


def test_push_goes_to_the_repositories_of_terraform(tree: Path):
    calls, _ = build(tree, "--push", "cpu", "mlflow")
    cpu, mlflow = TAGS["cpu"].split(":")[1], TAGS["mlflow"].split(":")[1]

    terraform, *login = calls[2:5]
    assert [call.split()[:2] for call in calls[:2]] == [["docker", "build"]] * 2
    assert terraform == "terraform -chdir=terraform output -json ecr_repository_urls"
    assert set(login) == {  # the two ends of a pipe: either may start first
        "aws ecr get-login-password --region eu-west-1",
        f"docker login --username AWS --password-stdin {ECR}",
    }
    assert calls[5:] == [
        f"docker tag {TAGS['cpu']} {ECR}/rayapp-dev/rayapp:{cpu}",
        f"docker push {ECR}/rayapp-dev/rayapp:{cpu}",
        f"docker tag {TAGS['mlflow']} {ECR}/rayapp-dev/rayapp-mlflow:{mlflow}",
        f"docker push {ECR}/rayapp-dev/rayapp-mlflow:{mlflow}",
    ]


def test_dry_run_starts_nothing(tree: Path):
    calls, _ = build(tree, "--dry-run", "cpu", "mlflow")

    assert calls == []


def test_buildah_keeps_the_health_check(tree: Path):
    (call,), _ = build(
        tree, "cpu", "--", "--pull=never", ENGINE="buildah", BASE="localhost/base:1", TORCH_INDEX="file:///i"
    )

    assert call.startswith("buildah bud --format docker --layers --file cluster/docker/Dockerfile --target cpu ")
    assert call.endswith(" --build-arg TORCH_INDEX=file:///i --pull=never .")
    assert " --build-arg BASE=localhost/base:1 " in call


def test_build_says_what_is_wrong(tree: Path):
    calls, unknown = build(tree, "gpu", ok=False)
    versions = tree / "cluster/versions.env"
    versions.write_text(versions.read_text().replace("RAY_VERSION=", "RAY="))
    _, missing = build(tree, ok=False)

    assert calls == []
    assert "'gpu' is no image and no option" in unknown
    assert "cluster/versions.env says no RAY_VERSION" in missing


def test_push_stops_where_the_repositories_are_not_there(tree: Path):
    (tree / "bin/terraform").write_text("#!/bin/sh\nexit 1\n")
    calls, error = build(tree, "--push", "mlflow", ok=False)

    assert "no output ecr_repository_urls: apply it first" in error
    assert [call for call in calls if " push " in call] == []


def test_script_is_clean():
    run([tool("shellcheck"), "-S", "style", "-x", ROOT / "cluster/scripts/build-images.sh"])
