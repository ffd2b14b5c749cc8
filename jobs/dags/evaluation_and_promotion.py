"""After each training: measure the challenger on the test split; it becomes the champion if it is better.

A challenger that is not better is refused by the gate: the task is skipped, and nobody is alerted.
"""

from datetime import timedelta

from airflow.sdk import DAG
from rayjobs.dag import CHALLENGER, SETTINGS, promote
from rayjobs.operator import RayJobOperator

with DAG("evaluation_and_promotion", schedule=[CHALLENGER], doc_md=__doc__, **SETTINGS):
    evaluate = RayJobOperator(task_id="evaluate", job="evaluate", timeout=timedelta(hours=2))
    evaluate >> promote()
