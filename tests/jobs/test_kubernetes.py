"""Rendered manifests through real kubectl; their pods are real processes of a stand-in cluster."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from jobs import kubectl, kubernetes
from jobs.spec import Cluster, Job, JobState, SubmitError
from tests.support import kube as stand_in
from tests.support.folders import let_others_reach

pytestmark = [pytest.mark.slow, pytest.mark.dist]
ROOT = Path(__file__).resolve().parents[2]
IMAGE = "registry.example.org/lacuna@sha256:" + "0" * 64
SMALL = Cluster(scheduler="kubernetes", image=IMAGE, code="image", retries=1, lead_seconds=20,
                volumes={"runs": "/runs"}, secrets=["credentials"])  # fmt: skip
TWO = Cluster(**{**SMALL.__dict__, "nodes": 2})
SECRET = {"AWS_SECRET_ACCESS_KEY": "planted-secret-value"}


@pytest.fixture(scope="module")
def claim(tmp_path_factory):
    return let_others_reach(tmp_path_factory.mktemp("claim"), 0o777)


@pytest.fixture(scope="module")
def kube(tmp_path_factory, kubernetes_here, contract_code, claim):
    root = tmp_path_factory.mktemp("kube")
    claims, secrets = {"runs": claim}, {"credentials": SECRET}
    with (
        stand_in.Kube(root, contract_code, claims, secrets, jobsets=False) as cluster,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("KUBECONFIG", str(cluster.config))
        yield cluster
    assert "overlay" not in Path("/proc/mounts").read_text().replace("overlay / ", "")


def job(name, *words, cluster=TWO):
    """Submits the quick stand-in for training; what `status` wants."""
    run = f"/runs/{name}"
    made = Job(id=name, verb="train", arguments=(f"run={run}", *words), run=run, folder=run)
    return kubectl.submit(kubernetes.manifest(made, cluster), cluster)


def ended(number, cluster=TWO, seconds=60):
    end = time.monotonic() + seconds
    while (found := kubectl.status(number, cluster)).state.live:
        assert time.monotonic() < end, found
        time.sleep(0.2)
    return found


def running(number, claim, name, lines=3):
    path, end = claim / name / "steps.jsonl", time.monotonic() + 60
    while not path.exists() or len(path.read_text().splitlines()) < lines:
        assert time.monotonic() < end, kubectl.status(number, TWO)
        time.sleep(0.1)


def starts(claim, name):
    return (claim / name / "starts").read_text().splitlines()


def pod_of(kube, start):
    """The one pod whose name starts so."""
    (name,) = [n for kind, n in kube.store.objects if kind == "Pod" and n.startswith(start)]
    return name


def logs(number, follow=False, cluster=TWO):
    """A process that shows them; its words are on stdout."""
    program = f"from jobs import kubectl; from jobs.spec import Cluster; " \
              f"kubectl.logs({number!r}, {cluster!r}, {follow})"  # fmt: skip
    return subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE,
                            text=True)  # fmt: skip


def said(number, cluster=TWO):
    return logs(number, cluster=cluster).communicate(timeout=60)[0]


def test_two_pods_meet_by_name_and_finish_as_a_user_without_a_home(kube, claim):
    number = job("meet", "steps=3")
    assert ended(number).state is JobState.SUCCEEDED
    assert starts(claim, "meet") == ["0 on meet-0"]
    assert (claim / "meet" / "steps.jsonl").stat().st_uid == 12345


def test_an_evicted_pod_saves_and_the_job_goes_on_without_counting_it(kube, claim):
    number = job("evicted", "steps=25")
    running(number, claim, "evicted")
    kube.evict(pod_of(kube, "evicted-1"))
    found = ended(number)
    assert (found.state, found.restarts) == (JobState.SUCCEEDED, 1)
    first, second = starts(claim, "evicted")
    assert first == "0 on evicted-0" and second != "0 on evicted-0"
    assert len((claim / "evicted" / "steps.jsonl").read_text().splitlines()) == 25


def test_a_configuration_error_ends_the_job_at_once_with_its_line(kube):
    number = job("wrong", "exit=78")
    found = ended(number)
    assert (found.state, found.restarts) == (JobState.FAILED, 0)
    assert "PodFailurePolicy" in found.reason and "leaving with 78" in found.reason
    assert "leaving with 78" in said(number)


def test_another_s_job_of_the_same_name_is_told_and_left_alone(kube, claim):
    number = job("theirs", "steps=400")
    running(number, claim, "theirs")
    message = f"{number} now belongs to /runs/theirs"
    found = kubectl.status(number, TWO, "/runs/mine")
    assert (found.state, found.reason) == (JobState.UNKNOWN, message)
    with pytest.raises(SubmitError, match=message):
        kubectl.cancel(number, TWO, "/runs/mine")
    assert kubectl.logs(number, TWO, False, "/runs/mine") == 0
    assert kubectl.status(number, TWO, "/runs/theirs").state is JobState.RUNNING
    kubectl.cancel(number, TWO, "/runs/theirs")
    assert kubectl.status(number, TWO).state is not JobState.RUNNING


def test_a_job_is_found_where_it_was_submitted_after_another_context_is_current(
    kube, tmp_path, monkeypatch
):
    config = json.loads(kube.config.read_text())
    config["contexts"] += [{"name": "other", "context": {"cluster": "k", "namespace": "theirs"}}]
    mine = tmp_path / "kubeconfig"
    mine.write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(mine))
    here = kubectl.located(TWO)
    assert (here.context, here.namespace) == ("k", "default")
    subprocess.run(["kubectl", "config", "use-context", "other"], check=True, capture_output=True)
    assert kubectl.located(here) == here
    there = kubectl.located(TWO)
    assert (there.context, there.namespace) == ("other", "theirs")
    there = kubectl.located(replace(TWO, context="k", namespace="x"))
    assert (there.context, there.namespace) == ("k", "x")
    monkeypatch.setenv("KUBECONFIG", "/dev/null")  # as in a pod
    assert kubectl.located(TWO) == TWO


def test_a_crash_is_tried_again_as_often_as_is_allowed(kube, claim):
    saved = job("crash", "steps=4", "crash=2", "crashes=1")
    lost = job("lost", "steps=4", "crash=2", "crashes=9")
    assert ended(saved).state is JobState.SUCCEEDED
    found = ended(lost)
    assert (found.state, found.restarts) == (JobState.FAILED, 1)
    assert "MaxFailedIndexesExceeded" in found.reason


def test_a_cancelled_job_saves_in_its_grace_period_and_leaves_nothing(kube, claim):
    number = job("cancelled", "steps=400")
    running(number, claim, "cancelled")
    kubectl.cancel(number, TWO)
    end = time.monotonic() + 30
    while kubectl.status(number, TWO).state is not JobState.UNKNOWN:
        assert time.monotonic() < end
        time.sleep(0.2)
    lines = len((claim / "cancelled" / "steps.jsonl").read_text().splitlines())
    assert json.loads((claim / "cancelled" / "state.json").read_text()) == {"step": lines}
    left = [
        o["metadata"]["name"] for kind in ("Job", "Pod", "Service") for o in kube.store.of(kind)
    ]
    assert not [name for name in left if name.startswith("cancelled")]


def test_logs_follow_every_pod_and_those_that_replace_them_until_the_end(kube, claim):
    number = job("message", "steps=20")
    running(number, claim, "message")
    follow = logs(number, follow=True)
    time.sleep(1)
    kube.evict(pod_of(kube, "message-1"))
    shown = follow.communicate(timeout=60)[0].splitlines()
    assert ended(number).state is JobState.SUCCEEDED
    ends = [line.rpartition("the end of ")[2] for line in shown if "the end of" in line]
    assert len(ends) == 4 and {"0 at 20", "1 at 20"} <= set(ends)
    assert all(line.startswith("[pod/message-") for line in shown)


def test_an_array_of_pods_runs_each_element(kube, claim):
    elements = tuple((f"run=/runs/array/{i}", "steps=1") for i in range(3))
    made = Job(id="array", verb="train", arguments=(), run="/runs/array", folder="/runs/array",
               elements=elements)  # fmt: skip
    cluster = Cluster(**{**SMALL.__dict__, "throttle": 2})
    number = kubectl.submit(kubernetes.manifest(made, cluster), cluster)
    assert ended(number, cluster).state is JobState.SUCCEEDED
    assert all((claim / "array" / str(i) / "state.json").exists() for i in range(3))


def test_a_finished_job_makes_room_and_a_live_one_does_not(kube, claim):
    assert ended(job("again", "steps=2")).state is JobState.SUCCEEDED
    with pytest.raises(SubmitError, match="belongs to /runs/again: set another cluster.name="):
        job("Again", "steps=2")  # the same name to Kubernetes, and another run
    assert kubectl.status("job/again", TWO).state is JobState.SUCCEEDED
    number = job("again", "steps=60")
    with pytest.raises(SubmitError, match="exists and is live "):
        job("again", "steps=60")
    kubectl.cancel(number, TWO)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"secrets": ["forgotten"]}, "a Secret or ConfigMap is missing (CreateContainerConfig"),
        ({"image": "registry.example.org/unpullable@sha256:0"}, "the image cannot be pulled"),
    ],
)  # fmt: skip
def test_a_job_that_waits_for_ever_says_for_what(kube, change, message):
    cluster = Cluster(**{**SMALL.__dict__, **change})
    number = job("waits", "steps=1", cluster=cluster)
    end = time.monotonic() + 30
    while message not in (found := kubectl.status(number, cluster)).reason:
        assert time.monotonic() < end, found
        time.sleep(0.2)
    assert found.state is JobState.QUEUED
    kubectl.cancel(number, cluster)
    while kubectl.status(number, cluster).state is not JobState.UNKNOWN:
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"namespace": "closed"}, "missing permission in this namespace"),
        ({"context": "nowhere"}, "see `kubectl config get-contexts`"),
        ({"kind": "jobset"}, "JobSet is not installed in this cluster"),
        ({"patch": {"spec": {"contaners": []}}}, "contaners"),
    ],
)
def test_what_the_cluster_would_refuse_is_one_line(kube, change, message):
    cluster = Cluster(**{**TWO.__dict__, **change})
    made = Job(id="refused", verb="train", arguments=(), run="/runs/r", folder="/runs/r")
    objects = kubernetes.manifest(made, cluster)
    for attempt, where in ((kubectl.ask, [cluster]), (kubectl.judge, cluster)):
        with pytest.raises(SubmitError) as refused:
            attempt(objects, where)
        assert message in str(refused.value) and "\n" not in str(refused.value)


def test_nothing_stays_of_a_job_whose_service_is_refused_at_last(kube):
    kube.store.quota = "Service"
    with pytest.raises(SubmitError, match="exceeded quota"):
        job("half", "exit=0")
    kube.store.quota = ""
    end = time.monotonic() + 20
    while kubectl.status("job/half", TWO).state is not JobState.UNKNOWN:
        assert time.monotonic() < end
        time.sleep(0.1)


def test_asking_names_a_secret_and_a_claim_that_are_missing(kube):
    kube.store.permitted.add(("get", "secrets"))  # not in the shipped Role
    for change in ({"secrets": ["forgotten"]}, {"volumes": {"lost": "/runs"}}):
        cluster = Cluster(**{**SMALL.__dict__, **change})
        made = Job(id="asked", verb="train", arguments=(), run="/runs/r", folder="/runs/r")
        with pytest.raises(SubmitError, match="does not exist in this namespace"):
            kubectl.ask(kubernetes.manifest(made, cluster), [cluster])
    assert not kube.store.objects.get(("Job", "asked"))
    kube.store.permitted.remove(("get", "secrets"))
    asked = kubectl.ask(kubernetes.manifest(made, SMALL), [replace(SMALL, secrets=["forgotten"])])
    assert "secret forgotten not verified" in " ".join(asked)


def test_without_kubectl_the_mend_is_told(kube, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SubmitError, match="kubectl is not on the PATH: install kubectl 1.31"):
        kubectl.status("job/x", TWO)


def test_no_object_holds_the_value_of_a_secret(kube, claim):
    number = job("secret", "steps=1")
    ended(number)
    assert SECRET["AWS_SECRET_ACCESS_KEY"] not in json.dumps(list(kube.store.objects.values()))
    grep = subprocess.run(["grep", "-rl", SECRET["AWS_SECRET_ACCESS_KEY"], claim])
    assert grep.returncode == 1
