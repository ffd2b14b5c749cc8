"""Ray Data: predictions for every image of a folder or bucket."""
