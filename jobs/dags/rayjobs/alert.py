"""Tells people about a task that failed for good: a JSON {"text": ...} to a webhook, as Slack and others take it.

The address is the password of the Airflow connection `rayapp_alerts`: it lets anyone who has it write to the channel,
so Airflow has to hide it in logs and in the browser.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from airflow.sdk import BaseNotifier, Connection, Context
from airflow.sdk.exceptions import AirflowNotFoundException, AirflowRuntimeError

CONNECTION = "rayapp_alerts"
MAX_CHARS = 2000  # of the failure's text; channels cut longer ones
TIMEOUT_S = 10


class WebhookAlert(BaseNotifier):
    """A failure callback. Without the connection it says in the log that nobody is told; it never fails a task."""

    def notify(self, context: Context) -> None:
        import requests

        try:
            address = Connection.get(CONNECTION).password or ""
        except (AirflowNotFoundException, AirflowRuntimeError):
            self.log.warning("there is no connection %s: nobody is told of this failure", CONNECTION)
            return
        if urlsplit(address).scheme not in ("http", "https"):
            self.log.error("the password of connection %s is not a web address: nobody is told", CONNECTION)
            return
        requests.post(address, json={"text": text_of(context)}, timeout=TIMEOUT_S).raise_for_status()


def text_of(context: Context) -> str:
    """Which task failed in which run, how, and where its log is."""
    ti = context["ti"]
    failure = str(context.get("exception") or "no exception is known")
    shown = failure if len(failure) <= MAX_CHARS else f"{failure[:MAX_CHARS]} ..."
    return f"{ti.dag_id}.{ti.task_id} failed in {ti.run_id}, try {ti.try_number}: {shown}\n{ti.log_url}"
