"""Prints what Helm makes of a chart, after its strict lint: CHART RELEASE NAMESPACE [VALUES.yaml ...].

Runs in an environment of its own, with helm-python-sdk, which carries Helm's engine. Later files win, as with -f.
Exits with 1 and Helm's messages on stderr where the chart or the values are wrong.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import helm_python as helm  # type: ignore[import-not-found]  # not where the tests run


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Maps deeply; anything else is replaced."""
    both = {key: merged(base[key], over[key]) for key in base.keys() & over.keys() if _maps(base[key], over[key])}
    return {**base, **over, **both}


def _maps(*values: object) -> bool:
    return all(isinstance(value, dict) for value in values)


def main(chart_folder: str, release: str, namespace: str, *files: str) -> int:
    values: dict[str, Any] = {}
    for file in files:
        values = merged(values, helm.values_from_yaml(Path(file).read_text(encoding="utf-8")))
    report = helm.lint(chart_folder, values, strict=True, namespace=namespace, with_subcharts=True)
    for message in report["messages"]:
        print(f"{message['path']}: {message['error']}", file=sys.stderr)
    if report["errors"]:
        print(*report["errors"], sep="\n", file=sys.stderr)
        return 1
    manifests = helm.Chart.load(chart_folder).render(values, name=release, namespace=namespace)
    for path, text in sorted(manifests.items()):
        if path.endswith(".yaml") and text.strip():
            print(f"---\n# Source: {path}\n{text.strip()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
