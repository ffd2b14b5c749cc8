"""The contract's own checker, check by check, over real HTTP. Skipped where ../shared is not there."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.contract.tiny import client_of, tiny_served

CHECKER = Path(__file__).resolve().parents[3] / "shared" / "contract" / "conformance.py"


def checker() -> ModuleType | None:
    if not CHECKER.exists() or importlib.util.find_spec("requests") is None:
        return None
    spec = importlib.util.spec_from_file_location("conformance", CHECKER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


conformance = checker()
checks = [check for check in conformance.CHECKS if not check[2]] if conformance else []
checks = [check for check in checks if not check[0].startswith("reference.")]  # needs a second server


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    assert conformance is not None
    with client_of(tiny_served(tmp_path_factory.mktemp("model"))) as client:
        yield conformance.Ctx(str(client.base_url), timeout=60, atol=1e-4)


@pytest.mark.skipif(not checks, reason="../shared/contract/conformance.py is not there")
@pytest.mark.parametrize("check", checks, ids=[check[0] for check in checks])
def test_checker(context: Any, check: Any):
    check[3](context)  # raises its own Fail, and Skip where the model does not react to its input
