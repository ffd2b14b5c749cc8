"""Every Saturday: search for better settings. A winner that was trained and evaluated is promoted if it is better."""

from datetime import timedelta

from airflow.sdk import DAG
from rayjobs.dag import SETTINGS, promote
from rayjobs.operator import RayJobOperator

# The asset is not updated: `tune --then_train true` evaluates its winner itself, and the test split is opened once.
with DAG("weekly_tuning", schedule="0 8 * * 6", doc_md=__doc__, **SETTINGS):
    tune = RayJobOperator(task_id="tune", job="tune", timeout=timedelta(hours=16))
    tune >> promote()
