"""Paths of the command line."""

from __future__ import annotations

from pathlib import Path


def path(text: str) -> Path:
    """An absolute path: what is measured starts in other folders than the one in which the option was typed."""
    return Path(text).expanduser().absolute()
