"""The rules of KubeRay that no schema knows: our Ray objects keep them all, and each rule finds its planted fault."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.manifests import EXAMPLES, Json, jobs, label, load, rendered
from tests.deploy.operator_faults import FAULTS, planted, smallest
from tests.deploy.operator_rules import NAME_LENGTH, violations

RULES = [Path(__file__).with_name(name) for name in ("operator_rules.py", "operator_cluster_rules.py")]


@pytest.mark.parametrize("environment", ["dev", "prod"])
def test_what_is_applied_keeps_all_rules(environment: str):
    ours = [obj for obj in rendered(environment) if obj["kind"] in NAME_LENGTH]

    assert {obj["kind"] for obj in ours} == {"RayCluster", "RayService"}
    assert [f"{label(obj)}: {line}" for obj in ours for line in violations(obj)] == []


def test_job_templates_and_examples_keep_all_rules():
    ours = [*jobs().values(), *(load(path) for path in EXAMPLES)]

    assert [f"{label(obj)}: {line}" for obj in ours for line in violations(obj)] == []


@pytest.mark.parametrize("kind", sorted(NAME_LENGTH))
def test_the_least_object_is_taken(kind: str):
    assert violations(smallest(kind)) == []


@pytest.mark.parametrize(("kind", "found", "changes"), FAULTS, ids=lambda value: str(value)[:60])
def test_a_planted_fault_is_found_with_its_field(kind: str, found: str, changes: Json):
    lines = violations(planted(kind, changes))

    assert any(found in line for line in lines), lines
    assert all(re.match(r"(metadata|spec)[\w.\[\]/-]*:", line) for line in lines), lines


def sentences(path: Path) -> Iterator[str]:
    """The pattern of each line that a rule can say."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Yield):
            parts = node.value.values if isinstance(node.value, ast.JoinedStr) else [node.value]
            yield "".join(re.escape(str(part.value)) if isinstance(part, ast.Constant) else ".*" for part in parts)


def test_every_rule_has_a_planted_fault():
    told = [line for kind, _, changes in FAULTS for line in violations(planted(kind, changes))]
    silent = [rule for path in RULES for rule in sentences(path) if not any(re.fullmatch(rule, line) for line in told)]

    assert silent == []
