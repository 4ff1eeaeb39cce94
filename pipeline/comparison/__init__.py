"""Runs next to the tables of the papers."""
