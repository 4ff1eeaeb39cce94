"""Every option of every group composes; every recipe says what it reproduces."""

from pathlib import Path

import pytest
import yaml

from pipeline.compose import compose, options
from pipeline.verbs import VERBS

ROOT = Path(__file__).resolve().parent.parent
CHOICES = [
    (verb, group, option)
    for verb, spec in VERBS.items()
    for group in spec.groups
    for option in options(group)
]
RECIPES = sorted((ROOT / "conf" / "experiment").rglob("*.yaml"))


@pytest.mark.parametrize(("verb", "group", "option"), CHOICES)
def test_an_option_composes_and_its_values_say_where_they_are_from(verb, group, option):
    resolved = compose(verb, [f"{group}={option}"])
    named = [o for o in resolved.origins.values() if f"{group}/{option}.yaml" in o]
    text = yaml.safe_load((ROOT / "conf" / group / f"{option}.yaml").read_text())
    assert named or not text or set(text) == {"defaults"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_opens_with_what_it_is(path):
    lines = path.read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1].startswith("# ") and len(lines[1]) > 20


def test_conf_holds_nothing_but_yaml():
    assert {p.suffix for p in (ROOT / "conf").rglob("*") if p.is_file()} == {".yaml"}
