"""Fixtures for all tests: commands, and small real sets, each made once per test run."""

import gc
import io
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from tests.support.soak import Soak

ROOT = Path(__file__).resolve().parent.parent
UNSET = ("RANK", "WORLD_SIZE", "LACUNA_CONF")  # of the environment that commands get
# A shell starts `pytest &` with SIGINT ignored, and every process under it would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and `nohup pytest` with SIGHUP ignored
# A developer's own configuration must not change what the tests see, nor a launcher's variables.
CONFIG = tempfile.TemporaryDirectory(prefix="lacuna-tests-")
os.environ["XDG_CONFIG_HOME"] = CONFIG.name
for name in ("LACUNA_CONF", "RANK", "WORLD_SIZE"):
    os.environ.pop(name, None)
# Tests share the cores: threads that wait for one another must not spin, and where several tests
# run at once each takes one.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

SOAK = Soak()


@pytest.fixture(scope="session")
def soak():
    return SOAK


# Files of minutes, the longest first: begun last, they would leave one worker without work.
LONG = ["test_readme", "test_train", "test_slurm_training", "test_engine", "test_train_faults",
        "test_learning", "test_methods", "test_promote", "test_slurm_ends", "test_submit",
        "test_store", "test_register", "test_pyfunc", "test_kubernetes_jobset"]  # fmt: skip


def pytest_collection_modifyitems(items):
    order = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONG)))


def pytest_collection_finish():
    """Let no garbage collection walk the collected tests and imported libraries again."""
    gc.collect()
    gc.freeze()


def pytest_runtest_logreport(report):
    if report.when == "call" and "soak" in report.keywords:
        found = {"outcome": report.outcome, "seconds": round(report.duration)}
        SOAK.tests[report.nodeid] = found


def pytest_sessionfinish():
    if SOAK.full:
        SOAK.write(ROOT / "soak.json")


@contextmanager
def _handlers_kept():
    """Restore every signal handler after the block: a launcher replaces them for good."""
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)


@pytest.fixture(autouse=True)
def handlers_kept():
    with _handlers_kept():
        yield


# These start processes, handle signals or run until they are stopped.
OWN_PROCESS = {"train", "submit", "demo", "quickstart", "bench"}


def run_verb(*words, cwd=ROOT, env=None, timeout=600, process=None):
    """The finished command `python -m pipeline words...`, its output captured as text.

    process: True in a process of its own, False in this one (which saves the imports of torch and
    MLflow), None as the command needs.
    """
    words = [str(word) for word in words]
    if process is None:
        process = words[:1] != [] and words[0] in OWN_PROCESS and "--help" not in words
    if not process:
        return _in_this_process(words, cwd, env or {})
    clean = {k: v for k, v in os.environ.items() if k not in UNSET}
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *words],
        cwd=cwd,
        env={**clean, "OMP_NUM_THREADS": "1", **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def _in_this_process(words, cwd, env):
    """`pipeline.cli.main` with the folder, environment and signal handlers of before restored.

    The worker of a run that has only one runs in this process too.
    """
    from pipeline.cli import main
    from pipeline.launch import workers

    supervise = workers.supervise

    def supervised(command, places, *rest):
        if len(places) > 1:
            return supervise(command, places, *rest)
        from tests.support.alone import worked

        return worked(command)

    out, err = io.StringIO(), io.StringIO()
    quiet = redirect_stdout(out), redirect_stderr(err)
    with _handlers_kept(), pytest.MonkeyPatch.context() as patch, quiet[0], quiet[1]:
        patch.chdir(cwd)
        for name in UNSET:
            patch.delenv(name, raising=False)
        for name, value in env.items():
            patch.setenv(name, value)
        patch.setattr(workers, "supervise", supervised)
        try:
            status = main(words)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def verb():
    return run_verb


@pytest.fixture(scope="session")
def photograph_folder(tmp_path_factory):
    """96x96 JPEG crops of three photographs, one a split: 24 train, 6 val, 6 test."""
    from PIL import Image

    from pipeline.data.photographs import photograph

    folder = tmp_path_factory.mktemp("photographs")
    names = {"train": ("astronaut.png", 24), "val": ("coffee.png", 6), "test": ("chelsea.png", 6)}
    for split, (name, count) in names.items():
        (folder / split).mkdir()
        picture = photograph(name).resize((384, 288), Image.Resampling.LANCZOS)
        for i in range(count):
            left, top = (i % 4) * 96, (i // 4 % 3) * 96
            crop = picture.crop((left, top, left + 96, top + 96))
            crop = crop.rotate(180) if i >= 12 else crop
            crop.save(folder / split / f"crop-{i:02d}.jpg", quality=92)
    return folder


@pytest.fixture(scope="session")
def small_set(photograph_folder, tmp_path_factory):
    """A sharded set of `photograph_folder`, by `shard`."""
    out = tmp_path_factory.mktemp("sets") / "photographs"
    done = run_verb("shard", f"source={photograph_folder}", f"out={out}", "data.min_side=64")
    assert done.returncode == 0, done.stderr
    return str(out)


# MSA-Net whole, a tenth as wide, on 64x64 crops: a step takes a fraction of a second.
TINY = (
    "experiment=quickstart",
    "model.width=0.1",
    "data.crop=64",
    "batch=8",
    "validate.size=64",
    "validate.pairs=3",
    "validate.samples=1",
    "validate.every_images=0",
    "checkpoint.every_images=80",
    "checkpoint.every_seconds=0",
    "threads=1",
    "objective.style=25",
    "objective.perceptual=0.001",
    "objective.phases=[{until: null, lr: 1.0e-3}]",
    "tracking.enabled=false",
)


@pytest.fixture(scope="session")
def train(small_set):
    """`train` on `small_set` with the tiny recipe; extra words win. One process, which is this one,
    unless they ask for more."""

    def call(run, *words, env=None):
        keys = {word.partition("=")[0] for word in words}
        kept = [word for word in (*TINY, "processes=1") if word.partition("=")[0] not in keys]
        words = (*kept, f"data.url={small_set}", f"run={run}", *words)
        return run_verb("train", *words, env=env, process="processes=1" not in words)

    return call
