"""What several DAGs of rayapp have: the settings of all, and the task at the gate."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import Asset, Param

from rayjobs.alert import WebhookAlert
from rayjobs.operator import RayJobOperator

# What training leaves behind: a registered version under the alias that evaluation and promotion look at.
CHALLENGER = Asset("rayapp://models/vision@challenger")


# One run at a time, no runs for missed days, retries that wait longer each time.
SETTINGS: dict[str, Any] = {
    "start_date": datetime(2026, 1, 1, tzinfo=UTC),
    "catchup": False,
    "max_active_runs": 1,
    "tags": ["rayapp"],
    "params": {"poll_interval_s": Param(30, type="number", exclusiveMinimum=0, description="Seconds between looks")},
    "default_args": {
        "owner": "rayapp",
        "retries": 2,
        "retry_delay": timedelta(minutes=5),
        "retry_exponential_backoff": 2.0,
        "max_retry_delay": timedelta(hours=1),
        # Of what runs in a worker: creating the RayJob and reading its end. The RayJob has its own, as `timeout`.
        "execution_timeout": timedelta(minutes=10),
        "on_failure_callback": WebhookAlert(),
    },
}


def promote() -> RayJobOperator:
    """The task that makes the challenger the champion if it is better."""
    return RayJobOperator(
        task_id="promote",
        job="promote",
        template="evaluate.yaml",  # the same small cluster
        entrypoint="python jobs/promote.py",
        timeout=timedelta(hours=1),
    )
