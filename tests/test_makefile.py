"""What `make` installs and from which index, by a stand-in for Python that records calls."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYTHON = """\
#!/bin/sh
case "$*" in
  -V) echo Python 3.12.0 ;;
  "-m pip --version" | -c*) ;;
  "-m pip config list") cat config ;;
  *) echo "$*" >> calls ;;
esac
"""
LOCKED = "--require-hashes --no-deps --no-build-isolation -r requirements"
CPU = "--index-url https://download.pytorch.org/whl/cpu"


@pytest.fixture
def made(tmp_path):
    """`made(target, …)`: the commands that `make` gives to Python there; pip's configuration is
    `config`, and `gpu` says what nvidia-smi finds."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    bin = tmp_path / ".venv" / "bin"
    bin.mkdir(parents=True)

    def make(*words, config="", gpu=False):
        (tmp_path / "config").write_text(config)
        (tmp_path / "calls").write_text("")
        for path, text in (
            (bin / "python", PYTHON),
            (bin / "nvidia-smi", f"#!/bin/sh\nexit {int(not gpu)}\n"),
        ):
            path.write_text(text)
            path.chmod(0o755)
        done = subprocess.run(
            ["make", *words, f"PYTHON={bin}/python"],
            cwd=tmp_path,
            env={"PATH": f"{bin}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return (tmp_path / "calls").read_text().splitlines(), done.stdout

    return make


def installs(calls):
    prefix = "-m pip install --quiet --disable-pip-version-check --no-compile "
    return [line.removeprefix(prefix) for line in calls if line.startswith(prefix)]


@pytest.mark.parametrize(
    ("case", "index"),
    [
        ({}, CPU),
        ({"gpu": True}, ""),
        ({"config": "global.index-url='https://mirror/simple'\n"}, ""),
        ({"config": ":env:.index-url='https://mirror/simple'\n"}, ""),  # PIP_INDEX_URL
        ({"config": ":env:.extra-index-url='https://mirror/simple'\n"}, ""),
        ({"config": "install.find-links='/wheels'\n"}, ""),
        ({"config": "global.timeout='60'\n"}, CPU),
    ],
)
def test_torch_comes_from_its_cpu_index_without_gpu_and_configured_index(made, case, index):
    calls, _ = made("quickstart", **case)
    *locked, torch, project = installs(calls)
    assert locked == [f"{LOCKED}/build.lock", f"{LOCKED}/base.lock"]  # no index, no extras
    assert torch.startswith(f"{index} -c .venv/constraints.txt torch==".lstrip())
    assert project == "--no-deps --no-build-isolation -e ."


def test_an_index_that_is_given_is_used(made):
    calls, _ = made("quickstart", "TORCH_INDEX=https://torch/cu", "TORCH=torch==9.9")
    assert installs(calls)[2] == (
        "--index-url https://torch/cu -c .venv/constraints.txt torch==9.9"
    )


def test_pip_lists_an_index_of_the_environment_as_the_makefile_expects():
    import sys

    shown = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        env={**os.environ, "PIP_EXTRA_INDEX_URL": "https://mirror.example.org/simple"},
        capture_output=True,
        text=True,
    )
    assert ":env:.extra-index-url='https://mirror.example.org/simple'" in shown.stdout


def test_quickstart_installs_only_what_it_needs_and_test_adds_the_rest(made):
    calls, said = made("quickstart")
    assert calls[-1] == "-m pipeline quickstart" and len(installs(calls)) == 4
    assert "installing torch==" in said and "installing what the commands need" in said
    assert installs(made("quickstart")[0]) == []  # its mark is there
    calls, said = made("test")
    assert installs(calls) == [f"{LOCKED}/deepspeed.lock", f"{LOCKED}/dev.lock"]
    assert "-m pytest" in calls[-1] and "adding DeepSpeed" in said
    assert installs(made("test")[0]) == []
    assert len(installs(made("install")[0])) == 6  # anew
