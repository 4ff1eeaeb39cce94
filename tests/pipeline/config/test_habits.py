"""Keys of other trainers are answered with a line that works here."""

import re
import shlex

import pytest

from pipeline.common.errors import ConfigError
from pipeline.config.compose import compose
from pipeline.config.groups import Phase
from pipeline.runs.identity import folder_of
from tests.support.sets import image_set

NEEDED = {"predict": ["model=telea", "image=a.png", "mask=b.png", "out=c.png"]}


@pytest.mark.parametrize(
    ("command", "word", "key", "value"),
    [
        ("train", "lr=0.001", "objective.phases", [Phase(None, 0.001)]),
        ("train", "learning_rate=1e-4", "objective.phases", [Phase(None, 1e-4)]),
        ("train", "batch_size=4", "batch", 4),
        ("evaluate", "batch_size=4", "batch", 4),
        ("train", "steps=10", "max_images", 160),
        ("train", "iterations=5", "max_images", 80),
        ("train", "gpus=2", "processes", "2"),
        ("train", "gpus=all", "processes", "auto"),
        ("train", "num_workers=3", "loader_threads", 3),
        ("shard", "num_workers=3", "workers", 3),
        ("train", "device=cuda", "processes", "auto"),
        ("evaluate", "device=cpu", "processes", "auto"),
        ("train", "resume=runs/a", "run", "runs/a"),
        ("train", "resume=true", "run", "RUN"),
        ("train", "output_dir=out/my run", "run", "out/my run"),
        ("predict", "output_dir=out", "out", "out"),
        ("predict", "run=runs/a", "model", "runs/a"),
        ("evaluate", "run=runs/a", "checkpoint", "runs/a"),
        ("train", "checkpoint=runs/a", "init", "runs/a"),
        ("train", "dataset=sets/paris", "data.url", "sets/paris"),
        ("train", "image_size=128", "data.crop", 128),
        ("train", "amp=bf16", "precision", "bf16"),
        ("train", "amp=true", "precision", "auto"),
        ("train", "mixed_precision=no", "precision", "fp32"),
        ("train", "pretrained=models:/m@champion", "init", "models:/m@champion"),
    ],
)
def test_the_answer_can_be_pasted(command, word, key, value):
    with pytest.raises(ConfigError) as refused:
        compose(command, [*NEEDED.get(command, []), word])
    name = word.partition("=")[0]
    said = re.fullmatch(rf"unknown key {name}: write (.+?)(?: \([^()]*\))?", str(refused.value))
    [pasted] = shlex.split(said[1])
    found = compose(command, [*NEEDED.get(command, []), pasted]).config
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["epochs=3"], "max_images=15 (3 x 5 images of the split)"),
        (["num_epochs=0.5"], "max_images=2 (0.5 x 5 images of the split)"),
        (["epochs=3", "data.train=no"], "max_images=IMAGES (epochs times the images of the split;"),
        (["epochs=all"], "max_images=IMAGES (epochs times the images of the split;"),
    ],
)
def test_epochs_become_images(tmp_path, words, said):
    image_set(tmp_path / "set", 5)
    with pytest.raises(ConfigError, match=re.escape(f"write {said}")):
        compose("train", [f"data.url={tmp_path}/set", *words])


def test_epochs_of_no_set_say_how_they_are_counted():
    with pytest.raises(ConfigError, match="with data.url= they are counted"):
        compose("train", ["epochs=3"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["predict", "device=cuda"], ": GPUs are used if visible; CUDA_VISIBLE_DEVICES= before"),
        (["train", "gpus=2"], "`submit` to a cluster: cluster.gpus_per_node=2"),
    ],
)
def test_an_answer_says_what_a_key_of_ours_cannot(words, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        compose(words[0], words[1:])


@pytest.mark.parametrize(("command", "word"), [("predict", "lr=1"), ("masks", "gpus=2")])
def test_a_command_without_such_a_key_lists_its_own(command, word):
    with pytest.raises(ConfigError, match="allowed: "):
        compose(command, [word])


def test_a_scale_of_one_is_the_run_of_versions_without_it():
    names = [
        folder_of(compose("train", ["experiment=quickstart", *more]).config).name
        for more in ([], ["lr_scale=1"], ["lr_scale=2"])
    ]
    assert names[0] == names[1] != names[2]
