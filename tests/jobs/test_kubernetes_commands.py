"""Commands submitted to Kubernetes from the command line; their pods run the code of this tree."""

import hashlib
import json

import pytest

from jobs import kubectl, kubernetes
from jobs.spec import Cluster, Job, JobState
from tests.conftest import TINY

pytestmark = [pytest.mark.slow, pytest.mark.dist]
IMAGE = "registry.example.org/lacuna@sha256:" + "0" * 64
HERE = Cluster(scheduler="kubernetes")


def test_the_real_training_in_two_pods_goes_on_to_the_bit_after_an_eviction(
    cli, small_set, pods, undisturbed
):
    """From the command line, with the commit unpacked in the pods."""
    words = [*TINY, f"data.url={small_set}", "max_images=72", "checkpoint.every_images=4000"]
    on = ["cluster=kubernetes", "cluster.nodes=2", "cluster.gpus_per_node=0",
          "cluster.code=snapshot", f"cluster.image={IMAGE}",
          f"cluster.volumes={{work: '{cli.cwd}', set: '{small_set}'}}"]  # fmt: skip
    cli("submit", "train", *words, f"run={cli.cwd}/runs/pods", *on)
    where = json.loads((cli.cwd / "runs" / "pods" / "jobs.json").read_text())["cluster"]
    assert (where["context"], where["namespace"]) == ("k", "default")
    steps = cli.cwd / "runs" / "pods" / "steps.jsonl"

    def stepped():
        assert kubectl.status("job/pods", HERE).state.live, cli("logs", "pods").stdout
        return steps.exists() and len(steps.read_text().splitlines()) >= 2

    cli.until(stepped, "steps")
    (first,) = [n for kind, n in pods.store.objects if kind == "Pod" and n.startswith("pods-0")]
    pods.evict(first)
    cli.until(lambda: not kubectl.status("job/pods", HERE).state.live, "the job")
    message = cli.status("pods")
    logs = cli("logs", "pods").stdout
    assert (message["state"], message["restarts"]) == ("SUCCEEDED", 1), logs
    assert "resuming" in logs
    assert steps.read_text() == undisturbed(72)
    forget(cli, "job/pods")
    assert cli.status("pods")["state"] == "SUCCEEDED"
    kept = cli("logs", "pods").stdout
    assert "resuming" in kept and "[pod-1]" in kept


CODE = {
    "other": (b"another archive", hashlib.sha256(b"the archive").hexdigest(), 78,
              "the archive is not the submitted one"),
    "gone": (None, "0" * 64, 78, "No such file or directory"),
    "broken": (b"no archive", hashlib.sha256(b"no archive").hexdigest(), 1, "not a gzip file"),
}  # fmt: skip


def test_what_hinders_a_pod_from_having_its_code_is_told_by_status_and_outlasts_it(cli, pods):
    cluster = Cluster(
        scheduler="kubernetes", image=IMAGE, retries=0, volumes={"work": str(cli.cwd)}
    )
    numbers = {}
    for name, (data, sha256, _, _) in CODE.items():
        folder = cli.cwd / "runs" / f"code-{name}"
        folder.mkdir(parents=True)
        if data is not None:
            (folder / "code.tar.gz").write_bytes(data)
        code = f"{folder}/code.tar.gz"
        made = Job(id=f"code-{name}", verb="masks", arguments=(), run=str(folder),
                   folder=str(folder), code=code, code_sha256=sha256)  # fmt: skip
        numbers[name] = kubectl.submit(kubernetes.manifest(made, cluster), cluster)
    for name, (_, _, status, message) in CODE.items():
        cli.until(lambda n=name: not kubectl.status(numbers[n], HERE).state.live, name)
        found = kubectl.status(numbers[name], HERE)
        line = f"pipeline unpack: cannot load the code from {cli.cwd}/runs/code-{name}/code.tar.gz"
        assert (found.state, found.restarts) == (JobState.FAILED, 0)
        assert f"exit {status}: " in found.reason and f"{line}: " in found.reason
        assert message in found.reason
        where = "{.items[0].status.containerStatuses[0].state.terminated.message}"
        label = f"batch.kubernetes.io/job-name=code-{name}"
        pod = kubectl.kubectl(HERE, "get", "pods", "-l", label, "-o", f"jsonpath={where}")
        assert pod.startswith(line) and pod.count("\n") == 1
        logs = cli.cwd / "runs" / f"code-{name}" / "logs"
        assert (logs / "pod-0.state").read_text() == f"FAILED {pod}"
        assert (logs / "pod-0.log").read_text() == pod


def forget(cli, number):
    """What happens when a Job's TTL is over: it and its pods are gone."""
    kubectl.cancel(number, HERE)
    cli.until(
        lambda: kubectl.status(number, HERE).state is JobState.UNKNOWN, f"{number} to be gone"
    )


def test_logs_and_states_of_other_verbs_outlast_their_pods(cli, small_set, photograph_folder, pods):
    on = ["cluster=kubernetes", "cluster.gpus_per_node=0", f"cluster.image={IMAGE}",
          f"root={cli.cwd}/jobs",
          f"cluster.volumes={{work: '{cli.cwd}', set: '{small_set}', photos: "
          f"'{photograph_folder}'}}"]  # fmt: skip
    evaluate = ["evaluate", "model=mean_color", f"data.url={small_set}", "limit=1", "batch=4",
                "protocol=musical", "protocol.size=64",
                f"out={cli.cwd}/scores.parquet"]  # fmt: skip
    shard = ["shard", f"source={photograph_folder}", f"out={cli.cwd}/pod-set", "data.min_side=64",
             "cluster.tasks=2"]  # fmt: skip
    made = [json.loads(cli("submit", *words, *on, "--json").stdout)["jobs"][0]
            for words in (evaluate, shard)]  # fmt: skip
    for job in made:  # as `submit` leaves it that is killed before it hears of the number
        record = cli.cwd / "jobs" / job["id"] / "jobs.json"
        record.write_text(json.dumps({**json.loads(record.read_text()), "number": ""}))
        assert cli.status(job["id"])["number"] == job["number"]
    for job, words in zip(made, ("PSNR dB", "[pod-1]")):
        cli.until(lambda n=job["number"]: not kubectl.status(n, HERE).state.live, job["id"])
        forget(cli, job["number"])
        message = cli.status(job["id"])
        assert message["state"] == "SUCCEEDED", (message["reason"], cli("logs", job["id"]).stdout)
        assert words in cli("logs", job["id"]).stdout
    assert message["elements"] == {"0": "SUCCEEDED", "1": "SUCCEEDED"}
