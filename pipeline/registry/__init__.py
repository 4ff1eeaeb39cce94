"""Registered models: packaging, registration, promotion."""
