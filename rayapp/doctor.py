"""What is right and wrong with this machine, a Check a line, each with what to do about it.

It starts no cluster, writes nothing but one temporary file in the home folder, and takes the time that importing torch
takes (2-6 s): all checks run at once, and what goes over a network gets 3 s.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

import rayapp
from rayapp.config.commands import DoctorSettings
from rayapp.config.env import Home, ray_address
from rayapp.errors import ConfigError, RayAppError
from rayapp.runtime.address import check_address

Status = Literal["ok", "warn", "fail"]
GB = 1e9
ANSWER_TIMEOUT_S = 3.0
INSTALL = "pip install -c constraints.txt -e '.[app]'"


@dataclass(frozen=True)
class Check:
    """One line of the report; advice is empty where there is nothing to do."""

    name: str
    status: Status
    found: str
    advice: str = ""


def doctor(settings: DoctorSettings, home: Home) -> dict[str, Any] | None:
    """The report as JSON holds it, or None after a table on stdout. Raises RayAppError after a table with a FAIL."""
    checks = examine(settings, home)
    failed = [check.name for check in checks if check.status == "fail"]
    if settings.json_output:
        return {"ok": not failed, "checks": [asdict(check) for check in checks], "exit_code": 1 if failed else 0}
    print_table(checks)
    if failed:
        raise RayAppError(f"{len(failed)} of {len(checks)} checks failed ({', '.join(failed)}); do what they advise")
    return None


def examine(settings: DoctorSettings, home: Home) -> list[Check]:
    """All checks of this machine, in the order in which one would mend them."""
    checks: list[Callable[[], Check]] = [
        _python,
        _packages,
        _cores,
        _memory,
        lambda: _disk(home),
        lambda: _home(home),
        _accelerator,
        lambda: _ray(ray_address()),
        lambda: _mlflow(home.tracking_uri),
        lambda: _data(home),
        lambda: _port(settings.port),
    ]
    with ThreadPoolExecutor(max_workers=len(checks)) as pool:
        return list(pool.map(lambda check: check(), checks))


def print_table(checks: list[Check]) -> None:
    """The checks on stdout, for people."""
    from rich.table import Table
    from rich.text import Text

    from rayapp.terminal import table_console

    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("check", "", "found", "what to do"):
        table.add_column(title, overflow="fold")
    for check in checks:
        status = Text(check.status.upper(), style=colours[check.status])
        table.add_row(check.name, status, Text(check.found), Text(check.advice))
    table_console().print(table)


def _python() -> Check:
    found = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    if sys.version_info[:2] == (3, 11):
        return Check("python", "ok", found)
    return Check("python", "fail", found, "the pins are for Python 3.11: make the environment anew with python3.11")


def _cores() -> Check:
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if num_cores > 1:
        return Check("cores", "ok", f"{num_cores}: up to {num_cores} training processes")
    return Check("cores", "warn", "1", "train with --compute.num_workers 1; the demo takes --num_workers 1")


def _memory() -> Check:
    try:
        import psutil
    except ImportError as error:
        return Check("memory", "warn", f"not known: {error}", INSTALL)
    memory = psutil.virtual_memory()
    found = f"{memory.available / GB:.1f} of {memory.total / GB:.1f} GB free"
    if memory.available >= 4 * GB:
        return Check("memory", "ok", found)
    advice = "training with 2 workers and serving want 4 GB: close other programs or use --compute.num_workers 1"
    return Check("memory", "warn", found, advice)


def _disk(home: Home) -> Check:
    free = shutil.disk_usage(_existing(home.folder)).free
    found = f"{free / GB:.1f} GB free at {home.folder}"
    if free >= 2 * GB:
        return Check("disk", "ok", found)
    advice = "checkpoints, bundles and data want 2 GB: free some space or set RAYAPP_HOME to a larger disk"
    return Check("disk", "fail" if free < GB / 4 else "warn", found, advice)


def _home(home: Home) -> Check:
    place = _existing(home.folder)
    found = str(home.folder) + ("" if place == home.folder else " (made at the first run)")
    if not _writable(place):
        return Check("home", "fail", f"{place} cannot be written", "set RAYAPP_HOME to a folder that you may write")
    return Check("home", "ok", found)


def _port(port: int) -> Check:
    with socket.socket() as probe:
        probe.settimeout(1)
        in_use = probe.connect_ex(("127.0.0.1", port)) == 0
    if not in_use:
        return Check("port", "ok", f"{port} is free")
    advice = f"stop what listens there, or serve with --port {port + 1}"
    return Check("port", "warn", f"{port} is in use", advice)


def _existing(folder: Path) -> Path:
    return next(place for place in (folder, *folder.parents) if place.exists())


def _writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _packages() -> Check:
    try:
        required = dict(_required())
    except importlib.metadata.PackageNotFoundError:
        return Check("packages", "warn", "rayapp runs from a folder and is not installed, so none is compared", INSTALL)
    versions = {name: _version(name) for name in required}
    missing = [name for name, extra in required.items() if versions[name] is None and extra != "dev"]
    if missing:
        return Check("packages", "fail", f"not installed: {', '.join(missing)}", INSTALL)
    installed = {name: version for name, version in versions.items() if version is not None}
    constraints = Path(rayapp.__file__).resolve().parents[1] / "constraints.txt"
    if not constraints.is_file():
        advice = "to compare versions, run from a checkout of the project; nothing to do in an image made from it"
        return Check("packages", "ok", f"{len(installed)} installed; no constraints.txt to compare with", advice)
    pins = read_pins(constraints)
    others = [f"{name} {version} (pinned {pins[name]})" for name, version in installed.items() if _differs(name, pins)]
    if others:
        return Check("packages", "warn", f"not as pinned: {', '.join(others)}", INSTALL)
    return Check("packages", "ok", f"{len(installed)} as pinned in constraints.txt")


def read_pins(constraints: Path) -> dict[str, str]:
    """The version of each package in a constraints file; names as PEP 503 writes them."""
    lines = (line.partition("#")[0].strip() for line in constraints.read_text(encoding="utf-8").splitlines())
    pairs = (line.split("==") for line in lines if "==" in line)
    return {_plain(name): version for name, version in pairs}


def _required() -> Iterator[tuple[str, str]]:
    """Our direct dependencies, each with the extra that asks for it ("" for none)."""
    for line in importlib.metadata.requires("rayapp") or []:
        name = re.match(r"[\w.-]+", line)
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        if name:
            yield _plain(name[0]), extra[1] if extra else ""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _differs(package: str, pins: dict[str, str]) -> bool:
    # the CPU build of torch calls itself 2.14.1+cpu; it is the pinned version all the same
    return package in pins and (_version(package) or "").partition("+")[0] != pins[package]


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _accelerator() -> Check:
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:  # OSError: a shared library is missing
        return Check("accelerator", "fail", f"torch cannot be imported: {error}", INSTALL)
    if torch.cuda.is_available():
        count, memory = torch.cuda.device_count(), torch.cuda.get_device_properties(0).total_memory
        found = (
            f"{count} x {torch.cuda.get_device_name(0)} ({memory / GB:.0f} GB): training uses cuda, one process a GPU"
        )
        return Check("accelerator", "ok", found)
    if torch.backends.mps.is_available():
        return Check("accelerator", "ok", "Apple GPU: training uses mps, one process")
    found = "none: training uses the CPU, one process a core"
    if Path("/dev/nvidia0").exists():
        advice = "install the CUDA build of torch" if torch.version.cuda is None else "update the NVIDIA driver"
        return Check("accelerator", "warn", f"{found}, although there is an NVIDIA GPU", advice)
    return Check("accelerator", "ok", found)


def _ray(address: str | None) -> Check:
    try:
        version = importlib.import_module("ray").__version__
    except (ImportError, OSError) as error:
        return Check("ray", "fail", f"ray cannot be imported: {error}", INSTALL)
    if address in (None, "local"):
        return Check("ray", "ok", f"{version}; started in the process when it is needed")
    try:
        check_address(str(address))
    except ConfigError as error:
        found, _, advice = str(error).partition("; ")
        return Check("ray", "fail", f"{version}; {found}", advice)
    if address == "auto":
        return Check("ray", "ok", f"{version}; RAY_ADDRESS=auto: the cluster that runs on this machine")
    return Check("ray", "ok", f"{version}; {address} answers")


def _mlflow(tracking_uri: str) -> Check:
    version = _version("mlflow")
    if version is None:
        return Check("mlflow", "fail", "mlflow is not installed", INSTALL)
    shown = f"{version}; {_without_user_info(tracking_uri)}"
    scheme, _, rest = tracking_uri.partition("://")
    if scheme == "sqlite":
        folder = _existing(Path(f"/{rest.lstrip('/')}").parent)
        if _writable(folder):
            return Check("mlflow", "ok", shown)
        return Check("mlflow", "fail", f"{shown}: {folder} cannot be written", "set RAYAPP_HOME or MLFLOW_TRACKING_URI")
    if scheme not in ("http", "https"):
        return Check("mlflow", "warn", f"{shown}: not asked", "a server (http://) or sqlite:/// is checked here")
    fault = _no_http_answer(tracking_uri.rstrip("/") + "/health")
    if fault:
        advice = "start the server (mlflow server), or unset MLFLOW_TRACKING_URI to use sqlite in RAYAPP_HOME"
        return Check("mlflow", "fail", f"{shown}: {fault}", advice)
    return Check("mlflow", "ok", f"{shown} answers")


def _data(home: Home) -> Check:
    there = sorted(place.name for place in home.data.iterdir() if place.is_dir()) if home.data.is_dir() else []
    found = ", ".join(["digits (always there)", *there])
    advice = "" if there else "cifar10, cifar100 and fashion_mnist are downloaded at first use"
    return Check("data", "ok", found, advice)


def _no_http_answer(url: str) -> str:
    try:
        import httpx

        from rayapp.proxies import NO_PROXY_ADVICE, http_client, is_loopback, proxy_of, through
    except ImportError as error:
        return f"cannot be asked: {error}"
    if is_loopback(url) and proxy_of(url):  # MLflow's own client asks it
        return f"it would be asked through the proxy {proxy_of(url)}: {NO_PROXY_ADVICE}"
    try:
        with http_client(url, timeout=ANSWER_TIMEOUT_S, follow_redirects=True) as client:
            answer = client.get(url)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"no answer{through(url)} ({error or type(error).__name__})"
    # 401 and 403 come from a server that wants a login: it is there
    return "" if answer.is_success or answer.status_code in (401, 403) else f"it answers {answer.status_code}"


def _without_user_info(uri: str) -> str:
    parts = urlsplit(uri)
    if not parts.password:
        return uri
    return urlunsplit(parts._replace(netloc=f"{parts.username}:***@{parts.netloc.rpartition('@')[2]}"))
