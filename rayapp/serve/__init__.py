"""Ray Serve: answers requests with a bundle. Never imports compute/ or training code."""
