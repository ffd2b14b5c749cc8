"""Ray Tune: a sweep from a recipe and a space to its best trial, and from there to a registered version."""
