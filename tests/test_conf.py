"""Every option of every group composes; every recipe says what it reproduces."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pipeline.config.commands import COMMANDS
from pipeline.config.compose import compose, options
from pipeline.config.resolve import known_keys

ROOT = Path(__file__).resolve().parent.parent
CHOICES = [
    (verb, group, option)
    for verb, spec in COMMANDS.items()
    for group in spec.groups
    for option in options(group)
]
RECIPES = sorted((ROOT / "conf" / "experiment").rglob("*.yaml"))


@pytest.mark.parametrize(("verb", "group", "option"), CHOICES)
def test_an_option_composes_and_its_values_say_where_they_are_from(verb, group, option):
    needed = ["masks.url=set"] if (group, option) == ("masks", "external") else []
    resolved = compose(verb, [f"{group}={option}", *needed])
    named = [o for o in resolved.origins.values() if f"{group}/{option}.yaml" in o]
    text = yaml.safe_load((ROOT / "conf" / group / f"{option}.yaml").read_text())
    read = known_keys(COMMANDS[verb].schema)
    assert named or not any(f"{group}.{name}" in read for name in text or ())


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_opens_with_what_it_is(path):
    lines = path.read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1].startswith("# ") and len(lines[1]) > 20


@pytest.mark.parametrize(
    "path",
    [p for p in RECIPES if p.stem != "quickstart"],
    ids=lambda p: f"{p.parent.stem}-{p.stem}",
)
def test_a_recipe_says_its_table_the_papers_hardware_and_what_more_gpus_need(path):
    head = path.read_text().partition("defaults:")[0]
    assert "table" in head or "figure" in head
    assert "ardware" in head and "On more GPUs: docs/scale.md gives batch" in head


@pytest.mark.parametrize(
    ("family", "batch"), [("msanet", 16), ("musical", 5), ("finetune", 16), ("compare", 16)]
)
def test_the_rule_for_more_gpus_starts_from_the_batch_of_the_recipes(family, batch):
    """Their global batch; on 8, 64 and 256 GPUs learning rates grow with its square root."""
    recipes = [p for p in RECIPES if family in p.parts]
    assert recipes and {yaml.safe_load(p.read_text())["batch"] for p in recipes} == {batch}
    text = (ROOT / "docs" / "scale.md").read_text()
    (row,) = re.findall(rf"^\| [^|]*{family}[^|]* \| {batch}\b.*$", text, re.M | re.I)
    larger = [int(number) for number in re.findall(r"batch=(\d+)", row)]
    factors = [float(number) for number in re.findall(r"× ([\d.]+)", row)]
    expected = [(count / batch) ** 0.5 for count in larger if count != batch]
    assert len(larger) == 3 and factors == pytest.approx(expected, rel=0.02)


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


def test_no_recipe_selects_checkpoints_on_the_split_its_tables_are_taken_on():
    """And where the publisher has no val, the preset holds one out."""
    printed = yaml.safe_load((ROOT / "conf" / "paper_tables.yaml").read_text())["datasets"]
    tested = {name: d["split"] for d in printed.values() for name in (*d["names"], d["data"])}
    for name in printed_experiments(
        yaml.safe_load((ROOT / "conf" / "paper_tables.yaml").read_text())
    ):
        data = compose("train", [f"experiment={name}"]).config.data
        assert data.validate not in ("test", tested[data.name]), name
        if data.name in ("paris", "celeba_hq", "celeba_trainval", "places365_canyon"):
            assert compose("shard", [f"data={data.name}"]).config.data.holdout > 0, name


# Tables 2 to 5 of MSA-Net, cell by cell: structure, mask update, channel and spatial attention in
# the units, channel and spatial attention in restoration.
CELLS = {
    "table2/single_scale": ("single", False, "none", "none", "none", "none"),
    "table2/inception_v1": ("inception_v1", False, "none", "none", "none", "none"),
    "table2/inception_v3": ("inception_v3", False, "none", "none", "none", "none"),
    "table2/msag": ("msau", False, "none", "none", "none", "none"),
    "table3/no_mum": ("msau", False, "none", "none", "none", "none"),
    "table3/mum": ("msau", True, "none", "none", "none", "none"),
    "table4/none": ("msau", True, "none", "none", "none", "none"),
    "table4/ca": ("msau", True, "augmented", "none", "none", "none"),
    "table4/sa": ("msau", True, "none", "fusing", "none", "none"),
    "table4/ca_sa": ("msau", True, "augmented", "fusing", "none", "none"),
    "table4/csa": ("msau", True, "none", "none", "augmented", "fusing"),
    "table4/ca_sa_csa": ("msau", True, "augmented", "fusing", "augmented", "fusing"),
    "table5/cbam": ("msau", True, "cbam", "cbam", "cbam", "cbam"),
    "table5/sca_cnn": ("msau", True, "sca", "sca", "sca", "sca"),
    "table5/se_net": ("msau", True, "se", "fusing", "se", "fusing"),
    "table5/msa_net": ("msau", True, "augmented", "fusing", "augmented", "fusing"),
    "table6/places2": ("msau", True, "augmented", "fusing", "augmented", "fusing"),
    "table6/celeba": ("msau", True, "augmented", "fusing", "augmented", "fusing"),
}


def test_every_recipe_of_msa_net_is_the_cell_of_its_table_and_nothing_else():
    varied = ("structure", "mask_update", "channel", "spatial")
    varied += ("restore_channel", "restore_spatial")
    assert {f"msanet/{name}" for name in CELLS} == {
        name for name in options("experiment") if name.startswith("msanet/")
    }
    full = compose("train", ["experiment=msanet/table6/places2"]).config
    for name, cell in CELLS.items():
        config = compose("train", [f"experiment=msanet/{name}"]).config
        assert tuple(getattr(config.model, key) for key in varied) == cell, name
        for key in varied:
            setattr(config.model, key, getattr(full.model, key))
        assert config.model.reduce == (not name.startswith("table2/inception")), name
        config.model.reduce = True
        assert (config.model, config.masks, config.batch) == (full.model, full.masks, 16), name
        assert (config.data == full.data) == (name != "table6/celeba")
        assert (config.objective == full.objective) == (name != "table6/celeba")


def test_celeba_hq_trains_for_three_sevenths_of_places2s_time():
    """Printed: 3 days and 7 days with one network, batch and GPU; phases in the same shares."""
    places, faces = (
        compose("train", [f"experiment=msanet/table6/{name}"]).config
        for name in ("places2", "celeba")
    )
    assert faces.max_images / places.max_images == pytest.approx(3 / 7, rel=0.01)
    shares = [c.objective.phases[0].until / c.max_images for c in (places, faces)]
    assert shares[0] == pytest.approx(shares[1], rel=0.001)
    for config in (places, faces):
        assert all((phase.until or 0) % config.batch == 0 for phase in config.objective.phases)
        config.objective.phases = [replace(p, until=None) for p in config.objective.phases]
    assert faces.objective == places.objective


# Images of an epoch, and the epoch that the authors tested: README (--which_epoch 30), and the
# folders test_8 and test_latest in their quality_test scripts; latest of niter = 70.
@pytest.mark.parametrize(
    ("name", "images", "epochs"),
    [
        ("paris", 14_900, 30),
        ("ablation/no_adversarial", 14_900, 30),
        ("ablation/single_scale", 14_900, 30),
        ("celeba", 162_770 + 19_867, 8),
        ("places", 5_000, 70),
    ],
)
def test_musical_trains_for_the_epochs_that_its_authors_tested(name, images, epochs):
    config = compose("train", [f"experiment=musical/{name}"]).config
    assert config.max_images == images * epochs
    text = (ROOT / "conf" / "experiment" / "musical" / f"{name}.yaml").read_text()
    assert f"# {epochs} epochs" in text and "default is 70" in text


@pytest.mark.parametrize("name", [o for o in options("experiment") if o != "quickstart"])
def test_a_recipe_of_places2_says_which_archive_it_means(name):
    config = compose("train", [f"experiment={name}"]).config
    head = (ROOT / "conf" / "experiment" / f"{name}.yaml").read_text().partition("defaults:")[0]
    means = "train_large" in head and "squash the aspect ratio" in head
    assert means == config.data.name.startswith("places365")


def test_musicals_celeba_is_train_and_val_with_a_share_held_out():
    config = compose("train", ["experiment=musical/celeba"]).config
    sharded = compose("shard", [f"data={config.data.name}"]).config.data
    assert (sharded.layout, sharded.holdout) == ("celeba_trainval", 0.01)
    faces = compose("train", ["data=celeba"]).config.data
    assert replace(config.data, name="celeba") == faces  # cropped as CelebA is


# MUSICAL 4.1: 250, 0.07, 0.001, 100; the adversarial weight is 0.3, on CelebA 0.0.
@pytest.mark.parametrize(
    ("name", "adversarial", "attention"),
    [
        ("paris", 0.3, "multi"),
        ("places", 0.3, "multi"),
        ("celeba", 0.0, "multi"),
        ("ablation/no_adversarial", 0.0, "multi"),
        ("ablation/single_scale", 0.3, "single"),
    ],
)
def test_the_losses_of_musical_weigh_what_is_printed_for_their_dataset(
    name, adversarial, attention
):
    config = compose("train", [f"experiment=musical/{name}"]).config
    o, model = config.objective, config.model
    assert (o.style, o.perceptual, o.tv, o.l1) == (250.0, 0.07, 0.001, 100.0)
    assert (o.method, o.l1_hole, o.adv) == ("musical", 0.0, adversarial)
    assert (model.attention, model.order, config.batch) == (attention, "paper", 5)


@pytest.mark.parametrize("name", [o for o in options("experiment") if o != "quickstart"])
def test_a_recipes_network_can_be_built_as_it_is_written(name):
    from dataclasses import asdict

    import torch

    from pipeline.runs.checkpoints import build_generator

    config = compose("train", [f"experiment={name}"]).config
    with torch.device("meta"):
        network = build_generator(asdict(config.model))
    assert sum(p.numel() for p in network.parameters()) > 1_000_000


def test_the_schema_offers_exactly_what_the_networks_take():
    from dataclasses import fields

    from models import attention, contextual_attention, multiscale, musical
    from pipeline.config.methods import MODELS

    offered = {f.name: f.metadata.get("choices", ()) for m in MODELS.values() for f in fields(m)}
    assert set(offered["structure"]) == set(multiscale.STRUCTURES)
    for name in ("channel", "restore_channel"):
        assert set(offered[name]) == set(attention.CHANNEL)
    for name in ("spatial", "restore_spatial"):
        assert set(offered[name]) == set(attention.SPATIAL)
    assert set(offered["squeeze"]) == set(attention.SQUEEZES)
    assert set(offered["gate"]) == set(attention.GATES)
    assert set(offered["attention"]) == set(musical.ATTENTION)
    assert set(offered["order"]) == set(contextual_attention.ORDERS)
    assert set(offered["renormalize"]) == set(contextual_attention.RENORMALIZE)
