"""One `submit` of a job at a time, which nothing stops between a scheduler's yes and its record."""

from __future__ import annotations
