"""One training run, from preflight to the last checkpoint."""
