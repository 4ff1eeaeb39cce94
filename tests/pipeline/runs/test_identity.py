"""The name of a configured run, what may change on resume, and the lock of a run."""

import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from pipeline.common.errors import ConfigError
from pipeline.config.compose import compose
from pipeline.config.resolve import to_yaml
from pipeline.runs.checkpoints import build_generator
from pipeline.runs.folder import RunFolder, folder_at, held
from pipeline.runs.identity import (
    SHOWN,
    check_same,
    folder_of,
    hashed_values,
    resolve_auto,
    shown_values,
    title,
    write_config,
)
from shards import store

ROOT = Path(__file__).resolve().parents[3]


def configured(*words):
    return compose("train", ["experiment=quickstart", *words]).config


def test_a_run_is_named_by_what_it_computes_and_nothing_else():
    base = folder_of(configured()).url
    assert base.startswith("runs/quickstart-")
    for same in ("max_images=1", "processes=1", "accumulate=2", "checkpoint.keep=9"):
        assert folder_of(configured(same)).url == base
    for other in ("seed=1", "batch=32", "model.width=0.5", "objective.style=1", "data.crop=64"):
        assert folder_of(configured(other)).url != base


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], ""),
        (["max_images=3", "parallel=zero1", "threads=3"], ""),
        (["seed=1"], " seed=1"),
        (["batch=8", "lr_scale=2"], " batch=8 lr_scale=2.0"),
        (["experiment=msanet/table6/places2", "model=deepfill"], " model.name=deepfill"),
        (["experiment=msanet/table6/places2", "data=paris"], " data.name=paris"),
        (["seed=3", "batch=2", "clip=1", "ema=0.9", "model.width=0.5"],
         " seed=3 batch=2 clip=1.0 +2"),
        (["objective.phases=[{until: 800, lr: 6e-4}, {lr: 2e-4}]"],
         " objective.phases=[{until: 800, lr: 0.000…"),
    ],
)  # fmt: skip
def test_a_run_s_title_says_what_differs_from_its_recipe(words, said):
    config = configured("data.url=sets/a", *words)
    name = folder_of(config).name
    assert title(config, f"runs/{name}") == f"{name}{said}"
    assert title(replace(config, run=f"runs/{name}"), f"runs/{name}") == f"{name}{said}"  # a job's
    assert title(config, "s3://bucket/mine") == "mine"  # a name of the user's says enough
    unknown = replace(config, experiment="elsewhere/recipe")
    assert title(unknown, folder_of(unknown).url) == folder_of(unknown).name


@pytest.mark.parametrize(
    ("words", "more"),
    [
        ([], {}),
        (["max_images=3", "threads=3", "checkpoint.keep=9", "cluster.nodes=2"], {}),
        (["batch=8", "lr_scale=2", "experiment=musical/paris"], {"lr_scale": 2.0}),
        (["clip=1", "masks.high=0.5"], {"clip": 1.0, "masks.high": 0.5}),
        (["objective.phases=[{lr: 2e-4}]"], {"objective.phases": [{"until": None, "lr": 2e-4}]}),
    ],
)  # fmt: skip
def test_mlflow_shows_a_handful_of_values_and_what_differs_from_the_recipe(words, more):
    config = configured("data.url=sets/a", *words)
    values = shown_values(config)
    assert values["batch"] == config.batch and values["max_images"] == config.max_images
    assert (values["model.name"], values["data.name"]) == (config.model.name, config.data.name)
    others = {k: v for k, v in values.items() if k not in SHOWN}
    phases = [{"until": p["until"], "lr": p["lr"]} for p in others.get("objective.phases", [])]
    assert others | ({"objective.phases": phases} if phases else {}) == more
    elsewhere = shown_values(replace(config, experiment="elsewhere/recipe"))
    assert {"masks.low", "data.crop"} <= elsewhere.keys(), "without its recipe, all values"


def test_a_changed_run_is_refused_by_name(tmp_path):
    config = configured(f"run={tmp_path}")
    write_config(config, folder_of(config))
    check_same(replace(config, seed=5), folder_of(config))  # nothing was trained yet
    saved = tmp_path / "checkpoints" / "000000000016"
    saved.mkdir(parents=True)
    (saved / "state.json").write_text("{}")
    run = folder_of(config)
    check_same(replace(config, max_images=9, processes="1"), run)
    with pytest.raises(ConfigError, match="with seed=5: it was started with seed=0"):
        check_same(replace(config, seed=5), run)
    with pytest.raises(ConfigError, match="model.width=0.25") as wider:
        check_same(replace(config, model=replace(config.model, width=0.5)), run)
    with pytest.raises(ConfigError) as seeded:
        check_same(replace(config, seed=5), run)
    assert f"run=NEW (init={tmp_path} starts from these weights)" in str(seeded.value)
    assert "run=NEW;" in str(wider.value)  # its weights would not fit
    allowed = "only these keys may change on resume: weights, max_images, processes, accumulate, "
    assert f"{allowed}parallel.strategy, " in str(wider.value) and "checkpoint.*, cluster.*" in str(
        seeded.value
    )


# Keys that older runs lack, and the words of today's recipe that give them another value.
@pytest.mark.parametrize(
    ("key", "old", "words"),
    [
        ("objective.span", 1.0, ["experiment=musical/paris"]),
        ("model.renormalize", "all", ["experiment=musical/ablation/single_scale"]),
        ("model.reduce", True, ["experiment=msanet/table2/inception_v3"]),
    ],
)
def test_a_run_from_before_a_key_keeps_its_arithmetic_and_its_name(tmp_path, key, old, words):
    run = f"run={tmp_path}"
    before = compose("train", [*words, f"{key}={old}"]).config
    lines = OmegaConf.create(to_yaml(replace(before, run=str(tmp_path))))
    section, leaf = key.split(".")
    del lines[section][leaf]
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(lines))
    saved = tmp_path / "checkpoints" / "000000000016"
    saved.mkdir(parents=True)
    (saved / "state.json").write_text("{}")
    resumed = compose("train", [run]).config
    assert OmegaConf.select(OmegaConf.structured(resumed), key) == old
    check_same(resumed, folder_of(resumed))
    assert key not in hashed_values(resumed)  # nor did it enter the name of an older run
    today = compose("train", [*words, run]).config
    with pytest.raises(
        ConfigError,
        match=f"{key}=[^;]*: it was started with {key}={old}".replace("True", "true|True"),
    ):
        check_same(today, folder_of(today))


@pytest.mark.parametrize(
    ("key", "value", "fits"),
    [
        ("model.renormalize", "copyable", True),
        ("model.temperature", 3.0, True),
        ("model.propagation", 2, True),
        ("objective.span", 2.0, True),
        ("model.ngf", 8, False),
        ("model.order", "released", False),
        ("model.attention", "single", False),
    ],
)
def test_a_changed_key_points_to_init_exactly_if_the_weights_fit(tmp_path, key, value, fits):
    """The oracle is the networks' own tensors."""
    words = ["model=musical", "model.ngf=4", "model.renormalize=all", f"run={tmp_path}"]
    words += ["objective=musical_paper", "objective.span=1"]
    before, after = (compose("train", [*words, *more]).config for more in ([], [f"{key}={value}"]))
    shapes = []
    for config in (before, after):
        with torch.device("meta"):
            state = build_generator(asdict(config.model)).state_dict()
        shapes.append({name: tensor.shape for name, tensor in state.items()})
    assert (shapes[0] == shapes[1]) == fits
    write_config(before, folder_of(before))
    saved = tmp_path / "checkpoints" / "000000000016"
    saved.mkdir(parents=True)
    (saved / "state.json").write_text("{}")
    with pytest.raises(ConfigError) as refused:
        check_same(after, folder_of(after))
    assert (f"run=NEW (init={tmp_path} starts from" in str(refused.value)) == fits


def test_auto_keeps_its_value_of_the_first_start(tmp_path):
    config = configured(f"run={tmp_path}")
    write_config(replace(config, threads="3", precision="fp32"), folder_of(config))
    assert resolve_auto(config, folder_of(config)) == config
    saved = tmp_path / "checkpoints" / "000000000016"
    saved.mkdir(parents=True)
    (saved / "state.json").write_text("{}")
    run = folder_of(config)
    assert (resolve_auto(config, run).threads, resolve_auto(config, run).precision) == ("3", "fp32")
    check_same(config, run)
    check_same(replace(config, threads="3"), run)
    with pytest.raises(ConfigError, match="with threads=2: it was started with threads=3"):
        check_same(replace(config, threads="2"), run)


def test_a_run_keeps_the_lanes_of_its_first_start_and_those_before_the_key_192(tmp_path):
    config = configured(f"run={tmp_path}")
    saved = tmp_path / "checkpoints" / "000000000016"
    saved.mkdir(parents=True)
    (saved / "state.json").write_text("{}")
    write_config(replace(config, data=replace(config.data, lanes="512")), folder_of(config))
    assert resolve_auto(config, folder_of(config)).data.lanes == "512"
    with pytest.raises(ConfigError, match="data.lanes=192: it was started with data.lanes=512"):
        check_same(configured(f"run={tmp_path}", "data.lanes=192"), folder_of(config))
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("  lanes: '512'\n", ""))
    assert "  lanes: " in text and "  lanes: " not in (tmp_path / "config.yaml").read_text()
    assert resolve_auto(config, folder_of(config)).data.lanes == "192"
    assert folder_of(configured("data.lanes=512")).url == folder_of(configured()).url


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("chapter one")
    with pytest.raises(ConfigError, match="is not a run but holds thesis.tex"):
        check_same(configured(f"run={tmp_path}"), folder_at(str(tmp_path)))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_second_writer_is_refused_naming_the_first(tmp_path):
    run = folder_at(str(tmp_path))
    code = "import sys, time; from pipeline.runs.folder import folder_at, held\n"
    code += f"with held(folder_at({str(tmp_path)!r})): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=f"pid {first.pid}"), held(run):
            pass
        first.kill()
    with held(run):
        pass


def test_publish_uploads_only_files_that_changed(tmp_path, monkeypatch):
    """Not every image of a long run again."""
    run, sent, upload = RunFolder(f"memory://{tmp_path.name}/run", tmp_path), [], store.upload
    monkeypatch.setattr(store, "upload", lambda url, path: sent.append(url) or upload(url, path))
    (tmp_path / "samples").mkdir()
    files = {"steps.jsonl": "1", "samples/a.png": "a", "run.json": "{}", ".lock": "host"}
    files |= {"samples/.b.png.0123456789abcdef.lacuna-tmp": "half"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    run.publish()
    assert sorted(sent) == [f"{run.url}/samples/a.png", f"{run.url}/steps.jsonl"]
    (tmp_path / "steps.jsonl").write_text("12")
    (tmp_path / "samples" / "b.png").write_text("b")
    run.publish()
    assert sorted(sent[2:]) == [f"{run.url}/samples/b.png", f"{run.url}/steps.jsonl"]
    assert store.read(f"{run.url}/steps.jsonl") == b"12"
    assert store.names(f"{run.url}/samples") == ["a.png", "b.png"]


def test_the_hash_leaves_out_paths_and_machines():
    keys = hashed_values(configured())
    assert "seed" in keys and "model.width" in keys
    assert not [k for k in keys if k.startswith(("cluster.", "checkpoint.", "tracking.", "root"))]


AWKWARD = ("cluster.env={A: 'x: #1', B: ''}", "threads='1'", "root=s3://bucket/a b", "seed=7",
           "objective.phases=[{until: 8, lr: 1.0e-5}, {until: null, lr: 0.1}]")  # fmt: skip


@pytest.mark.parametrize("experiment", ["quickstart", "msanet/table6/places2"])
def test_workers_read_the_launchers_configuration_unchanged(tmp_path, experiment):
    words = [f"experiment={experiment}", "data.url=/set", *AWKWARD]
    config = compose("train", words).config
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    read = compose("train", [f"config={tmp_path}/run.yaml"]).config
    assert read == config and folder_of(read) == folder_of(config)
