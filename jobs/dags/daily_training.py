"""Every night: train, and register the model as the challenger. `evaluation_and_promotion` goes on from there."""

from datetime import timedelta

from airflow.sdk import DAG
from rayjobs.dag import CHALLENGER, SETTINGS
from rayjobs.operator import RayJobOperator

with DAG("daily_training", schedule="0 2 * * *", doc_md=__doc__, **SETTINGS):
    RayJobOperator(task_id="train", job="train", timeout=timedelta(hours=6), outlets=[CHALLENGER])
