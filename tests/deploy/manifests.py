"""cluster/manifests as tests read them: file by file, rendered for an environment, and in a copy to plant faults in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.tools import ROOT, python, run, tool

Json = dict[str, Any]
FOLDER = ROOT / "cluster/manifests"
ENVIRONMENTS = ("dev", "prod")
EXAMPLES = sorted((FOLDER / "ray/examples").glob("*.yaml"))
VALUES = {
    "REGISTRY": "111122223333.dkr.ecr.eu-west-1.amazonaws.com/rayapp-test",
    "BUCKET": "rayapp-test-bucket",
    "AWS_REGION": "eu-west-1",
    "DOMAIN": "example.org",
    "CERTIFICATE_ARN": "arn:aws:acm:eu-west-1:111122223333:certificate/abc",
    "MLFLOW_SECRET": "rayapp-test/mlflow",
    "SERVING_SECRET": "rayapp-test/serving",
    "PYTHON": str(python()),
}


def load(path: Path) -> Json:
    """The one object of a file."""
    obj: Json = yaml.safe_load(path.read_text(encoding="utf-8"))
    return obj


def sources(root: Path = ROOT) -> Iterator[tuple[str, Json]]:
    """Each object that stands in cluster/manifests of a root, after the path of its file."""
    for path in sorted((root / "cluster/manifests").rglob("*.yaml")):
        for obj in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            if isinstance(obj, dict) and obj.get("kind") != "Kustomization":
                yield str(path.relative_to(root)), obj


def planted(root: Path, file: str, old: str, new: str) -> Path:
    """The root, with a fault: the first `old` of a file became `new`."""
    path = root / file
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{file} has no {old!r}"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return root


def jobs(folder: Path = FOLDER) -> dict[str, Json]:
    """The RayJob templates by name."""
    return {path.stem: load(path) for path in sorted((folder / "ray/rayjobs").glob("*.yaml"))}


def render(environment: str, *, root: Path = ROOT, ok: bool = True, **values: str) -> str:
    """What render.sh prints. values: over VALUES; an empty one is as good as none."""
    path = {"PATH": f"{tool('kubectl').parent}:{os.environ['PATH']}"}
    return run([root / "cluster/scripts/render.sh", environment], cwd=root, env=VALUES | path | values, ok=ok).stdout


@cache
def rendered_text(environment: str) -> str:
    """What is applied in an environment."""
    return render(environment)


def rendered(environment: str) -> list[Json]:
    """The objects of an environment, anew for each caller."""
    return list(yaml.safe_load_all(rendered_text(environment)))


def the(kind: str, name: str, objects: list[Json]) -> Json:
    """The object of this kind and name."""
    (found,) = (obj for obj in objects if (obj["kind"], obj["metadata"].get("name")) == (kind, name))
    return found


def label(obj: Json) -> str:
    """Kind and name of an object, for people."""
    return f"{obj['kind']}/{obj['metadata'].get('name') or obj['metadata']['generateName']}"


def copied(folder: Path) -> Path:
    """A copy of what render.sh and generate.py read, as a root to plant faults in."""
    for name in ("cluster", "serve_configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".terraform"))
    return folder


def pod_templates(value: Any, path: str = "") -> Iterator[tuple[str, Json]]:
    """Path and content of each pod template (what has spec.containers) at any depth of an object."""
    if isinstance(value, dict):
        if "containers" in (value.get("spec") or {}) and "kind" not in value:
            yield path, value
        for key, inner in value.items():
            yield from pod_templates(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from pod_templates(inner, f"{path}[{index}]")
