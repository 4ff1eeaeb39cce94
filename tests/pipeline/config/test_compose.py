"""Words into typed configuration: what is refused, and what a refusal says."""

import pytest

from pipeline.common.errors import ConfigError
from pipeline.config.compose import compose
from pipeline.config.groups import Phase
from pipeline.config.methods.msanet import MsanetModel


def refusal(verb, *words):
    with pytest.raises(ConfigError) as caught:
        compose(verb, words)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_groups_recipe_and_words_are_laid_in_this_order():
    resolved = compose("train", ["experiment=quickstart", "batch=32", "model.width=0.5"])
    config = resolved.config
    assert isinstance(config.model, MsanetModel)
    assert (config.batch, config.model.width, config.data.name) == (32, 0.5, "skimage")
    assert config.experiment == "quickstart"
    assert all(isinstance(phase, Phase) for phase in config.objective.phases)
    assert resolved.origins["batch"] == "command line"
    assert resolved.origins["data.name"].endswith("conf/experiment/quickstart.yaml")
    assert resolved.origins["objective.style"].startswith("conf/")


def test_every_value_says_where_it_is_from():
    text = compose("train", ["experiment=quickstart", "seed=3"]).described()
    lines = {line.partition(":")[0]: line for line in text.splitlines()}
    assert lines["seed"].endswith("# command line")
    assert lines["clip"].endswith("# default")
    assert lines["parallel.strategy"].endswith("# conf/parallel/ddp.yaml")


@pytest.mark.parametrize(
    "words",
    [
        ["experiment=quickstart", "cluster=slurm", "cluster.sbatch={constraint: 'a100&nvme'}"],
        ["experiment=compare/edgeconnect", "cluster.env={A: 'b c', B: '1'}", "cluster=kubernetes"],
        ["experiment=authors/glc", "lr_scale=1.3", "masks.sides=[40, 50]"],
    ],
)
def test_the_lines_of_a_resolved_configuration_can_be_pasted_back(words):
    resolved = compose("train", words)
    lines = [line.partition("  # ")[0].rstrip() for line in resolved.described().splitlines()]
    again = compose("train", [line.replace(": ", "=", 1) for line in lines])
    assert again.config == resolved.config


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bacth=3"], ["unknown key bacth", "did you mean batch?"]),
        (["masks=null"], ["unknown option masks=null", "center", "irregular"]),
        (["model.widht=3"], ["model.widht", "did you mean model.width?", "model.fe"]),
        (["batch=many"], ["batch=many", "int", "16"]),
        (["clip=hard"], ["clip=hard", "float"]),
        (["precision=bf61"], ["precision=bf61", "did you mean bf16?", "auto, fp32, bf16, fp16"]),
        (["experiment=quickstrat"], ["quickstrat", "did you mean quickstart?"]),
        (["model=msante"], ["model=msante", "did you mean msanet?", "msanet_const"]),
        (["+new.key=1"], ["+new.key=1", "key=value"]),
        (["~batch"], ["~batch"]),
        (["seed=0,1"], ["seed=0,1", "several values"]),
        (["batch"], ["'batch'", "key=value"]),
        (["data.url="], ["data.url= is empty"]),
        (["ema=2"], ["ema=2", "too large", "less than 1.0"]),
        (["model.width=-1"], ["model.width=-1", "too small"]),
        (["objective.betas=[0.5,1.5]"], ["objective.betas", "less than 1.0"]),
        (["objective.phases=[{until: 3, lr: -1}]"], ["objective.phases.0.lr", "too small"]),
        (["objective.phases=[{until: 3, lr: fast}]"], ["objective.phases", "fast"]),
        (["objective.phases=[{untl: 3}]"], ["objective.phases", "untl"]),
    ],
)
def test_a_wrong_word_is_named_with_what_is_allowed(words, message):
    text = refusal("train", *words)
    assert all(part in text for part in message), text


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "cannot be read as YAML"), ("- 1", "expected `key: value` lines")],
)
def test_a_site_file_that_is_none_is_named(tmp_path, monkeypatch, text, message):
    (tmp_path / "defaults.yaml").write_text(text)
    monkeypatch.setenv("LACUNA_CONF", str(tmp_path))
    line = refusal("train")
    assert message in line and str(tmp_path / "defaults.yaml") in line


def test_a_missing_value_is_named_with_its_meaning():
    assert "model= is missing: registered model" in refusal("predict", "image=a.png")


def test_a_url_with_signs_of_a_grammar_is_taken_as_it_stands():
    config = compose("train", ["data.url=s3://bucket/a=b,c(d)/{e}", "run=runs/1,2"]).config
    assert config.data.url == "s3://bucket/a=b,c(d)/{e}"
    assert config.run == "runs/1,2"


def test_a_site_and_a_user_bring_options_and_defaults(tmp_path, monkeypatch):
    site, home = tmp_path / "site", tmp_path / "home"
    (site / "parallel").mkdir(parents=True)
    (site / "parallel" / "ours.yaml").write_text("strategy: single\nhang_timeout: 77\n")
    (site / "defaults.yaml").write_text("root: /scratch/runs\nbatch: 24\n")
    (home / "lacuna").mkdir(parents=True)
    (home / "lacuna" / "defaults.yaml").write_text("batch: 48\n")
    monkeypatch.setenv("LACUNA_CONF", str(site))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    resolved = compose("train", ["parallel=ours"])
    assert resolved.config.parallel.hang_timeout == 77
    assert (resolved.config.root, resolved.config.batch) == ("/scratch/runs", 48)
    assert resolved.origins["root"].startswith("site:")
    assert resolved.origins["batch"].startswith("user:")
    assert compose("train", ["batch=96"]).config.batch == 96


@pytest.fixture
def site(tmp_path, monkeypatch):
    """`site(name, text)`: write a file of the site's folder."""
    monkeypatch.setenv("LACUNA_CONF", str(tmp_path))

    def write(name, text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    return write


def test_an_option_builds_on_others_and_words_come_before_what_a_recipe_chooses(site):
    site("objective/ours.yaml", "defaults: [msanet_vgg]\nl1: 7.0\n")
    site("parallel/ddp.yaml", "strategy: ddp\nhang_timeout: 77\n")
    chosen = "# @package _global_\ndefaults: [override /objective: ours, override /model: musical]"
    site("experiment/ours.yaml", f"{chosen}\nbatch: 3\nobjective: {{style: 5.0}}\n")
    resolved = compose("train", ["experiment=ours"])
    config, origins = resolved.config, resolved.origins
    assert (config.model.name, config.batch, config.parallel.hang_timeout) == ("musical", 3, 77)
    objective = config.objective
    assert (objective.l1, objective.features, objective.style) == (7.0, "vgg16", 5.0)
    assert objective.perceptual == compose("train", []).config.objective.perceptual
    assert origins["objective.l1"] == "site/objective/ours.yaml"
    assert origins["objective.features"] == "conf/objective/msanet_vgg.yaml"
    assert origins["objective.perceptual"] == "conf/objective/msanet.yaml"
    assert origins["objective.style"] == origins["batch"] == "site/experiment/ours.yaml"
    site("objective/first.yaml", "defaults: [_self_, msanet_vgg]\nl2: 7.0\nl1: 0.5\n")
    first = compose("train", ["objective=first"]).config.objective
    assert (first.l2, first.l1) == (1.0, 0.5)
    words = compose("train", ["experiment=ours", "model=msanet", "objective=msanet"]).config
    assert (words.model.name, words.objective.features) == ("msanet", "internal")


@pytest.mark.parametrize(
    ("name", "choices", "message"),
    [
        ("objective", "nosuch", "unknown option objective=nosuch"),
        ("objective", "override /model: msanet", "unknown option objective={'override /model'"),
        ("experiment", "override /model: msante", "unknown option model=msante; did you mean msan"),
        ("experiment", "override /modle: msanet", "unknown option modle=msanet"),
        ("experiment", "/model: msanet", "unknown option /model=msanet"),
    ],
)
def test_a_file_that_names_an_option_that_is_none_is_refused(site, name, choices, message):
    site(f"{name}/ours.yaml", f"defaults: [{choices}]\n")
    assert message in refusal("train", f"{name}=ours")


def test_a_default_of_a_site_that_no_verb_knows_is_refused(tmp_path, monkeypatch):
    (tmp_path / "defaults.yaml").write_text("btach: 3\n")
    monkeypatch.setenv("LACUNA_CONF", str(tmp_path))
    assert "unknown key btach" in refusal("train")


def test_a_default_that_another_verb_knows_is_left_to_that_verb(tmp_path, monkeypatch):
    (tmp_path / "defaults.yaml").write_text("per_bucket: 3\n")
    monkeypatch.setenv("LACUNA_CONF", str(tmp_path))
    assert compose("train", []).config.batch == 16
    assert compose("masks", ["out=x"]).config.per_bucket == 3


def test_a_site_folder_that_is_none_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("LACUNA_CONF", str(tmp_path / "gone"))
    assert "is not a folder" in refusal("train")


@pytest.mark.parametrize("url", ["s3://key:secret@host/b", "https://host/x?token=abcdef"])
def test_a_secret_in_a_url_is_refused_without_being_repeated(url):
    text = refusal("train", f"data.url={url}")
    assert "data.url holds a secret" in text
    assert "secret@" not in text and "abcdef" not in text


def test_a_secret_of_the_environment_is_refused_without_being_repeated(monkeypatch):
    monkeypatch.setenv("OUR_API_KEY", "hush-hush-hush")
    text = refusal("train", "run=runs/hush-hush-hush")
    assert "run holds a secret" in text and "hush" not in text


# What `data`, `masks` and `tracking` hold and a command does not read.
SHARDING = ("layout", "holdout", "shard_mb", "min_side", "store_short", "quality")
TRAINING = ("train", "validate", "crop", "crop_mode", "flip")
FOREIGN = {
    "shard": [f"data.{n}" for n in ("url", "train", "validate", "flip")],
    "train": [f"data.{n}" for n in SHARDING],
    "evaluate": [
        *(f"data.{n}" for n in ("name", *SHARDING, *TRAINING)),
        *(f"masks.{n}" for n in ("kind", "low", "high", "border")),
        *(f"tracking.{n}" for n in ("experiment", "required", "drain")),
    ],
    "compare": ["tracking.required", "tracking.drain"],
}


def test_the_tables_of_foreign_keys_are_complete():
    assert {verb: len(names) for verb, names in FOREIGN.items()} == {
        "shard": 4, "train": 6, "evaluate": 19, "compare": 2
    }  # fmt: skip


@pytest.mark.parametrize(("verb", "name"), [(v, n) for v, names in FOREIGN.items() for n in names])
def test_a_key_that_a_command_does_not_read_is_refused_on_its_command_line(verb, name):
    text = refusal(verb, f"{name}=1")
    assert f"unknown key {name}: it is a key of " in text and f", not of {verb}" in text


def test_one_group_file_serves_every_command(monkeypatch, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ours.yaml").write_text(
        "{name: ours, layout: paris, holdout: 0.1, crop: 64, resize_short: 80}"
    )
    monkeypatch.setenv("LACUNA_CONF", str(tmp_path))
    assert compose("shard", ["data=ours"]).config.data.holdout == 0.1
    assert compose("train", ["data=ours"]).config.data.crop == 64
    assert compose("evaluate", ["data=ours"]).config.data.resize_short == 80
    (tmp_path / "data" / "ours.yaml").write_text("{name: ours, layuot: paris}")
    for verb in ("shard", "train", "evaluate"):
        text = refusal(verb, "data=ours")
        assert "data/ours.yaml: unknown key data.layuot" in text


def test_an_old_run_whose_config_holds_retired_keys_is_read_and_is_the_same_run(tmp_path):
    """As written before `data` was divided between the commands, and lacking a later key."""
    from omegaconf import OmegaConf

    from pipeline.config.former import RETIRED
    from pipeline.runs.identity import changed_key

    now = compose("train", ["experiment=quickstart", f"run={tmp_path}"])
    old = OmegaConf.create(now.yaml())
    for name in RETIRED:
        OmegaConf.update(old, name, "whatever it was")
    del old["clip"], old["model"]["norm"]
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(old))
    again = compose("train", [f"run={tmp_path}"])
    assert again.config == now.config
    assert changed_key(again.config, old) is None
    assert "unknown key objective.name" in refusal("train", f"run={tmp_path}", "objective.name=x")
    changed = compose("train", [f"run={tmp_path}", "clip=0.5"]).config
    assert changed_key(changed, old) == ("clip", None, 0.5)


@pytest.mark.parametrize("name", ["data.shard_mb=32", "data.quality=90"])
def test_how_a_set_was_sharded_is_no_part_of_a_run(name):
    """Training reads the set by its digest; sharding's keys are refused, not hashed."""
    assert "not of train" in refusal("train", name)


SPELLINGS = [  # a key, what is written, what is read
    ("cluster.time", "12:00:00", "12:00:00"),
    ("cluster.time", "30", "30"),
    ("cluster.account", "0123", "0123"),
    ("cluster.partition", "on", "on"),
    ("cluster.name", "3.10", "3.10"),
    ("cluster.name", "1_000", "1_000"),
    ("cluster.qos", "1e3", "1e3"),
    ("cluster.qos", "2024-05-01", "2024-05-01"),
    ("cluster.qos", "null", None),
    ("cluster.qos", "'null'", "null"),
    ("cluster.env", "{A: 010, B: 12:30:00, C: yes, D: '1'}",
     {"A": "010", "B": "12:30:00", "C": "yes", "D": "1"}),
    ("cluster.mounts", "[1.50, a]", ["1.50", "a"]),
    ("cluster.sbatch", "{time: 1:30:00, exclusive: true, mem: 0x10, constraint: a100}",
     {"time": "1:30:00", "exclusive": True, "mem": "0x10", "constraint": "a100"}),
    ("cluster.nodes", "2", 2),
]  # fmt: skip


# Row 43
@pytest.mark.parametrize("place", ["group", "defaults", "config", "word"])
@pytest.mark.parametrize(("key", "written", "read"), SPELLINGS)
def test_a_text_keeps_its_spelling_wherever_it_is_written(
    tmp_path, monkeypatch, place, key, written, read
):
    section, name = key.split(".")
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "ours.yaml").write_text(
        f"scheduler: slurm\n{name}: {written}\n" if place == "group" else "scheduler: slurm\n"
    )
    whole = tmp_path / ("defaults.yaml" if place == "defaults" else "saved.yaml")
    whole.write_text(f"{section}:\n  {name}: {written}\n")
    monkeypatch.setenv("LACUNA_CONF", str(tmp_path))
    words = {"config": [f"config={whole}"], "word": ["cluster=ours", f"{key}={written}"]}
    config = compose("submit", words.get(place, ["cluster=ours"])).config
    assert getattr(config.cluster, name) == read


def test_a_renamed_key_is_read_by_its_former_name_and_names_the_same_run(tmp_path, monkeypatch):
    """`vgg_normalise` in an old config.yaml, on the command line and in a site's file."""
    from omegaconf import OmegaConf

    from pipeline.runs.identity import changed_key, folder_of

    words = ["data.url=/set", "objective=musical_released", "objective.span=1"]
    words += ["validate.pairs=64"]  # the former default
    now = compose("train", words)
    assert now.config.objective.vgg_normalize is False
    assert (
        folder_of(now.config).url == "runs/train-e84ae025"
    )  # as commands before the change named it
    text = now.yaml().replace("vgg_normalize", "vgg_normalise")
    (tmp_path / "config.yaml").write_text(text)
    old = compose("train", [f"run={tmp_path}"]).config
    assert old.objective == now.config.objective
    assert changed_key(old, OmegaConf.create(text)) is None
    changed = compose("train", [*words, "objective.vgg_normalise=true"]).config
    assert changed_key(changed, OmegaConf.create(text)) == ("objective.vgg_normalize", False, True)
    (tmp_path / "defaults.yaml").write_text("objective: {vgg_normalise: true}\npictures: 3\n")
    monkeypatch.setenv("LACUNA_CONF", str(tmp_path))
    assert compose("train", words).config.objective.vgg_normalize is True
    assert compose("evaluate", ["data.url=/set"]).config.images == 3
