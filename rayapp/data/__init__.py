"""Images from files, buckets and downloads to arrays; knows neither Ray nor MLflow."""
