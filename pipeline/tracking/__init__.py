"""MLflow tracking: record runs, buffer events during outages, list and close runs."""
