"""What would end every worker is refused by the launcher, in one line, before one starts."""

import shlex
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch

from pipeline.common.errors import ConfigError
from pipeline.config.commands import COMMANDS
from pipeline.config.compose import compose
from pipeline.config.methods import MODELS
from pipeline.launch.topology import process_count
from pipeline.runs.checkpoints import build_generator
from pipeline.runs.folder import folder_at
from pipeline.runs.identity import write_config
from pipeline.tracking import client
from pipeline.training.checkpointing import Saver
from pipeline.training.preflight import NOT_IN_TENSORS, preflight
from shards.mask_sets import write_mask_set
from shards.writer import write_set
from tests.support.sets import samples
from tests.support.trained import finished_run, registered

MUSICAL = (
    "experiment=finetune/folder",
    "model=musical",
    "objective.perceptual=0",
    "objective.style=0",
    "data.crop=64",
    "validate.size=64",
)
WORDS = ("experiment=quickstart", "data.crop=64", "validate.size=64")


@pytest.fixture
def refusal(small_set, tmp_path):
    """The one line with which a configuration is refused."""

    def refusal(*words, world_size=1, start=WORDS):
        given = [*start, f"data.url={small_set}", f"run={tmp_path}/run", "processes=1", *words]
        with pytest.raises(ValueError) as caught:
            config = compose("train", given).config
            COMMANDS["train"].check(config)
            preflight(config, world_size)
        assert not (tmp_path / "run").exists()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return refusal


def accepted(small_set, run, *words, start=WORDS):
    given = [*start, f"data.url={small_set}", f"run={run}", "processes=1", *words]
    return preflight(compose("train", given).config, 1)


# --- the dataset ----------------------------------------------------------------------------------


def test_checkpoints_are_not_selected_on_test(refusal):
    message = refusal("data.validate=test")
    assert "data.validate=test" in message and "shard data.holdout=0.01" in message


def test_a_mistyped_run_alone_is_refused(refusal, tmp_path):
    message = refusal("data.url=null")
    assert message.startswith("data.url= is missing")
    assert message.endswith(f"{tmp_path}/run holds no config.yaml to resume from")


def test_a_set_without_val_is_refused_with_how_to_make_one(refusal, tmp_path):
    """As of Paris StreetView, whose authors hand out train and test."""
    made = write_set(str(tmp_path / "paris"), "paris", "images",
                     {"train": samples(3, 96), "test": samples(2, 96)}, options={},
                     per_shard=9)  # fmt: skip
    url = f"data.url={made.manifest.url}"
    message = refusal("data=paris", url, "data.resize_short=null")
    assert "data.validate=val is not a split" in message and "it has test, train" in message
    assert "shard data.holdout=0.01" in message and "test is for results only" in message
    assert "holdout" not in refusal(url, "data.train=trian", "data.validate=train")


def test_images_too_small_for_validation_are_refused(refusal):
    message = refusal("validate.size=128")
    assert "validate.size=128 is larger than images" in message and "in val is 96" in message
    message = refusal("data.resize_short=80", "validate.size=96")
    assert "validate.size=96 is larger than data.resize_short=80" in message
    assert "data.crop=128" in refusal("data.crop=128")


def test_every_validated_image_is_checked(refusal, small_set, tmp_path):
    """And no other: one too small is the fourth, in the second of the val split's shards."""
    val = [*samples(3, 96), *samples(1, 64)]
    url = write_set(str(tmp_path / "set"), "test", "images",
                    {"train": samples(3, 96), "val": iter(val)}, options={},
                    per_shard=2).manifest.url  # fmt: skip
    words = (f"data.url={url}", "validate.size=96")
    assert "in val is 64" in refusal(*words, "validate.pairs=4")
    accepted(small_set, tmp_path / "run", *words, "validate.pairs=3")


# --- processes and precision ----------------------------------------------------------------------


@pytest.mark.parametrize(("processes", "count"), [("auto", 1), ("1", 1), ("2", 2)])
def test_parallel_single_is_one_process(refusal, monkeypatch, processes, count):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    words = ("parallel=single", f"processes={processes}")
    assert process_count(compose("train", [*WORDS, *words]).config) == count
    message = refusal(*words, world_size=2)
    assert "parallel=single is one process, but 2 are given" in message


def test_zero_threads_are_refused(refusal):
    assert "invalid threads=0" in refusal("threads=0")


@pytest.mark.parametrize("word", ["ema=1.0", "objective.betas=[0.9,1.0]"])
def test_an_ema_decay_of_one_is_refused(word):
    name = word.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"{name}=.* is too large: expected less than 1\.0"):
        compose("train", [word])


# --- holes ----------------------------------------------------------------------------------------


def test_masks_that_cannot_be_drawn_are_refused(refusal):
    assert "masks.low=0.6 is not below masks.high=0.1" in refusal("masks.low=0.6", "masks.high=0.1")
    assert "needs masks.url=" in refusal("masks.kind=external")
    assert "needs masks.kind=external" in refusal("masks.url=/masks", "masks.kind=square")
    assert "masks.kind=none leaves no hole" in refusal("masks.kind=none")
    assert "does not fit inside the border" in refusal("masks.high=0.9", "masks.border=0.5")


def test_a_mask_set_that_validation_cannot_use_is_refused(refusal, small_set, tmp_path):
    url = write_mask_set(str(tmp_path / "masks"), 64, 1, 0).manifest.url
    words = ("masks.kind=external", f"masks.url={url}")
    accepted(small_set, tmp_path / "run", *words)
    message = refusal(*words, "validate.size=96")
    assert "masks of 64x64, but validate.size=96" in message and "validate.size=64" in message
    assert "no irregular mask" in refusal(*words, "masks.low=0.9", "masks.high=0.95")
    assert "holds images, not masks" in refusal("masks.kind=external", f"masks.url={small_set}")


# --- weights to start from ------------------------------------------------------------------------


def test_missing_weights_are_refused(refusal, tmp_path):
    assert f"init={tmp_path}/nothing holds no checkpoint" in refusal(f"init={tmp_path}/nothing")
    run = finished_run(tmp_path / "first")
    message = refusal(f"init={run}/checkpoints/000000000007")
    assert "has no checkpoint '000000000007': choose from last, best, 1000" in message


def test_weights_of_another_architecture_are_refused_naming_the_option(refusal, tmp_path):
    run = finished_run(tmp_path / "wide", model={"name": "msanet", "width": 0.2})
    message = refusal(f"init={run}")
    assert "model.width=0.2, which do not fit model.width=0.25" in message
    assert "model.name=msanet" in refusal(f"init={run}", start=MUSICAL)


def test_a_resume_does_not_need_the_weights_at_init(small_set, tmp_path):
    config = compose("train", [*WORDS, f"data.url={small_set}", f"run={tmp_path}/run"]).config
    config.init = str(tmp_path / "gone")
    saver = Saver(folder_at(config.run), 1)
    saver.save(8, {"generator": {"weight": torch.zeros(1)}}, {"model": asdict(config.model)})
    saver.close()
    write_config(config, saver.run)
    assert preflight(config, 1) == saver.run
    with pytest.raises(ValueError, match="gone holds no checkpoint"):
        preflight(replace(config, run=str(tmp_path / "new")), 1)


# Row 64
def test_a_missing_registered_model_or_one_of_another_network_is_refused(root, refusal, tmp_path):
    given = f"root={root}"
    assert "no registered model 'nope'" in refusal("init=models:/nope", given)
    uri = client.tracking_uri(str(root))
    registered(finished_run(tmp_path / "first", uri=uri), uri)
    assert "inpaint-msanet has no version 7" in refusal("init=models:/inpaint-msanet/7", given)
    message = refusal("init=models:/inpaint-msanet", given, start=MUSICAL)
    assert "model.name=msanet, which do not fit model.name=musical" in message


ARCHITECTURES = {
    "a width": ({"name": "msanet", "width": 0.2}, "model.width=0.2"),
    "lists": (
        {"name": "msanet", "width": 0.25, "fe": [32, 64], "msau": [[64, 24], [128, 48]]},
        "'model.fe=[32, 64]' 'model.msau=[[64, 24], [128, 48]]'",
    ),
    "another network": ({"name": "msanet", "width": 0.2}, "model=msanet model.width=0.2"),
    "switches": (
        {"name": "msanet", "width": 0.25, "mask_update": False, "channel": "se"},
        "model.mask_update=false model.channel=se",
    ),
}


@pytest.mark.parametrize("case", ARCHITECTURES)
def test_the_architecture_of_a_registered_model_is_answered_by_a_line_that_fits(
    root, refusal, tmp_path, small_set, case
):
    options, line = ARCHITECTURES[case]
    start = MUSICAL if case == "another network" else WORDS
    uri, model = client.tracking_uri(str(root)), f"init=models:/{case.replace(' ', '-')}"
    run = finished_run(tmp_path / "first", uri=uri, model=options)
    registered(run, uri, case.replace(" ", "-"))
    message = refusal(model, f"root={root}", start=start)
    words = shlex.split(message.partition(": give ")[2])
    assert sorted(words) == sorted(shlex.split(line))
    accepted(small_set, tmp_path / "run", model, f"root={root}", *words, start=start)


def test_only_options_that_change_no_tensor_may_differ_from_those_of_weights():
    """Every other value of each option that `check_init` lets pass; the networks tell."""
    from dataclasses import fields

    def shapes(**options):
        with torch.device("meta"):
            network = build_generator(options)
        return {key: tensor.shape for key, tensor in network.state_dict().items()}

    others = {"taps": [1, 2], "temperature": [1.0], "propagation": [0, 2]}
    others["merge_edges"] = [False]
    tried = set()
    for name, section in MODELS.items():
        for f in fields(section):
            if f.name in NOT_IN_TENSORS:
                for value in others.get(f.name) or f.metadata["choices"]:
                    assert shapes(name=name, **{f.name: value}) == shapes(name=name), f.name
                    tried.add(f.name)
    assert tried == set(NOT_IN_TENSORS)


def test_preflight_does_not_import_torch():
    modules = "pipeline.training.launcher, pipeline.tracking.model_versions"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
