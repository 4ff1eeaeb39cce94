"""Processes on this node: how many, started and stopped together, their output."""
