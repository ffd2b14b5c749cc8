"""The arrows of the project: who may import whom, who may read the environment.

The imports are read from the source, so an import inside a function counts as well. A new file needs a place in these
lists: that is a decision, not an accident.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# A part imports its own files and the parts on lines above. Parts on one line do not know each other.
FLOORS = [
    {"errors"},
    {"config"},
    {"sweep_config"},
    {"vision"},
    {"settings"},
    {"registry"},
    {"cluster"},
    {"compute", "serve"},
    {"doctor", "predict"},
    {"demo"},
    {"verbs"},
    {"cli"},
    {"jobs"},
]
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
# Inside vision a file imports what stands left of it.
READING = ["tree", "parts", "sources", "unlabelled", "downloads", "decoded", "datasets"]
VISION = [
    "preprocess",
    *READING,
    "augment",
    "batches",
    "resnet9",
    "models",
    "flops",
    "metrics",
    "state",
    "loop",
    "plots",
]
VISION += ["pools", "bundle", "predictor", "explain", "evaluate"]
# Serving answers with a bundle alone: data sets and training stay away from it.
SERVE_NEVER = {f"vision.{name}" for name in (*READING, "augment", "batches", "state", "loop", "plots", "evaluate")}
# Who may import a library of the outer world; anyone may import the others.
OWNERS = {
    "mlflow": {"registry"},
    "ray": {"cluster", "compute", "serve", "doctor", "demo", "verbs", "cli"},
    "starlette": {"serve"},
    "fastapi": {"serve"},
    "httpx": {"registry", "serve", "doctor", "predict", "demo"},
    "boto3": {"registry"},
}


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
        found += [f"{where}:{line}: {what}" for line, what in _environment(tree, may_read=module == "config")]
    return found


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
            names = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
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
        return _why_not_in_vision(module, target) if part == "vision" else ""
    return "" if part and FLOOR_OF[other] < FLOOR_OF[part] else f"{part or 'rayapp'} stands above {other}, or beside it"


def _why_not_in_vision(module: str, target: str) -> str:
    names = [name.split(".")[1] for name in (module, target) if "." in name]
    unknown = [name for name in names if name not in VISION]
    if unknown:
        return f"'vision.{unknown[0]}' has no place; add it to VISION in {Path(__file__).name}"
    if len(names) < 2 or VISION.index(names[1]) >= VISION.index(names[0]):
        return f"inside vision the order is {' < '.join(VISION)}"
    return ""


def _environment(tree: ast.AST, *, may_read: bool) -> Iterator[tuple[int, str]]:
    """Uses of os.environ and its kin that are not a plain read in config.py."""
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
            yield node.lineno, f"os.{node.attr} is read outside config.py; take what you need from there"


# --- the tests --------------------------------------------------------------------------------------------------------


def test_all_arrows_point_left():
    assert not violations(ROOT), "\n".join(violations(ROOT))


def test_every_package_is_seen():
    modules = {_module(path.relative_to(ROOT)) for path in ROOT.glob("rayapp/**/*.py")}

    assert {"errors", "config", "vision.preprocess", "registry", "compute", "serve"} <= modules


@pytest.mark.parametrize(
    ("path", "line", "arrow"),
    [
        ("rayapp/vision/loop.py", "import ray.train", "vision.loop -> ray.train"),
        ("rayapp/vision/loop.py", "from rayapp.compute.train import train", "vision.loop -> compute.train.train"),
        ("rayapp/vision/loop.py", "from rayapp.vision.bundle import Bundle", "vision.loop -> vision.bundle.Bundle"),
        ("rayapp/vision/loop.py", "from rayapp import registry", "vision.loop -> registry"),
        ("rayapp/vision/loop.py", "def f():\n    import mlflow", "vision.loop -> mlflow"),
        ("rayapp/vision/helpers.py", "from rayapp.vision.loop import fit", "'vision.helpers' has no place"),
        ("rayapp/compute/train.py", "import mlflow", "compute.train -> mlflow"),
        ("rayapp/compute/train.py", "from rayapp.serve import app", "compute.train -> serve.app"),
        ("rayapp/serve/app.py", "from rayapp.compute import train", "serve.app -> compute.train"),
        ("rayapp/serve/app.py", "from rayapp.vision import datasets", "serve.app -> vision.datasets"),
        ("rayapp/serve/app.py", "from rayapp.vision.loop import fit", "serve.app -> vision.loop.fit"),
        ("rayapp/registry/models.py", "import ray", "registry.models -> ray"),
        ("rayapp/config.py", "from rayapp.vision import preprocess", "config -> vision.preprocess"),
        ("rayapp/errors.py", "from rayapp.config import Home", "errors -> config.Home"),
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
        ("rayapp/vision/evaluate.py", "from rayapp.vision.datasets import load\nfrom rayapp.errors import DataError"),
        ("rayapp/cli.py", "from rayapp import __version__, demo\nimport ray"),
        ("rayapp/config.py", "import os\nos.environ.get('RAYAPP_HOME', '')\nos.environ['RAYAPP_HOME']"),
        ("jobs/train.py", "from rayapp.compute.train import train"),
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
        ("rayapp/config.py", "os.environ['OMP_NUM_THREADS'] = '1'"),
        ("rayapp/config.py", "del os.environ['OMP_NUM_THREADS']"),
        ("rayapp/config.py", "os.environ.setdefault('OMP_NUM_THREADS', '1')"),
        ("rayapp/config.py", "os.environ.update(A='1')"),
        ("rayapp/config.py", "os.putenv('A', '1')"),
        ("rayapp/config.py", "from os import environ"),
        ("rayapp/compute/train.py", "os.environ['A'] = '1'"),
        ("rayapp/compute/train.py", "os.environ.get('A')"),
        ("rayapp/compute/train.py", "os.getenv('A')"),
        ("jobs/train.py", "os.environ.get('A')"),
    ],
)
def test_planted_use_of_the_environment_is_found(tmp_path, path, line):
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(line + "\n")

    (sentence,) = violations(tmp_path)

    assert sentence.startswith(f"{path}:1: ")


def test_vision_imports_without_ray_and_mlflow():
    modules = sorted(f"rayapp.vision.{path.stem}" for path in ROOT.glob("rayapp/vision/[!_]*.py"))
    blocked = ["ray", "mlflow", "starlette", "fastapi", "httpx", "boto3", "orjson", "prometheus_client", "psutil"]
    code = f"""
import importlib, sys
for name in {blocked}:
    sys.modules[name] = None  # importing it raises ImportError
for name in {modules}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=200)

    assert done.returncode == 0, done.stderr


def test_serve_loads_no_data_set_and_no_training_code():
    modules = sorted(f"rayapp.serve.{path.stem}" for path in ROOT.glob("rayapp/serve/[!_]*.py"))
    never = [*sorted(f"rayapp.{name}" for name in SERVE_NEVER), "rayapp.compute"]
    code = f"""
import importlib, sys
for name in {modules}:
    importlib.import_module(name)
loaded = [name for name in {never} if name in sys.modules]
sys.exit(f"loaded by serving: {{loaded}}" if loaded else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=200)

    assert done.returncode == 0, done.stderr
