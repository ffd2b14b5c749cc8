"""schema.json, which the BentoML client reads, and docs.json equal what was recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rayapp.serve import openapi

HERE = Path(__file__).parent


def test_schema_equals_the_recorded_one():
    assert openapi.schema() == json.loads((HERE / "schema.json").read_text())


def test_operations_and_their_schemas_equal_the_recorded_ones():
    recorded, ours = json.loads((HERE / "docs.json").read_text()), openapi.openapi()

    assert set(ours["paths"]) == set(recorded["paths"])
    for path in ("/predict_image", "/predict_batch", "/get_model_info", "/health"):
        assert ours["paths"][path] == recorded["paths"][path]
    schemas = recorded["components"]["schemas"]
    assert ours["components"]["schemas"] == {k: v for k, v in schemas.items() if k != "TaskStatusResponse"}
    assert ours["openapi"] == recorded["openapi"]
    assert ours["servers"] == recorded["servers"]


def test_every_reference_has_its_schema():
    ours = openapi.openapi()

    assert set(_references(ours)) == {
        f"#/components/schemas/{n}" for n in ("InvalidArgument", "NotFound", "InternalServerError")
    }
    assert all(reference.split("/")[-1] in ours["components"]["schemas"] for reference in _references(ours))


def test_uploads_are_multipart():
    for name in ("predict_image", "predict_batch"):
        assert list(openapi.openapi()["paths"][f"/{name}"]["post"]["requestBody"]["content"]) == ["multipart/form-data"]


def _references(node: Any) -> list[str]:
    if isinstance(node, dict):
        return [node["$ref"]] if "$ref" in node else [r for value in node.values() for r in _references(value)]
    return [r for value in node for r in _references(value)] if isinstance(node, list) else []
