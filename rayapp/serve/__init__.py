"""Ray Serve: answers requests with a bundle. Never imports data sets or training."""
