"""Private clusters, made once a file, and the tree under test as something to submit."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.runs import job_record
from tests.conftest import TINY, run_verb
from tests.support import kube as stand_in
from tests.support import slurm_cluster
from tests.support.checkout import committed_copy
from tests.support.folders import let_others_reach

CONTRACT = Path(__file__).resolve().parents[1] / "support" / "contract.py"
TESTS_OF_CLUSTERS = {"slurm": slurm_cluster.missing}


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A running two-node SLURM whose commands this process's environment finds."""
    reason = slurm_cluster.missing()
    if reason and not os.environ.get("CI"):
        pytest.skip(f"no private SLURM: {reason}")
    assert reason is None, reason  # CI installs what these tests need
    folder = tmp_path_factory.mktemp("slurm") / "cluster"
    with slurm_cluster.SlurmCluster(folder) as cluster, pytest.MonkeyPatch.context() as patch:
        for name in ("SLURM_CONF", "PATH"):
            patch.setenv(name, cluster.environment[name])
        yield cluster
    assert not folder.exists()


@pytest.fixture(scope="module")
def contract_code(tmp_path_factory):
    """A folder whose `python -m pipeline train` honours the launch contract and is quick."""
    folder = let_others_reach(tmp_path_factory.mktemp("code"))
    (folder / "pipeline").mkdir()
    (folder / "pipeline" / "__init__.py").touch()
    shutil.copy(CONTRACT, folder / "pipeline" / "__main__.py")
    shutil.copytree(Path(__file__).resolve().parents[2] / "jobs", folder / "jobs")
    return folder


@pytest.fixture(scope="module")
def cli(tmp_path_factory):
    """`cli(words…)`: a command line of a clean checkout, in a folder of its own (`cli.cwd`)."""
    code = committed_copy(tmp_path_factory.mktemp("checkout"))
    cwd = tmp_path_factory.mktemp("work")
    home = {"XDG_CACHE_HOME": f"{cwd}/cache", "XDG_CONFIG_HOME": f"{cwd}/config"}

    def call(*words, env=None, ok=True):
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", *map(str, words)],
            cwd=cwd,
            env={**os.environ, **home, "PYTHONPATH": str(code), "PYTHONSAFEPATH": "1",
                 "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": "", **(env or {})},
            capture_output=True,
            text=True,
            timeout=300,
        )  # fmt: skip
        assert done.returncode == 0 or not ok, done.stderr + done.stdout
        return done

    def status(name):
        return json.loads(call("status", name, "--json").stdout)["jobs"][0]

    def look(folder):
        """What the scheduler says, as `status` asks it: without a process, which takes a second of
        the cores that the jobs run on."""
        return job_record.read(str(cwd / folder)).status()

    def until(condition, what, seconds=240):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"waited {seconds} s for {what}"
            time.sleep(0.2)

    call.cwd, call.code, call.status, call.look, call.until = cwd, code, status, look, until
    return call


@pytest.fixture(scope="session")
def undisturbed(small_set, tmp_path_factory):
    """`undisturbed(images)`: the losses, as text, of a training by two processes so far."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    done = run_verb("train", *TINY, f"data.url={small_set}", f"run={run}", "max_images=72",
                    "processes=2")  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = (run / "steps.jsonl").read_text().splitlines(keepends=True)

    def message(images):
        count = images // json.loads(lines[0])["images_seen"]
        assert count <= len(lines)
        return "".join(lines[:count])

    return message


def without_kubernetes():
    """Why the stand-in for Kubernetes cannot be had here; None where it can."""
    if shutil.which("kubectl") is None:
        return "kubectl is not on the PATH (1.31 or newer)"
    message = subprocess.run(["kubectl", "version", "--client", "-o", "json"], capture_output=True)
    if int(json.loads(message.stdout)["clientVersion"]["minor"].rstrip("+")) < 31:
        return "kubectl is older than 1.31"
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "needs root and iproute2, for network namespaces"
    return None


@pytest.fixture(scope="session")
def kubernetes_here():
    if reason := without_kubernetes():
        pytest.skip(f"no stand-in for Kubernetes: {reason}")


@pytest.fixture(scope="module")
def pods(tmp_path_factory, kubernetes_here, cli, small_set, photograph_folder):
    """A Kubernetes cluster whose claims are folders of this machine at their own paths."""
    let_others_reach(cli.cwd, 0o777)
    let_others_reach(cli.code)  # else its packages are not found, and others' are
    let_others_reach(photograph_folder)
    claims = {"work": cli.cwd, "set": Path(small_set), "photos": photograph_folder}
    root = tmp_path_factory.mktemp("kube")
    with (
        stand_in.Kube(root / "cluster", cli.code, claims, {}) as kube,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("KUBECONFIG", str(kube.config))
        before = os.umask(0)  # pods run as another user
        yield kube
        os.umask(before)
