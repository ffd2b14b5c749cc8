"""What a run says of the code that made it."""

from __future__ import annotations

import re

import pytest

from rayapp.provenance import git_sha


def test_a_checkout_says_its_commit_and_an_image_the_one_it_was_built_from(monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", git_sha())

    monkeypatch.setenv("RAYAPP_GIT_SHA", "0123abc")
    assert git_sha() == "0123abc"
