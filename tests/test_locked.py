"""What is installed: every package but torch by a hash, and commands that call nobody."""

import hashlib
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))
ENTRY = re.compile(
    r"^([\w.-]+)==(\S+)(?: ; (.+?))?((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", re.M
)
PLATFORMS = [
    {"sys_platform": system, "platform_machine": machine, "python_version": python,
     "python_full_version": f"{python}.4", "implementation_name": "cpython",
     "platform_python_implementation": "CPython", "platform_system": name, "os_name": "posix"}
    for python in ("3.11", "3.12", "3.13")
    for system, name, machine in (("linux", "Linux", "x86_64"), ("linux", "Linux", "aarch64"),
                                  ("darwin", "Darwin", "arm64"))
]  # fmt: skip


def locked(name):
    """Version, marker and number of hashes of each package of a lock."""
    text = (ROOT / "requirements" / f"{name}.lock").read_text()
    assert ENTRY.sub("", text).strip() == "", "a line without a hash"
    rows = ENTRY.findall(text)
    return {canonicalize_name(n): (v, m, h.count("--hash")) for n, v, m, h in rows}


def test_the_locks_hold_the_pins_and_all_that_is_needed_on_every_platform():
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    assert [p.stem for p in LOCKS] == ["base", "build", "deepspeed", "dev"]
    whole = {name: entry for lock in LOCKS for name, entry in locked(lock.stem).items()}
    assert "torch" not in whole and not [n for n in whole if n.startswith("nvidia-")]
    for name, (version, marker, _) in whole.items():
        here = any(not marker or Marker(marker).evaluate(place) for place in PLATFORMS)
        assert not here or pins[name] == version, name
    assert set(pins) - {"torch"} <= set(whole)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    parts = {
        "base": project["project"]["dependencies"],
        "build": project["build-system"]["requires"],
    }
    optional = project["project"]["optional-dependencies"]
    parts |= {
        "deepspeed": optional["deepspeed"],
        "dev": optional["dev"] + optional["metrics"] + optional["onnx"],
    }
    for lock, requirements in parts.items():
        for requirement in map(Requirement, requirements):
            name = canonicalize_name(requirement.name)
            if name in ("torch", "lacuna-inpainting"):
                continue
            version, marker, _ = locked(lock)[name]
            assert requirement.specifier.contains(version), name
            assert all(not marker or Marker(marker).evaluate(place) for place in PLATFORMS), name


def test_a_file_with_another_hash_is_refused(tmp_path):
    """By the options with which the Makefile installs the locks."""
    options = re.search(r"^LOCKED := \$\(PIP\) (.+) -r", (ROOT / "Makefile").read_text(), re.M)[1]
    wheel = tmp_path / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("toy.py", "")
        file.writestr(
            "toy-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n"
        )
        file.writestr("toy-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr("toy-1.0.dist-info/RECORD", "toy.py,,\n")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    other = digest[:-1] + ("0" if digest[-1] != "0" else "1")
    for number, (text, refused) in enumerate([
        (f"toy==1.0 --hash=sha256:{digest}", ""),
        (f"toy==1.0 --hash=sha256:{other}", "DO NOT MATCH THE HASHES"),
        ("toy==1.0", "require"),
    ]):  # fmt: skip
        (tmp_path / "lock").write_text(text)
        done = subprocess.run(
            [sys.executable, "-m", "pip", "install", "--isolated", "--no-index", "--find-links",
             tmp_path, "--target", tmp_path / str(number), *options.split(),
             "-r", tmp_path / "lock"],
            capture_output=True, text=True,
        )  # fmt: skip
        assert (done.returncode == 0) is (refused == ""), done.stderr
        assert refused in done.stderr
        assert (tmp_path / str(number) / "toy.py").exists() is (refused == "")


# --- the network ----------------------------------------------------------------------------------

ALONE = """
ip link set lo up
! timeout 5 bash -c '</dev/tcp/192.0.2.1/80' 2>/dev/null || exit 9
python() { "$PYTHON" -m pipeline "$@" || echo "COMMAND FAILED: $*"; }
python shard source=$PHOTOGRAPHS out=set data.min_side=64
python masks out=masks size=64 per_bucket=2
python train $TINY data.url=set run=runs/a max_images=16 tracking.enabled=true processes=1
ON='cluster=slurm cluster.gpus_per_node=0 cluster.code=image'
python submit train $TINY data.url=set $ON --dry-run
python status
[ -n "$FULL" ] || exit 0
python shard info set
python evaluate checkpoint=runs/a data.url=set masks.url=masks protocol.size=64
python runs
python compare
python doctor
"""

WATCH = """
import os, sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    else:
        return
    if str(host) not in ("None", "localhost", "::1", os.uname().nodename, "") \
            and not str(host).startswith("127."):
        with open(os.environ["CALLS"], "a") as file:
            print(event, host, sys.argv, file=file)
sys.addaudithook(watch)
"""


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="needs root on Linux")
def test_commands_need_no_network_but_what_they_are_given(photograph_folder, tmp_path, soak):
    """In a namespace that holds a loopback device alone; no process even tries to leave it.

    In CI the first commands; all of them by `make soak`."""
    from tests.conftest import TINY

    tiny = " ".join(word for word in TINY if "phases" not in word and "tracking" not in word)
    env = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    env |= {"PYTHON": sys.executable, "PHOTOGRAPHS": str(photograph_folder), "TINY": tiny,
            "PYTHONPATH": f"{tmp_path}/watch:{ROOT}", "CALLS": f"{tmp_path}/calls",
            "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": f"{tmp_path}/c",
            "HOME": str(tmp_path), "FULL": "yes" if soak.full else ""}  # fmt: skip
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH)
    done = subprocess.run(
        ["unshare", "--net", "bash", "-c", ALONE], cwd=tmp_path, env=env,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "COMMAND FAILED" not in done.stdout, done.stdout + done.stderr
    calls = tmp_path / "calls"
    assert not calls.exists(), calls.read_text()
    code = 'import socket; socket.socket().connect_ex(("192.0.2.1", 80))'
    subprocess.run(["unshare", "--net", sys.executable, "-c", code], cwd=tmp_path, env=env)
    assert "192.0.2.1" in calls.read_text(), "the watch sees nothing"
