"""What past runs of the same recipe foretell of a new one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from rayapp.errors import RegistryError
from rayapp.registry.tracking import PastRun, Tracker


@dataclass(frozen=True)
class Expected:
    """Seconds and USD of n past runs: their medians; low and high are the shortest and the longest (seconds)."""

    seconds: float
    cost_usd: float | None
    n: int
    low: float
    high: float


def summarise(past: Sequence[PastRun]) -> Expected | None:
    """What these runs took, by their metrics seconds and cost_usd; None where there are none."""
    seconds = [run.metrics["seconds"] for run in past if "seconds" in run.metrics]
    costs = [run.metrics["cost_usd"] for run in past if "cost_usd" in run.metrics]
    if not seconds:
        return None
    return Expected(
        seconds=median(seconds),
        cost_usd=median(costs) if costs else None,
        n=len(seconds),
        low=min(seconds),
        high=max(seconds),
    )


def expected_cost(tracker: Tracker, tags: Mapping[str, str]) -> dict[str, Any]:
    """ "expected": what runs of the same recipe on the same hardware took; or None, and "why".

    tags: those that this run would get. An MLflow that is away is a reason, not an error.
    """
    board = "hardware.gpu" if tags["hardware.device"] == "cuda" else "hardware.cpu"
    try:
        found = summarise(tracker.past_runs({name: tags[name] for name in ("recipe", "hardware.device", board)}))
    except RegistryError as error:
        return {"expected": None, "why": str(error)}
    if found is None:
        return {"expected": None, "why": "no run of this recipe has finished on this hardware yet"}
    return {"expected": asdict(found)}
