"""A number has a range, which the schema names; outside of it a command is refused in one line."""

from dataclasses import fields, is_dataclass
from typing import get_type_hints

import pytest

from pipeline.common.errors import ConfigError
from pipeline.config.commands import COMMANDS
from pipeline.config.compose import compose
from pipeline.config.groups import Phase
from pipeline.config.methods import MODELS


def numeric(kind, prefix=""):
    """Names and metadata of the numbers of a schema, also of those in lists."""
    for f in fields(kind):
        default = f.default_factory() if callable(f.default_factory) else f.default
        name, hint = f"{prefix}{f.name}", str(get_type_hints(kind)[f.name])
        if is_dataclass(default):
            for section in MODELS.values() if f.name == "model" else [type(default)]:
                yield from numeric(section, f"{name}.")
        elif "int" in hint or "float" in hint:
            yield name, f.metadata


@pytest.mark.parametrize("kind", [c.schema for c in COMMANDS.values()] + [Phase])
def test_every_number_of_the_schema_has_a_smallest_value(kind):
    assert [name for name, metadata in numeric(kind) if metadata["least"] is None] == []


@pytest.mark.parametrize(
    ("command", "word", "line"),
    [
        ("demo", "port=99999", "port=99999 is too large: expected at most 65535"),
        ("demo", "port=-1", "port=-1 is too small: expected at least 0"),
        ("submit", "cluster.port=99999", "cluster.port=99999 is too large: expected at most 65535"),
        ("rollback", "version=0", "version=0 is too small: expected at least 1"),
        ("promote", "floor=nan", "floor=nan is not finite: expected a finite number"),
        ("promote", "tolerance=inf", "tolerance=inf is not finite: expected a finite number"),
        ("train", "clip=inf", "clip=inf is not finite: expected a finite number"),
        ("train", "objective.betas=[0.9,nan]", r"objective.betas=\[0.9, nan\] is not finite"),
        ("train", f"seed={2**64}", rf"seed={2**64} is too large: expected at most {2**63 - 1}"),
        (
            "train",
            "model.msau=[[128,0]]",
            r"model.msau=\[\[128, 0\]\] is too small: expected at least 1",
        ),
        ("train", "parallel.hang_timeout=9999999999999", "is too large: expected at most 86400"),
    ],
)
def test_a_number_out_of_its_range_is_named_with_the_range(command, word, line):
    with pytest.raises(ConfigError, match=line) as error:
        compose(
            command, [word, *(["model=m"] if command in ("demo", "promote", "rollback") else [])]
        )
    assert "\n" not in str(error.value)
