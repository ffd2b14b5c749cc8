"""What a second of a sweep costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import ray

from rayapp.config.sweep import BudgetConfig
from rayapp.errors import ConfigError
from rayapp.runtime.cost import NodeUse, cost_usd, nodes_of
from rayapp.tune.search import share_of_node


@dataclass(frozen=True)
class Rates:
    """USD a second, of the whole cluster and of one trial's share of a node; None where a price is not known."""

    cluster: float | None
    trial: float | None
    kinds: tuple[str, ...]

    @classmethod
    def of(cls, prices: Mapping[str, float], resources: Mapping[str, float]) -> Rates:
        """Of the nodes that are there. resources: what a trial takes."""
        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        kinds = nodes_of([node["NodeID"] for node in nodes], nodes)
        whole = cost_usd([NodeUse(kind, count, 1.0) for kind, count in kinds.items()], prices)
        needed = "GPU" if resources.get("gpu") else "CPU"
        shares = []
        for node in nodes:
            if node["Resources"].get(needed):
                (kind,) = nodes_of([node["NodeID"]], nodes)
                usd = cost_usd([NodeUse(kind, 1, 1.0)], prices)
                shares.append(None if usd is None else usd * share_of_node(resources, node))
        known = [share for share in shares if share is not None]
        # where nodes differ, a trial is put down at the dearest that it may have had
        return cls(whole, max(known) if known and len(known) == len(shares) else None, tuple(sorted(kinds)))

    def limit_s(self, budget: BudgetConfig) -> float | None:
        """How long a sweep may take; None for as long as it likes. Raises ConfigError where that takes a price."""
        if budget.usd and self.cluster is None:
            raise ConfigError(
                f"budget.usd is {budget.usd:g}, but the price of these nodes ({', '.join(self.kinds)}) is not"
                " known; give it in the YAML, as cost: {usd_per_hour: {cpu: 0.07}}, or say --budget.minutes"
            )
        limits = [60 * budget.minutes] if budget.minutes else []
        if budget.usd and self.cluster:
            limits.append(budget.usd / self.cluster)
        return min(limits, default=None)
