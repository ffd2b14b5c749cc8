"""The doctor finds what is wrong with a machine, says what to do, and needs neither a cluster nor a server."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import socket
import sys
import threading
from collections import namedtuple
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import rayapp
from rayapp import doctor
from rayapp.config import env
from rayapp.config.commands import DoctorSettings
from rayapp.config.env import Home
from rayapp.errors import RayAppError
from tests.support.ports import free_port

NAMES = "python packages cores memory disk home accelerator ray mlflow data port".split()  # noqa: SIM905
Disk = namedtuple("Disk", "total used free")


@pytest.fixture
def this_home() -> Home:
    return Home.from_env()


@pytest.fixture
def server() -> Iterator[str]:
    """An HTTP server that answers /health and /api/version, and 500 on anything else."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path in ("/health", "/api/version") else 500)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


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


def test_other_python_is_refused(monkeypatch):
    newer = namedtuple("newer", "major minor micro")
    monkeypatch.setattr(sys, "version_info", newer(3, 13, 1))

    check = doctor._python()

    assert (check.status, check.found) == ("fail", "3.13.1")
    assert "python3.11" in check.advice


@pytest.mark.parametrize(("free", "status"), [(3e9, "ok"), (1e9, "warn"), (1e8, "fail")])
def test_disk(this_home, monkeypatch, free, status):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Disk(1e12, 1e12 - free, free))

    check = doctor._disk(this_home)

    assert check.status == status
    assert f"{free / 1e9:.1f} GB free at {this_home.folder}" == check.found


@pytest.mark.parametrize(("available", "status"), [(8e9, "ok"), (1e9, "warn")])
def test_memory(monkeypatch, available, status):
    import psutil

    memory = namedtuple("memory", "available total")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(available, 16e9))

    assert doctor._memory().status == status


def test_home_below_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    home = Home(folder=tmp_path / "file" / "home", tracking_uri="sqlite://")

    check = doctor._home(home)

    assert check.status == "fail"
    assert "RAYAPP_HOME" in check.advice


def test_port_in_use_is_said():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert doctor._port(port) == doctor.Check(
            "port", "warn", f"{port} is in use", f"stop what listens there, or serve with --port {port + 1}"
        )
    assert doctor._port(port).status == "ok"


# --- what is installed ------------------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A checkout whose project asks for torch, numpy and (dev) nothing-of-that-name."""
    monkeypatch.setattr(rayapp, "__file__", str(tmp_path / "rayapp" / "__init__.py"))
    requires = ["torch", "numpy; extra == 'app'", 'nothing-of-that-name; extra == "dev"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: requires)
    return tmp_path


def installed(package: str) -> str:
    return importlib.metadata.version(package)


def test_pinned_versions_are_fine(checkout):
    torch = installed("torch").partition("+")[0]
    (checkout / "constraints.txt").write_text(f"# pins\nTorch=={torch}\nnumpy=={installed('numpy')}  # why\nother==1\n")

    assert doctor._packages() == doctor.Check("packages", "ok", "2 as pinned in constraints.txt")


def test_cpu_build_of_torch_is_the_pinned_one(checkout, monkeypatch):
    (checkout / "constraints.txt").write_text("torch==2.14.1\n")
    monkeypatch.setattr(doctor, "_version", {"torch": "2.14.1+cpu", "numpy": "1"}.get)

    assert doctor._packages().status == "ok"


def test_other_version_is_a_warning_that_names_both(checkout):
    (checkout / "constraints.txt").write_text("numpy==1.0\n")

    check = doctor._packages()

    assert check.status == "warn"
    assert f"numpy {installed('numpy')} (pinned 1.0)" in check.found


def test_missing_package_is_a_failure_unless_it_is_for_developers(checkout, monkeypatch):
    monkeypatch.setattr(doctor, "_version", {"torch": "2.14.1"}.get)

    check = doctor._packages()

    assert (check.status, check.found) == ("fail", "not installed: numpy")
    assert "pip install" in check.advice


def test_installed_wheel_has_no_constraints_to_compare_with(checkout):
    assert doctor._packages().found == "2 installed; no constraints.txt to compare with"


def test_broken_torch_and_ray_are_said_with_their_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "ray", None)

    for check in (doctor._accelerator(), doctor._ray(None)):
        assert check.status == "fail"
        assert "cannot be imported: import of" in check.found


# --- servers ----------------------------------------------------------------------------------------------------------


def test_servers_that_answer(server):
    check = doctor._mlflow(server + "/")
    assert (check.status, check.advice) == ("ok", "")


def test_servers_that_do_not_answer():
    gone = f"127.0.0.1:{free_port()}"

    for check in (doctor._ray(gone), doctor._ray(f"ray://{gone}"), doctor._ray(f"http://{gone}"), doctor._ray("a:b:c")):
        assert (check.status, "RAY_ADDRESS=" in check.found, "unset" in check.advice) == ("fail", True, True)
    for check in (doctor._mlflow(f"http://{gone}"), doctor._mlflow("http://")):
        assert check.status == "fail"
        assert "no answer" in check.found
        assert "unset" in check.advice


def test_server_with_a_fault_of_its_own(server):
    assert "it answers 500" in doctor._mlflow(f"{server}/other").found


def test_ray_of_this_process_is_not_started():
    import ray

    before = ray.is_initialized()  # by a test before this one, perhaps
    for address in (None, "local", "auto"):
        check = doctor._ray(address)
        assert (check.status, check.found.startswith(ray.__version__)) == ("ok", True)
    assert ray.is_initialized() == before


def test_ray_address_comes_from_the_environment(monkeypatch, this_home):
    gone = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("RAY_ADDRESS", gone)

    (check,) = [check for check in doctor.examine(DoctorSettings(), this_home) if check.name == "ray"]

    assert (env.ray_address(), check.status) == (gone, "fail")


def test_tracking_database_needs_a_folder_that_can_be_written(this_home, tmp_path):
    assert doctor._mlflow(this_home.tracking_uri).status == "ok"
    (tmp_path / "file").write_text("")
    assert doctor._mlflow(f"sqlite:///{tmp_path}/file/mlflow.db").status == "fail"


def test_password_in_a_tracking_uri_is_not_shown():
    check = doctor._mlflow("postgresql://rayapp:s3cret@db:5432/mlflow")

    assert check.status == "warn"
    assert "postgresql://rayapp:***@db:5432/mlflow" in check.found
    assert "s3cret" not in str(check)


def test_data_that_is_there_is_named(this_home):
    assert doctor._data(this_home).found == "digits (always there)"
    (this_home.data / "cifar10").mkdir(parents=True)
    assert doctor._data(this_home).found == "digits (always there), cifar10"
