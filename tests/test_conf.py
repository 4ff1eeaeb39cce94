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


def printed_experiments(node):
    """Every `experiment:` that the printed tables name."""
    if isinstance(node, dict):
        found = [node["experiment"]] if isinstance(node.get("experiment"), str) else []
        return found + [name for value in node.values() for name in printed_experiments(value)]
    if isinstance(node, list):
        return [name for value in node for name in printed_experiments(value)]
    return []


def test_every_row_of_the_papers_tables_that_is_theirs_has_its_recipe():
    named = printed_experiments(yaml.safe_load((ROOT / "conf" / "paper_tables.yaml").read_text()))
    assert len(set(named)) == 21
    assert set(named) <= set(options("experiment"))


@pytest.mark.parametrize("name", [o for o in options("experiment") if o != "quickstart"])
def test_a_recipes_network_can_be_built_as_it_is_written(name):
    from dataclasses import asdict

    import torch

    from pipeline.checkpoint import build_generator

    config = compose("train", [f"experiment={name}"]).config
    with torch.device("meta"):
        network = build_generator(asdict(config.model))
    assert sum(p.numel() for p in network.parameters()) > 1_000_000
