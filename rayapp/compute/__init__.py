"""Ray Train: spreads over a cluster what rayapp.vision does on one machine."""
