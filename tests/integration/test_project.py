"""The frame of the project: pins, Makefile, CI, and nothing in the files that belongs on one machine alone."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from rayapp.doctor import read_pins

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def tracked_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def texts() -> dict[str, str]:
    return {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
        for path in tracked_files()
        if b"\0" not in path.read_bytes()[:8000]
    }


def make(*arguments: str) -> str:
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


# --- pins -------------------------------------------------------------------------------------------------------------


def test_every_pin_is_one_exact_version():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]

    assert [line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line)] == []
    names = [re.split("==", line)[0].lower().replace("_", "-") for line in pins]
    assert sorted(set(names)) == sorted(names)
    assert "://" not in "\n".join(lines)


def test_every_dependency_is_pinned():
    wanted = [
        *PROJECT["dependencies"],
        *PROJECT["optional-dependencies"]["app"],
        *PROJECT["optional-dependencies"]["dev"],
    ]
    names = {re.split(r"[\[<>=; ]", line)[0].lower().replace("_", "-") for line in wanted}

    assert names - set(read_pins(ROOT / "constraints.txt")) == set()


def test_versions_stand_in_constraints_alone():
    wanted = [*PROJECT["dependencies"], *sum(PROJECT["optional-dependencies"].values(), [])]  # noqa: RUF017

    assert [line for line in wanted if re.search(r"[<>=~]", line)] == []


def test_every_dependency_has_a_reason():
    project = (ROOT / "pyproject.toml").read_text().partition("[project.scripts]")[0]
    dependencies = re.findall(r'^    ".*$', project, flags=re.MULTILINE)

    assert len(dependencies) > 30
    assert [line for line in dependencies if not re.search(r"  # \S.{4,}", line)] == []


# --- Makefile and CI --------------------------------------------------------------------------------------------------


def test_make_alone_lists_every_target():
    targets = re.search(r"^\.PHONY: (.*)$", MAKEFILE, flags=re.MULTILINE)[1].split()
    listed = re.findall(r"^  make (\S+) +\S", make(), flags=re.MULTILINE)

    assert set(listed) == set(targets) == set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, flags=re.MULTILINE))
    assert {"demo", "test", "check", "serve", "help", "clean"} <= set(targets)
    assert make("help") == make()


def test_demo_takes_a_data_set_and_its_folder():
    assert "rayapp demo --dataset 'digits'\n" in make("-n", "demo").replace(" \n", "\n")
    assert "--dataset 'folder' --path 'my data'" in make("-n", "demo", "DATASET=folder", "DATA_PATH=my data")


def test_installing_is_done_once(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / ".venv").mkdir()
    planned = ["make", "-C", str(tmp_path), "-n", "test"]

    first = subprocess.run(planned, capture_output=True, text=True, check=True).stdout
    (tmp_path / ".venv" / ".installed").touch()
    second = subprocess.run(planned, capture_output=True, text=True, check=True).stdout

    assert "pip install" in first
    assert "-c constraints.txt -e '.[app,dev]'" in first
    assert "pip install" not in second
    assert "-m pytest" in second


def test_other_python_gets_one_sentence(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    for name in ("python3", "python3.11"):  # a Python of another version, and a pyenv shim with nothing behind it
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"

    done = subprocess.run(
        ["make", "test"], cwd=tmp_path, env={"PATH": path}, capture_output=True, text=True, check=False
    )

    assert done.returncode != 0
    assert "Python 3.11 is needed" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_nothing_stops_every_ray_process_of_the_machine():
    scripts = {name: text for name, text in texts().items() if name in ("Makefile", ".ci/run") or name.endswith(".sh")}

    assert [name for name, text in scripts.items() if re.search(r"ray stop|pkill|killall", text)] == []


def test_ci_runs_both_commands():
    script = ROOT / ".ci" / "run"

    assert script.stat().st_mode & 0o111
    assert "set -euo pipefail" in script.read_text()
    expected = ["check", "check-infra", "test"]
    assert re.findall(r"^make .*?([\w-]+)$", script.read_text(), flags=re.MULTILINE) == expected


# --- what must not be in the files ------------------------------------------------------------------------------------


SECRETS = [
    r"\bA(?:KIA|SIA)[0-9A-Z]{16}\b",
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    r"\bgh[pousr]_[A-Za-z0-9]{30,}",
    r"\bxox[abp]-[A-Za-z0-9-]{10,}",
    r"\bhf_[A-Za-z0-9]{30,}",
    r"(?i)aws_secret_access_key\s*[=:]\s*['\"]?[A-Za-z0-9/+]{40}",
]
# Folders of one person's machine. /tmp and /srv are places on every machine.
MACHINE_PATHS = r"(?<![\w.])/(?:home|root|Users|work)/[a-z.]"


def test_no_secret_is_written_down():
    found = [(name, rule) for name, text in texts().items() for rule in SECRETS if re.search(rule, text)]

    assert found == []


def test_no_path_of_one_machine_is_written_down():
    # cluster/ and terraform/ may name folders inside their own images
    here = {name: text for name, text in texts().items() if not name.startswith(("cluster/", "terraform/"))}
    found = [(name, match[0]) for name, text in here.items() for match in re.finditer(MACHINE_PATHS, text)]

    assert found == []


@pytest.mark.parametrize(
    ("text", "is_found"),
    [("see {}home/ann", True), ("'{}root/.cache'", True), ("{}workers/1", False), ("s3://bucket{}home/ann", False)],
)
def test_the_rule_for_paths_finds_paths(text, is_found):
    assert bool(re.search(MACHINE_PATHS, text.format("/"))) is is_found  # in pieces, else the rule finds it here


def test_the_rule_for_secrets_finds_secrets():
    key = "AKIA" + "ABCDEFGHIJKLMNOP"

    assert any(re.search(rule, f"key = '{key}'") for rule in SECRETS)


def test_example_environment_sets_nothing():
    lines = (ROOT / ".env.example").read_text().splitlines()

    assert [line for line in lines if line and not line.startswith("#")] == []
    assert {"#RAYAPP_HOME", "#MLFLOW_TRACKING_URI", "#RAY_ADDRESS"} <= {line.split("=")[0] for line in lines}


def test_example_environment_gives_ray_address_the_form_that_ray_takes():
    """It gave the dashboard's http:// address, with which `rayapp train` ended in a traceback."""
    values = dict(
        line[1:].split("=", 1) for line in (ROOT / ".env.example").read_text().splitlines() if "=" in line[:25]
    )

    assert re.fullmatch(r"[\d.]+:\d+", values["RAY_ADDRESS"])
    assert values["RAY_API_SERVER_ADDRESS"].startswith("http://")


def test_license_is_apache_2():
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()
