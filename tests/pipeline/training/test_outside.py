"""A method in a folder outside the checkout, as docs/adding-a-method.md writes it."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from jobs import scheduler
from models import GENERATORS
from pipeline import cli
from pipeline.common.errors import ConfigError
from pipeline.config import outside
from pipeline.config.compose import compose
from pipeline.config.methods import METHODS, MODELS
from tests.conftest import ROOT, run_verb

WORDS = ("experiment=toy", "data.crop=32", "validate.size=32", "validate.pairs=2", "processes=1",
         "tracking.enabled=false", "validate.samples=0")  # fmt: skip
SUBMITTED = ("cluster=slurm", "cluster.gpus_per_node=0", "cluster.code=image", "experiment=toy",
             "data.crop=32", "validate.size=32", "tracking.enabled=false", "root=runs")  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files of the page, written where it says."""
    top = tmp_path_factory.mktemp("outside")
    page = (ROOT / "docs" / "adding-a-method.md").read_text()
    for name, text in re.findall(r"```\w+\n# DIR/(\S+)\n(.*?)```", page, re.S):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text)
    return top


@pytest.fixture(autouse=True)
def forget():
    """Whatever the test adds is taken back; `forget()` does so before its end."""
    tables = (MODELS, METHODS, GENERATORS)
    kept = [dict(rows) for rows in tables]

    def call():
        for rows, before in zip(tables, kept):
            rows.clear()
            rows.update(before)
        outside.folders.clear()
        outside.use.cache_clear()
        for name in [n for n in sys.modules if n.endswith(".toy")]:
            del sys.modules[name]

    yield call
    call()


@pytest.mark.slow
def test_a_method_of_the_page_trains_resumes_and_is_exported(folder, small_set, tmp_path, forget):
    run, path = f"{tmp_path}/run", f"methods.path={folder}"
    words = (*WORDS, f"data.url={small_set}", f"run={run}")
    done = run_verb("train", path, *words, "max_images=12")
    assert done.returncode == 0, done.stderr
    done = run_verb("train", f"run={run}", "max_images=24", process=False)  # as its config says
    assert done.returncode == 0, done.stderr
    forget()
    whole = run_verb("train", path, *words, f"run={tmp_path}/whole", process=False)
    assert whole.returncode == 0, whole.stderr
    forget()
    ends = [sorted(Path(r, "checkpoints").glob("*24/generator.safetensors"))[0].read_bytes()
            for r in (run, f"{tmp_path}/whole")]  # fmt: skip
    assert ends[0] == ends[1]
    facts = json.loads(Path(run, "run.json").read_text())
    assert facts["methods"] == outside.digest(str(folder))
    assert facts["result"]["images_seen"] == 24

    env = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    done = run_verb("register", f"run={run}", env=env)
    assert done.returncode == 2 and "model=toy is not here: give methods.path=" in done.stderr
    done = run_verb("register", f"run={run}", path, env=env)
    assert done.returncode == 0, done.stderr
    done = run_verb("predict", "model=models:/inpaint-toy/1", f"image={small_set}", "split=train",
                    "mask=8,8,9,9", f"out={tmp_path}/filled", env=env, process=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(Path(tmp_path, "filled").rglob("*.png"))

    (folder / "conf" / "other.yaml").write_text("a: 1\n")
    done = run_verb("train", f"run={run}", "max_images=36", process=False)
    assert done.returncode == 2 and f"methods.path={folder} are not those" in done.stderr


@pytest.mark.parametrize("more", [(), ("seed=0,1",), ("then", "register")])
def test_submit_carries_the_folder(folder, small_set, tmp_path, monkeypatch, more):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(scheduler, "submit", lambda rendered, _: ["7" for _ in rendered.stages])
    monkeypatch.setattr(scheduler, "judge", lambda _: None)
    monkeypatch.setattr(scheduler, "located", lambda cluster: cluster)
    words = ["submit", "train", *SUBMITTED, f"methods.path={folder}", f"data.url={small_set}"]
    assert cli.main([*words, *more]) == 0
    configs = [*tmp_path.glob("runs/*/config.yaml")]
    assert len(configs) == 2 if more else 1
    for config in configs:
        path = yaml.safe_load(config.read_text())["methods"]["path"]
        assert Path(path).is_absolute() and Path(path).parent.parent == tmp_path / "runs"
        with zipfile.ZipFile(path) as packed:
            held = {n: packed.read(n) for n in packed.namelist()}
        files = [p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
        assert held == {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}
        # Where there is no such folder, as in the job.
        program = "import sys; from pipeline.config.compose import compose; print(compose(" \
            "sys.argv[1], ['config=' + sys.argv[2]]).config.methods.path)"  # fmt: skip
        verb = "register" if "register" in config.parent.name else "train"
        done = subprocess.run([sys.executable, "-c", program, verb, str(config)], cwd=ROOT,
                              capture_output=True, text=True)  # fmt: skip
        assert done.stdout.strip() == path, done.stderr


def moved(folder, old, new):
    (folder / new).parent.mkdir(parents=True, exist_ok=True)
    (folder / old).rename(folder / new)


CONFIGURED = "pipeline/config/methods"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: shutil.rmtree(f), f"has no {CONFIGURED}/NAME.py"),
        (lambda f: shutil.rmtree(f / CONFIGURED), f"has no {CONFIGURED}/NAME.py"),
        (lambda f: (f / "models/toy.py").unlink(), "has no models/toy.py: add the file"),
        (
            lambda f: (f / "pipeline/training/methods/toy.py").unlink(),
            "has no pipeline/training/methods/toy.py: add the file",
        ),
        (
            lambda f: moved(f, "models/toy.py", "models/glc.py"),
            "models/glc.py is also a file of the checkout",
        ),
        (
            lambda f: (f / CONFIGURED / "toy.py").write_text(
                (f / CONFIGURED / "toy.py").read_text().replace('"toy"', '"glc"')
            ),
            "the name glc is taken: choose another",
        ),
    ],
)
def test_a_folder_that_is_no_method_is_refused(folder, tmp_path, spoil, message):
    shutil.copytree(folder, tmp_path / "spoilt")
    spoil(tmp_path / "spoilt")
    with pytest.raises(ConfigError, match=re.escape(message)) as refused:
        compose("train", [f"methods.path={tmp_path}/spoilt", "data.url=x"])
    assert f"methods.path={tmp_path}/spoilt" in str(refused.value)


@pytest.mark.parametrize("name", ["../escaped.py", "models/../../escaped.py", "/escaped.py", None])
def test_an_archive_that_is_damaged_or_leaves_its_folder_is_refused(folder, tmp_path, name):
    path = tmp_path / "methods.zip"
    packed = outside.archive(str(folder))
    path.write_bytes(packed if name else packed[:-30])
    if name:
        with zipfile.ZipFile(path, "a") as made:
            made.writestr(zipfile.ZipInfo(name), "")
    message = f"{name} lies outside" if name else "is damaged"
    with pytest.raises(ConfigError, match=re.escape(message)):
        compose("train", [f"methods.path={path}", "data.url=x"])


def test_the_digest_is_of_names_and_bytes(folder, tmp_path):
    first = outside.digest(str(folder))
    (tmp_path / "methods.zip").write_bytes(outside.archive(str(folder)))
    assert outside.digest(str(tmp_path / "methods.zip")) == first
    shutil.copytree(folder, tmp_path / "same")
    assert outside.digest(str(tmp_path / "same")) == first
    moved(tmp_path / "same", "models/toy.py", "models/tpy.py")
    assert outside.digest(str(tmp_path / "same")) != first


def test_nothing_is_left_in_the_checkout():
    """Neither by this file's tests nor by importing from the folder."""
    assert not [p for place in ("models", "pipeline", "conf") for p in (ROOT / place).rglob("toy*")]
