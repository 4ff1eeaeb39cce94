"""A training schedule: which network learns when, and at which rate.

A schedule is a list of phases, a pure function of `images_seen`: nothing of it is saved, and a run
resumes inside a phase or at its boundary alike.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pipeline.common.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.config.groups import Phase


class Turn(NamedTuple):
    """What happens on one batch: its phase, and the learning rate of each player that learns.

    lr: rate of the phase's first player, whether or not it learns from this batch.
    """

    number: int
    phase: Phase
    rates: dict[str, float]
    lr: float

    @property
    def cycle(self) -> tuple[int, int]:
        """The number of the phase, and after how many batches its turns repeat."""
        return self.number, cycle(self.phase)


def rates_of(phase: Phase, players: Collection[str]) -> dict[str, float]:
    """Return the learning rate of each player that learns in the phase, before its shape."""
    if phase.rates:
        return dict(phase.rates)
    judge = phase.lr if phase.d_lr is None else phase.d_lr
    return {name: judge if name == "discriminator" else phase.lr for name in players}


def turn_at(
    phases: Sequence[Phase],
    images_seen: int,
    batch: int,
    players: Collection[str],
    length: int = 0,
    scale: float = 1.0,
) -> Turn:
    """Return the turn of the batch that starts at `images_seen`.

    length: images of the whole run, where a phase without an end of its own ends.
    scale: factor of every rate.
    """
    index = next(
        (i for i, p in enumerate(phases) if p.until is None or images_seen < p.until),
        len(phases) - 1,
    )
    phase = phases[index]
    # A phase begins with the first batch at or after the end of the one before.
    first = -(-(phases[index - 1].until or 0) // batch) * batch if index else 0
    number = (images_seen - first) // batch
    factor = scale * _shape(phase, images_seen - first, (phase.until or length) - first)
    rates = {name: rate * factor for name, rate in rates_of(phase, players).items()}
    due = {n: rate for n, rate in rates.items() if (number + 1) % phase.every.get(n, 1) == 0}
    return Turn(index, phase, due, next(iter(rates.values())))


def shares(
    phases: Sequence[Phase], batch: int, players: Collection[str], length: int
) -> Iterator[tuple[float, Turn]]:
    """Yield each different turn of a run of `length` images, and its share of the run."""
    first = 0
    for phase in phases:
        end, turns = min(phase.until or length, length), cycle(phase)
        for number in range(turns if end > first else 0):
            seen = -(-first // batch) * batch + number * batch
            yield (
                (end - first) / length / turns,
                turn_at(phases, min(seen, end - 1), batch, players),
            )
        first = max(first, end)


def _shape(phase: Phase, seen: int, images: int) -> float:
    """Return the factor of the rates after `seen` images of a phase of `images`."""
    if seen < phase.warmup:
        return (seen + 1) / phase.warmup
    if phase.decay == "constant":
        return 1.0
    part = min(1.0, (seen - phase.warmup) / max(1, images - phase.warmup))
    return 1 - part if phase.decay == "linear" else (1 + math.cos(math.pi * part)) / 2


def cycle(phase: Phase) -> int:
    """Return after how many batches the phase's turns repeat."""
    return math.lcm(1, *phase.every.values())


def check_phases(
    phases: Sequence[Phase], players: Collection[str], weights: Mapping[str, float]
) -> None:
    """Raise ConfigError unless the ends increase, only the last is null, and every player learns.

    weights: of the objective's losses, by name.
    """
    ends = [p.until for p in phases]
    if not phases:
        raise ConfigError("objective.phases is empty: give at least [{until: null, lr: 3.0e-4}]")
    closed = [e for e in ends if e is not None]
    if None in ends[:-1] or closed != sorted(set(closed)):
        raise ConfigError(
            f"objective.phases end at {ends}: ends must increase, null only at the last"
        )
    for i, phase in enumerate(phases):
        learning = rates_of(phase, players)
        named: dict[str, tuple[Collection[str], Collection[str]]] = {
            "rates": (phase.rates, players),
            "every": (phase.every, learning),
            "without": (phase.without, weights),
        }
        for name, (given, known) in named.items():
            if wrong := sorted(set(given) - set(known)):
                raise ConfigError(
                    f"objective.phases.{i}.{name} names {wrong[0]}: expected {', '.join(known)}"
                )
    resting = set(players).difference(*(rates_of(phase, players) for phase in phases))
    if resting:
        raise ConfigError(
            f"objective.phases give {sorted(resting)[0]} no learning rate: name it in the rates "
            f"of a phase, or leave rates out"
        )
