"""The floors of the project: who may import whom, who may read the environment.

The imports are read from the source, so an import inside a function counts as well. Inside a folder no order is kept by
hand: that there are no circles says enough.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support.layers import SERVE_NEVER

ROOT = Path(__file__).resolve().parents[2]

# A part imports its own files and the parts on lines above. Parts on one line do not know each other.
FLOORS = [
    {"errors"},
    {"storage"},
    {"config", "proxies"},
    {"provenance", "data", "terminal"},
    {"vision"},
    {"registry", "runtime"},
    {"train", "batch", "serve"},
    {"tune"},
    {"doctor", "predict"},
    {"demo"},
    {"verbs"},
    {"cli"},
    {"__main__"},
    {"jobs"},
]
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
# Who may import a library of the outer world; anyone may import the others.
OWNERS = {
    "mlflow": {"registry"},
    "ray": {"runtime", "train", "tune", "batch", "serve", "doctor", "demo", "verbs", "cli"},
    "starlette": {"serve"},
    "fastapi": {"serve"},
    "httpx": {"proxies", "registry", "serve", "doctor", "predict", "demo"},
    "boto3": {"registry"},
}
# gloo and NCCL take the name of their interface from nowhere else, and it differs from node to node.
MAY_WRITE = "train.network"


# --- the checker ------------------------------------------------------------------------------------------------------


def violations(root: Path) -> list[str]:
    """A sentence for each wrong arrow in the files of rayapp/ and jobs/ under root."""
    found: list[str] = []
    for path in sorted([*root.glob("rayapp/**/*.py"), *root.glob("jobs/**/*.py")]):
        module = _module(path.relative_to(root))
        where = path.relative_to(root)
        part = module.split(".")[0]
        if part and part not in FLOOR_OF:
            found.append(f"{where}:1: '{part}' has no floor; add it to FLOORS in {Path(__file__).name}")
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(where))
        for line, target in _imports(tree, module):
            reason = _why_not(module, target)
            if reason:
                found.append(f"{where}:{line}: {module} -> {target} is not allowed: {reason}")
        if module != MAY_WRITE:
            found += [f"{where}:{line}: {what}" for line, what in _environment(tree, may_read=module == "config.env")]
    return found + _circles(root)


def _circles(root: Path) -> list[str]:
    """A sentence where files of rayapp/ import each other in a circle."""
    files = {_module(path.relative_to(root)): path for path in root.glob("rayapp/**/*.py")}
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        targets = {target for _, target in _imports(ast.parse(path.read_text(encoding="utf-8")), module)}
        whole = targets | {target.rpartition(".")[0] for target in targets}
        graph[module] = {target for target in whole if target in files and target not in (module, "")}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [f"rayapp: circle: {' <- '.join(error.args[1])}"]
    return []


def _module(path: Path) -> str:
    """vision.loop for rayapp/vision/loop.py; jobs.train for jobs/train.py; "" for rayapp/__init__.py."""
    parts = list(path.with_suffix("").parts)
    return ".".join(part for part in (parts[1:] if parts[0] == "rayapp" else parts) if part != "__init__")


def _imports(tree: ast.AST, module: str) -> Iterator[tuple[int, str]]:
    """What a file imports: "vision.loop" for our own modules, "torch.nn" for others."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: relative imports hide the arrow; write the whole name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            names = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        else:
            continue
        yield from ((node.lineno, name.removeprefix("rayapp.")) for name in names)


def _why_not(module: str, target: str) -> str:
    """Why module must not import target; empty where it may."""
    part, other = module.split(".")[0], target.split(".")[0]
    if other in OWNERS:
        return "" if part in OWNERS[other] else f"only {', '.join(sorted(OWNERS[other]))} import {other}"
    if other not in FLOOR_OF:
        return ""
    if part == "serve" and any(f"{target}.".startswith(f"{never}.") for never in SERVE_NEVER):
        return "serving knows bundles, not data sets and training"
    if part == other:
        return ""
    return "" if part and FLOOR_OF[other] < FLOOR_OF[part] else f"{part or 'rayapp'} stands above {other}, or beside it"


def _environment(tree: ast.AST, *, may_read: bool) -> Iterator[tuple[int, str]]:
    """Uses of os.environ and its kin that are not a plain read in config/env.py."""
    reads: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            reads.add(id(node.value))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            reads.add(id(node.func.value))
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            names = {alias.name for alias in node.names} & {"environ", "getenv", "putenv", "unsetenv"}
            yield from ((node.lineno, f"imports os.{name} by name; write os.{name}") for name in names)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name) or node.value.id != "os":
            continue
        if node.attr in ("putenv", "unsetenv") or (node.attr == "environ" and may_read and id(node) not in reads):
            yield node.lineno, f"os.{node.attr} is written or handed on; nobody changes the environment"
        elif node.attr in ("environ", "getenv") and not may_read:
            yield node.lineno, f"os.{node.attr} is read outside config/env.py; take what you need from there"


# --- the tests --------------------------------------------------------------------------------------------------------


def test_all_arrows_point_left():
    assert not violations(ROOT), "\n".join(violations(ROOT))


def test_every_package_is_seen():
    modules = {_module(path.relative_to(ROOT)) for path in ROOT.glob("rayapp/**/*.py")}

    assert {"errors", "config", "data.preprocess", "registry", "train", "serve"} <= modules


@pytest.mark.parametrize(
    ("path", "line", "arrow"),
    [
        ("rayapp/vision/loop.py", "import ray.train", "vision.loop -> ray.train"),
        ("rayapp/vision/loop.py", "from rayapp.train.driver import train", "vision.loop -> train.driver.train"),
        ("rayapp/data/files.py", "from rayapp.vision.bundle import Bundle", "data.files -> vision.bundle.Bundle"),
        ("rayapp/vision/loop.py", "from rayapp import registry", "vision.loop -> registry"),
        ("rayapp/vision/loop.py", "def f():\n    import mlflow", "vision.loop -> mlflow"),
        ("rayapp/train/driver.py", "import mlflow", "train.driver -> mlflow"),
        ("rayapp/train/driver.py", "from rayapp.serve import app", "train.driver -> serve.app"),
        ("rayapp/serve/app.py", "from rayapp.train import driver", "serve.app -> train.driver"),
        ("rayapp/tune/driver.py", "import mlflow", "tune.driver -> mlflow"),
        ("rayapp/serve/app.py", "from rayapp.data import datasets", "serve.app -> data.datasets"),
        ("rayapp/serve/app.py", "from rayapp.vision.loop import fit", "serve.app -> vision.loop.fit"),
        ("rayapp/registry/models.py", "import ray", "registry.models -> ray"),
        ("rayapp/config/train.py", "from rayapp.data import preprocess", "config.train -> data.preprocess"),
        ("rayapp/errors.py", "from rayapp.config.env import Home", "errors -> config.env.Home"),
        ("rayapp/doctor.py", "import importlib\nimportlib.import_module('mlflow')", "doctor -> mlflow"),
        ("rayapp/utils.py", "import json", "'utils' has no floor"),
        ("rayapp/__init__.py", "from rayapp import cli", "-> cli"),
        ("jobs/train.py", "import mlflow", "jobs.train -> mlflow"),
    ],
)
def test_planted_import_is_found(tmp_path, path, line, arrow):
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(line + "\n")

    (sentence,) = violations(tmp_path)

    assert arrow in sentence
    assert sentence.startswith(f"{path}:")


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("rayapp/serve/app.py", "from rayapp.vision.predictor import Predictor\nimport ray.serve, starlette"),
        ("rayapp/vision/evaluate.py", "from rayapp.data.datasets import load\nfrom rayapp.errors import DataError"),
        ("rayapp/cli.py", "from rayapp import __version__, demo\nimport ray"),
        ("rayapp/config/env.py", "import os\nos.environ.get('RAYAPP_HOME', '')\nos.environ['RAYAPP_HOME']"),
        ("jobs/train.py", "from rayapp.train.driver import train"),
    ],
)
def test_right_import_is_not_found(tmp_path, path, line):
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(line + "\n")

    assert violations(tmp_path) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("rayapp/config/env.py", "os.environ['OMP_NUM_THREADS'] = '1'"),
        ("rayapp/config/env.py", "del os.environ['OMP_NUM_THREADS']"),
        ("rayapp/config/env.py", "os.environ.setdefault('OMP_NUM_THREADS', '1')"),
        ("rayapp/config/env.py", "os.environ.update(A='1')"),
        ("rayapp/config/env.py", "os.putenv('A', '1')"),
        ("rayapp/config/env.py", "from os import environ"),
        ("rayapp/train/driver.py", "os.environ['A'] = '1'"),
        ("rayapp/train/driver.py", "os.environ.get('A')"),
        ("rayapp/train/driver.py", "os.getenv('A')"),
        ("jobs/train.py", "os.environ.get('A')"),
    ],
)
def test_planted_use_of_the_environment_is_found(tmp_path, path, line):
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(line + "\n")

    (sentence,) = violations(tmp_path)

    assert sentence.startswith(f"{path}:1: ")


def test_a_circle_inside_a_folder_is_found(tmp_path):
    for name, other in (("loop", "state"), ("state", "bundle"), ("bundle", "loop")):
        file = tmp_path / "rayapp" / "vision" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"def f():\n    from rayapp.vision.{other} import X\n")

    (sentence,) = violations(tmp_path)

    assert "circle" in sentence
    assert "vision.loop" in sentence
