"""The contract's own checker, check by check, over real HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from starlette.responses import PlainTextResponse

from tests.contract import conformance
from tests.support.bundles import tiny_served
from tests.support.serving import client_of, listening

CHECKS = {
    name: check
    for name, _, needs_bentoml, check in conformance.CHECKS
    if not needs_bentoml and not name.startswith("reference.")  # that one needs a second server
}


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[conformance.Ctx]:
    with client_of(tiny_served(tmp_path_factory.mktemp("model"))) as client:
        yield conformance.Ctx(str(client.base_url), timeout=60, atol=1e-4)


def test_the_checks_that_need_nothing_else_are_all_there() -> None:
    """None was lost when the checker was brought into the repository: 42 that must hold and 7 that are nice to have."""
    assert len(CHECKS) == 49


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS.keys())
def test_checker(context: conformance.Ctx, check: Callable[[conformance.Ctx], object]) -> None:
    check(context)  # raises its own Fail, and Skip where the model does not react to its input


def test_a_server_that_keeps_nothing_of_the_contract_fails_every_check() -> None:
    """Each check can fail: it is not passed by any server that answers."""
    with listening(PlainTextResponse("as you like", status_code=299)) as url:
        context = conformance.Ctx(url, timeout=10, atol=1e-4)
        assert [name for name, check in CHECKS.items() if not fails(check, context)] == []


def fails(check: Callable[[conformance.Ctx], object], context: conformance.Ctx) -> bool:
    try:
        check(context)
    except (conformance.Fail, ValueError, KeyError):  # a body that is no JSON, or lacks what every answer has
        return True
    return False
