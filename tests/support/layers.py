"""What serving stays away from."""

# Serving answers with a bundle alone: data sets and training stay away from it.
SERVE_NEVER = {"data.datasets", "data.sources", "data.files", "data.cache", "data.chunks", "data.unlabelled"}
SERVE_NEVER |= {"data.torchvision_sets", "data.labels"}
SERVE_NEVER |= {f"vision.{name}" for name in ("augment", "loaders", "state", "loop", "fonts", "plots", "evaluate")}
