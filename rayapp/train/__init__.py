"""Ray Train: one model from settings to a registered version."""
