"""MLflow: what runs record, and how it gets there through outages."""
