"""The exception tree, and the clause that names the nearest right word."""

from __future__ import annotations

import inspect

import pytest

from rayapp import errors


def test_docstring_draws_the_whole_tree():
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, errors.RayAppError)]

    for one in classes:
        assert f"{one.__name__}\n" in errors.__doc__ or f" {one.__name__} " in errors.__doc__


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (errors.DataError("x"), 1),
        (errors.RegistryError("x"), 1),
        (errors.ConfigError("x"), 2),
        (errors.PromotionRefused("x", reasons=("worse",)), 3),
    ],
)
def test_exit_code_tells_a_script_what_happened(error, exit_code):
    assert error.exit_code == exit_code


def test_request_errors_carry_the_status_of_the_answer():
    assert errors.RequestError("x").status == 400
    assert errors.ImageError("x", status=413).status == 413
    assert errors.PromotionRefused("x", reasons=("worse",)).reasons == ("worse",)


@pytest.mark.parametrize(
    ("given", "clause"),
    [
        ("chamption", " Did you mean 'champion'?"),
        ("zzz", " Allowed: challenger, champion."),
        ("", " Allowed: challenger, champion."),
    ],
)
def test_did_you_mean(given, clause):
    assert errors.did_you_mean(given, {"champion", "challenger"}) == clause
