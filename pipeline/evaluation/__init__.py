"""Metrics on fixed image-mask pairs."""
