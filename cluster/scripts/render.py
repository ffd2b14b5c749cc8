"""stdin: objects from kustomize; stdout: the same with the values of one environment. render.sh runs it.

Values replace ${NAME} in text after the YAML is read, so none can break or add to it. Images get the registry, those in
the RayJob templates too. What is left of ${...} is an error that names object and field.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from typing import Any

import yaml

Json = dict[str, Any]
VALUES = ("BUCKET", "AWS_REGION", "DOMAIN", "CERTIFICATE_ARN", "MLFLOW_SECRET", "SERVING_SECRET")
OURS = re.compile(r"rayapp(-mlflow)?:")  # images without a registry
ROLES = {"ray-jobs": "RAY_JOBS_ROLE_ARN", "ray-serve": "RAY_SERVE_ROLE_ARN"}
SLEEPERS = ("RayCluster", "RayService")


class Dumper(yaml.SafeDumper):
    """Text of several lines as a block, which people can read and compare."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


Dumper.add_representer(str, _text)


def filled(value: Any, values: dict[str, str]) -> Any:
    """value with the values in all its text, and the registry before our images."""
    if isinstance(value, dict):
        return {key: _image(inner, values) if key == "image" else filled(inner, values) for key, inner in value.items()}
    if isinstance(value, list):
        return [filled(inner, values) for inner in value]
    if isinstance(value, str):
        for name in VALUES:
            value = value.replace(f"${{{name}}}", values[name])
    return value


def _image(image: Any, values: dict[str, str]) -> Any:
    if isinstance(image, str) and OURS.match(image):
        return f"{values['REGISTRY'].rstrip('/')}/{image}"
    return filled(image, values)


def rendered(obj: Json, values: dict[str, str]) -> Json:
    """The object with the values of values; RayJobs inside the templates too."""
    obj = filled(obj, values)
    kind, name = obj["kind"], obj["metadata"]["name"]
    if (kind, name) == ("ConfigMap", "rayjob-templates"):
        obj["data"] = {key: dump([filled(yaml.safe_load(text), values)]) for key, text in obj["data"].items()}
    if kind == "ServiceAccount" and (role := values.get(ROLES.get(name, ""))):
        obj["metadata"].setdefault("annotations", {})["eks.amazonaws.com/role-arn"] = role
    if kind in SLEEPERS and "suspend" in obj["spec"]:
        obj["spec"]["suspend"] = values.get("AWAKE") != "true"
    return obj


def left_over(value: Any, path: str) -> Iterator[str]:
    """Where a value is missing."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from left_over(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from left_over(inner, f"{path}[{index}]")
    elif isinstance(value, str) and (found := re.search(r"\$\{\w+\}", value)):
        yield f"{path}: nothing replaces {found[0]}"


def dump(objects: list[Json]) -> str:
    """YAML with a document for each object."""
    return yaml.dump_all(objects, Dumper=Dumper, sort_keys=False, width=1000)


def main(values: dict[str, str]) -> int:
    """The exit code."""
    without = values.get("WITHOUT", "").split()
    objects = [obj for obj in yaml.safe_load_all(sys.stdin) if obj and obj["apiVersion"].split("/")[0] not in without]
    objects = [rendered(obj, values) for obj in objects]
    missing = [place for obj in objects for place in left_over(obj, f"{obj['kind']}/{obj['metadata']['name']}")]
    if missing or not objects:
        print("render.py:", *(missing or ["kustomize gave nothing"]), sep="\n", file=sys.stderr)
        return 1
    print(dump(objects), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(dict(os.environ)))
