"""A run's folder on disk or in a bucket: what identifies it and what it holds."""
