"""What the DAGs of this folder share: a task that creates a RayJob and waits for it.

manifest: templates, names and endings, no Airflow task in it. operator: the task. trigger: the waiting. alert: who is
told. dag: the settings that all DAGs have. Training code is in the RayJobs; Airflow only starts them.

The triggerer imports trigger.py by its name and does not look into DAG folders, so this folder's parent is on its
PYTHONPATH (cluster/helm-values/airflow.yaml).
"""
