"""MLflow, and nowhere else: runs, model versions, aliases, the promotion gate."""
