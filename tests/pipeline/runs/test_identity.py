"""Which run a configuration means, and who may write it."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.common.errors import ConfigError
from pipeline.config.compose import compose
from pipeline.runs.folder import RunFolder, folder_at, held
from pipeline.runs.identity import check_same, folder_of, science, settled, write_config
from shards import store

ROOT = Path(__file__).resolve().parents[3]


def configured(*words):
    return compose("train", ["experiment=quickstart", *words]).config


def test_the_name_follows_the_science_and_nothing_else():
    base = folder_of(configured()).url
    assert base.startswith("runs/quickstart-")
    for same in ("max_images=1", "processes=1", "accumulate=2", "checkpoint.keep=9"):
        assert folder_of(configured(same)).url == base
    for other in ("seed=1", "batch=32", "model.width=0.5", "objective.style=1", "data.crop=64"):
        assert folder_of(configured(other)).url != base


def test_a_changed_run_is_refused_by_name(tmp_path):
    config = configured(f"run={tmp_path}")
    run = folder_of(config)
    write_config(config, run)
    check_same(replace(config, seed=5), run)  # nothing was trained yet: it may still become another
    saved = tmp_path / "checkpoints" / "000000000016"
    saved.mkdir(parents=True)
    (saved / "state.json").write_text("{}")
    check_same(replace(config, max_images=9, processes="1"), run)
    with pytest.raises(ConfigError, match="was started with seed=0, now it is 5"):
        check_same(replace(config, seed=5), run)
    with pytest.raises(ConfigError, match="model.width=0.25") as wider:
        check_same(replace(config, model=replace(config.model, width=0.5)), run)
    with pytest.raises(ConfigError) as seeded:
        check_same(replace(config, seed=5), run)
    assert f"run=NEW (init={tmp_path} takes these weights along)" in str(seeded.value)
    assert "run=NEW;" in str(wider.value)  # whose weights would not fit
    may = "what may change is weights, max_images, processes, accumulate, parallel.strategy, "
    assert may in str(wider.value) and "checkpoint.*, cluster.*" in str(seeded.value)


def test_what_auto_came_to_at_the_first_start_stays(tmp_path):
    config = configured(f"run={tmp_path}")
    run = folder_of(config)
    write_config(replace(config, threads="3", precision="fp32"), run)
    assert settled(config, run) == config
    saved = tmp_path / "checkpoints" / "000000000016"
    saved.mkdir(parents=True)
    (saved / "state.json").write_text("{}")
    assert (settled(config, run).threads, settled(config, run).precision) == ("3", "fp32")
    check_same(config, run)
    check_same(replace(config, threads="3"), run)
    with pytest.raises(ConfigError, match="was started with threads=3, now it is 2"):
        check_same(replace(config, threads="2"), run)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("chapter one")
    with pytest.raises(ConfigError, match="is no run but holds thesis.tex"):
        check_same(configured(f"run={tmp_path}"), folder_at(str(tmp_path)))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_second_writer_is_refused_with_the_first_ones_name(tmp_path):
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


def test_with_a_checkpoint_goes_what_changed_since_the_one_before(tmp_path, monkeypatch):
    """Not every picture of a long run again."""
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


def test_science_leaves_out_where_things_run():
    keys = science(configured())
    assert "seed" in keys and "model.width" in keys
    assert not [k for k in keys if k.startswith(("cluster.", "checkpoint.", "tracking.", "root"))]
