"""The doctor finds what is wrong with a machine, says what to do, and needs neither a cluster nor a server."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import pytest

import rayapp
from rayapp import doctor
from rayapp.config.commands import DoctorSettings
from rayapp.config.env import Home
from rayapp.errors import RayAppError
from tests.support.ports import free_port

NAMES = "python packages cores memory disk home accelerator ray mlflow data port".split()  # noqa: SIM905
Disk = namedtuple("Disk", "total used free")
Memory = namedtuple("Memory", "available total")
Version = namedtuple("Version", "major minor micro")


@pytest.fixture
def this_home() -> Home:
    return Home.from_env()


# --- the report -------------------------------------------------------------------------------------------------------


def test_this_machine_is_fit_for_the_tests(this_home):
    checks = doctor.examine(DoctorSettings(port=free_port()), this_home)

    assert [check.name for check in checks] == NAMES
    assert [check for check in checks if check.status == "fail"] == []
    assert all(check.found for check in checks)
    assert all(check.advice for check in checks if check.status != "ok")


def test_examining_leaves_no_trace(this_home):
    doctor.examine(DoctorSettings(), this_home)

    assert not this_home.folder.exists()
    assert list(this_home.folder.parent.iterdir()) == []


def test_json_is_one_line_that_a_script_can_read(this_home, capsys):
    report = doctor.doctor(DoctorSettings(json=True), this_home)

    assert json.loads(json.dumps(report)) == report
    assert (report["ok"], report["exit_code"]) == (True, 0)
    assert [check["name"] for check in report["checks"]] == NAMES
    assert capsys.readouterr().out == ""


def test_table_shows_each_check_and_a_fail_ends_it(this_home, monkeypatch, capsys):
    monkeypatch.setattr(
        doctor, "examine", lambda *_: [doctor.Check("a", "ok", "3"), doctor.Check("b", "warn", "x", "y")]
    )

    assert doctor.doctor(DoctorSettings(), this_home) is None
    out = capsys.readouterr().out
    assert [line.split() for line in out.splitlines()[1:]] == [["a", "OK", "3"], ["b", "WARN", "x", "y"]]

    monkeypatch.setattr(doctor, "examine", lambda *_: [doctor.Check("disk", "fail", "0 GB [full]", "free some space")])
    with pytest.raises(RayAppError, match="1 of 1 checks failed \\(disk\\)") as caught:
        doctor.doctor(DoctorSettings(), this_home)
    assert caught.value.exit_code == 1
    assert "0 GB [full]" in capsys.readouterr().out
    assert doctor.doctor(DoctorSettings(json=True), this_home)["exit_code"] == 1


# --- the machine ------------------------------------------------------------------------------------------------------


def check(name: str, home: Home | None = None, *, tracking_uri: str = "") -> doctor.Check:
    """What the doctor finds of one thing."""
    home = home or Home.from_env()
    if tracking_uri:
        home = Home(folder=home.folder, tracking_uri=tracking_uri)
    (found,) = [check for check in doctor.examine(DoctorSettings(port=free_port()), home) if check.name == name]
    return found


def test_other_python_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "version_info", Version(3, 13, 1))

    found = check("python")

    assert (found.status, found.found) == ("fail", "3.13.1")
    assert "python3.11" in found.advice


@pytest.mark.parametrize(("free", "status"), [(3e9, "ok"), (1e9, "warn"), (1e8, "fail")])
def test_disk(this_home, monkeypatch, free, status):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Disk(1e12, 1e12 - free, free))

    found = check("disk")

    assert found.status == status
    assert f"{free / 1e9:.1f} GB free at {this_home.folder}" == found.found


@pytest.mark.parametrize(("available", "status"), [(8e9, "ok"), (1e9, "warn")])
def test_memory(monkeypatch, available, status):
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(available, 16e9))

    assert check("memory").status == status


def test_home_below_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")

    found = check("home", Home(folder=tmp_path / "file" / "home", tracking_uri="sqlite://"))

    assert found.status == "fail"
    assert "RAYAPP_HOME" in found.advice


# --- what is installed ------------------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A checkout whose project asks for torch, numpy and (dev) nothing-of-that-name."""
    monkeypatch.setattr(rayapp, "__file__", str(tmp_path / "rayapp" / "__init__.py"))
    requires = ["torch", "numpy; extra == 'app'", 'nothing-of-that-name; extra == "dev"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: requires)
    return tmp_path


@pytest.fixture
def installed(monkeypatch) -> dict[str, str]:
    """The versions of torch and numpy, for a test to change."""
    versions = {"torch": "2.14.1", "numpy": "2.0"}
    of = importlib.metadata.version

    def version(package: str) -> str:
        if package not in ("torch", "numpy"):
            return of(package)
        if package not in versions:
            raise importlib.metadata.PackageNotFoundError(package)
        return versions[package]

    monkeypatch.setattr(importlib.metadata, "version", version)
    return versions


def test_pinned_versions_are_fine(checkout, installed):
    (checkout / "constraints.txt").write_text("# pins\nTorch==2.14.1\nnumpy==2.0  # why\nother==1\n")

    assert check("packages") == doctor.Check("packages", "ok", "2 as pinned in constraints.txt")


def test_cpu_build_of_torch_is_the_pinned_one(checkout, installed):
    (checkout / "constraints.txt").write_text("torch==2.14.1\n")
    installed["torch"] = "2.14.1+cpu"

    assert check("packages").status == "ok"


def test_other_version_is_a_warning_that_names_both(checkout, installed):
    (checkout / "constraints.txt").write_text("numpy==1.0\n")

    found = check("packages")

    assert found.status == "warn"
    assert "numpy 2.0 (pinned 1.0)" in found.found


def test_missing_package_is_a_failure_unless_it_is_for_developers(checkout, installed):
    del installed["numpy"]

    found = check("packages")

    assert (found.status, found.found) == ("fail", "not installed: numpy")
    assert "pip install" in found.advice


def test_installed_wheel_has_no_constraints_to_compare_with(checkout, installed):
    assert check("packages").found == "2 installed; no constraints.txt to compare with"


@pytest.mark.parametrize(("name", "module"), [("accelerator", "torch"), ("ray", "ray")])
def test_broken_torch_and_ray_are_said_with_their_reason(monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)

    found = check(name)

    assert found.status == "fail"
    assert "cannot be imported: import of" in found.found


# --- what it talks to; servers that answer are in tests/integration/test_doctor.py ------------------------------------


@pytest.mark.parametrize("address", ["{}", "ray://{}", "http://{}", "a:b:c"])
def test_a_cluster_that_does_not_answer(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address.format(f"127.0.0.1:{free_port()}"))

    found = check("ray")

    assert (found.status, "RAY_ADDRESS=" in found.found, "unset" in found.advice) == ("fail", True, True)


@pytest.mark.parametrize("uri", ["http://127.0.0.1:{}", "http://"])
def test_a_tracking_server_that_does_not_answer(this_home, uri):
    found = check("mlflow", tracking_uri=uri.format(free_port()))

    assert found.status == "fail"
    assert "no answer" in found.found
    assert "unset" in found.advice


@pytest.mark.parametrize("address", [None, "local", "auto"])
def test_ray_of_this_process_is_not_started(monkeypatch, address):
    import ray

    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    before = ray.is_initialized()  # other tests of this process may share a cluster
    found = check("ray")

    assert (found.status, found.found.startswith(ray.__version__)) == ("ok", True)
    assert ray.is_initialized() is before


def test_tracking_database_needs_a_folder_that_can_be_written(this_home, tmp_path):
    (tmp_path / "file").write_text("")

    assert check("mlflow").status == "ok"
    assert check("mlflow", tracking_uri=f"sqlite:///{tmp_path}/file/mlflow.db").status == "fail"


def test_password_in_a_tracking_uri_is_not_shown(this_home):
    found = check("mlflow", tracking_uri="postgresql://rayapp:s3cret@db:5432/mlflow")

    assert found.status == "warn"
    assert "postgresql://rayapp:***@db:5432/mlflow" in found.found
    assert "s3cret" not in str(found)


def test_data_that_is_there_is_named(this_home):
    assert check("data").found == "digits (always there)"
    (this_home.data / "cifar10").mkdir(parents=True)
    assert check("data").found == "digits (always there), cifar10"
