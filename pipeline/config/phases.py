"""Phases of training: plain records, looked up by `images_seen`. Nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.config.groups import Phase


def phase_at(phases: Sequence[Phase], images_seen: int) -> Phase:
    """The phase of the step that starts at `images_seen`."""
    for phase in phases:
        if phase.until is None or images_seen < phase.until:
            return phase
    return phases[-1]


def check_phases(phases: Sequence[Phase]) -> None:
    """Ends must rise, and only the last may be open."""
    ends = [p.until for p in phases]
    if not phases:
        raise ValueError("objective.phases is empty: give at least [{until: null, lr: 3.0e-4}]")
    closed = [e for e in ends if e is not None]
    if None in ends[:-1] or closed != sorted(set(closed)):
        raise ValueError(f"objective.phases end at {ends}: ends must rise, null only at the last")
