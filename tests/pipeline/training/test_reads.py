"""How often the launcher and the workers read a run's own files; on a bucket each is a request."""

import os
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
COUNT_READS = """
import os
from shards import store
read = store.read
def counted(url, *rest):
    with open(os.environ["READS"], "a") as out:
        out.write(f"{os.environ.get('RANK', 'launcher')} {url}\\n")
    return read(url, *rest)
store.read = counted
"""
MOST = {"run.json": 2, "config.yaml": 1}


@pytest.mark.slow
@pytest.mark.dist
def test_each_process_reads_run_json_at_most_twice_and_config_yaml_once(train, tmp_path):
    """Kept checkpoints are many: before a deletion `pinned` is read anew, as others write it."""
    (tmp_path / "sitecustomize.py").write_text(COUNT_READS)
    run, path = tmp_path / "run", os.pathsep.join([str(tmp_path), str(ROOT)])
    for attempt, words in (("start", ["max_images=16"]), ("resume", ["max_images=32"])):
        log = tmp_path / attempt
        env = {"PYTHONPATH": path, "READS": str(log)}
        kept = ("checkpoint.every_images=8", "checkpoint.keep=9")
        done = train(run, "processes=2", *kept, *words, env=env)
        assert done.returncode == 0, done.stderr
        reads = Counter(log.read_text().splitlines())
        for process in ("launcher", "0", "1"):
            for name, most in MOST.items():
                assert reads[f"{process} {run / name}"] <= most, (attempt, reads)
        assert reads[f"launcher {run / 'run.json'}"] and reads[f"0 {run / 'run.json'}"]


@pytest.mark.slow
@pytest.mark.dist
def test_workers_train_with_the_launchers_configuration(train, tmp_path):
    """A folder of configurations that changes after the launcher read it changes no worker."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "defaults.yaml").write_text("clip: 7.5\n")
    (tmp_path / "sitecustomize.py").write_text(
        "import os, pathlib\n"
        "if 'RANK' in os.environ:\n"
        "    pathlib.Path(os.environ['LACUNA_CONF'], 'defaults.yaml').write_text('clip: 1.0\\n')\n"
    )
    env = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "LACUNA_CONF": str(site)}
    done = train(tmp_path / "run", "processes=2", "max_images=8", env=env)
    assert done.returncode == 0, done.stderr
    assert "clip: 1.0" in (site / "defaults.yaml").read_text()
    assert "\nclip: 7.5\n" in (tmp_path / "run" / "config.yaml").read_text()
