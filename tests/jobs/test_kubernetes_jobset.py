"""Gangs and chains as JobSets, from the command line; their pods run the code of this tree."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from jobs.spec import JobState
from tests.conftest import TINY

pytestmark = [pytest.mark.slow, pytest.mark.dist]
IMAGE = "registry.example.org/lacuna@sha256:" + "0" * 64
SCORES = ["evaluate", "limit=2", "batch=4", "protocol=musical", "protocol.size=64"]
KINDS = ("JobSet", "Job", "Service", "Pod")


@pytest.fixture(scope="module")
def on(cli, small_set, photograph_folder):
    """Words of `submit` that name the stand-in and what it mounts."""
    claims = f"{{work: '{cli.cwd}', set: '{small_set}', photos: '{photograph_folder}'}}"
    return ["cluster=kubernetes", "cluster.kind=jobset", f"cluster.image={IMAGE}",
            "cluster.gpus_per_node=0", "cluster.retries=1", f"root={cli.cwd}/jobs",
            f"cluster.volumes={claims}"]  # fmt: skip


def submitted(cli, *words):
    return json.loads(cli("submit", *words, "--json").stdout)["jobs"]


def watched(cli, jobs):
    """How these jobs were, again and again, until all had ended."""
    seen = []

    def ended():
        # The last stage first: what it waits for can then only have gone further.
        seen.append([cli.look(job["folder"]) for job in reversed(jobs)][::-1])
        time.sleep(0.3)  # kubectl takes of the cores that the pods run on
        return not any(found.state.live for found in seen[-1])

    cli.until(ended, " ".join(job["id"] for job in jobs))
    return seen


def left(pods, start):
    return [o["metadata"]["name"] for kind in KINDS for o in pods.store.of(kind)
            if o["metadata"]["name"].startswith(start)]  # fmt: skip


def stepped(cli, run, count):
    """Its file of losses, which has so many by now."""
    steps = cli.cwd / "runs" / run / "steps.jsonl"
    cli.until(
        lambda: steps.exists() and len(steps.read_text().splitlines()) >= count,
        f"{count} steps of {run}",
    )
    return steps


def test_a_killed_pod_starts_the_whole_gang_again_and_the_losses_are_the_undisturbed_runs(
    cli, small_set, pods, on, undisturbed
):
    words = [*TINY, f"data.url={small_set}", "max_images=64", "checkpoint.every_images=24"]
    (job,) = submitted(cli, "train", *words, f"run={cli.cwd}/runs/gang", *on, "cluster.nodes=2")
    assert job["number"] == "jobset/gang"
    with ThreadPoolExecutor() as pool:
        follow = pool.submit(cli, "logs", "gang", "-f")
        steps = stepped(cli, "gang", 4)
        first = left(pods, "gang-train-0-")
        pods.containers[first[-1]].kill()
        seen = watched(cli, [job])
        shown = follow.result().stdout
    message = cli.status("gang")
    assert (message["state"], message["restarts"]) == ("SUCCEEDED", 1), shown
    assert {found.restarts for (found,) in seen} <= {0, 1}
    again = left(pods, "gang-train-0-")
    assert [name[:14] for name in again] == ["gang-train-0-0", "gang-train-0-1"]
    said = {line.split("/")[1] for line in shown.splitlines() if line.startswith("[pod/")}
    assert said == {*first, *again} and len(said) == 4
    assert "resuming" in shown
    assert steps.read_text() == undisturbed(64)


def test_a_chain_in_one_jobset_goes_stage_by_stage_through_a_restart_and_its_ends_outlast_it(
    cli, photograph_folder, pods, on
):
    words = ["shard", f"source={photograph_folder}", f"out={cli.cwd}/sets/a", "data.min_side=64",
             "cluster.tasks=2", "cluster.ttl_hours=0", *on, "then",
             "train", *TINY, "max_images=32", f"run={cli.cwd}/runs/chained", "cluster.nodes=2",
             "then", *SCORES, "cluster.nodes=1"]  # fmt: skip
    jobs = submitted(cli, *words)
    shard, last = jobs[0]["folder"], jobs[-1]["id"]
    assert [j["number"] for j in jobs] == [
        f"jobset/{last}#{stage}" for stage in ("shard", "train", "evaluate")
    ]
    assert cli.status(last)["reason"] == "waits for the previous stage"
    stepped(cli, "chained", 1)
    assert cli.look(shard).state is JobState.SUCCEEDED
    pods.containers[left(pods, f"{last}-train-0-1-")[0]].kill()
    cli.until(lambda: cli.look(shard).restarts == 1, "all stages to start again")
    seen = watched(cli, jobs)
    assert [found.state for found in seen[-1]] == [JobState.SUCCEEDED] * 3, seen[-1]
    for stages in seen:
        for before, after in zip(stages, stages[1:]):
            assert after.state is JobState.QUEUED or before.state is JobState.SUCCEEDED, stages
    cli.until(lambda: not left(pods, last), "the time to live of the JobSet to be over")
    assert [cli.status(job["id"])["state"] for job in jobs] == ["SUCCEEDED"] * 3
    assert "PSNR dB" in cli("logs", last).stdout


def test_a_configuration_error_ends_a_chain_without_a_retry_and_says_in_which_stage(
    cli, photograph_folder, pods, on
):
    words = ["shard", f"source={photograph_folder}", f"out={cli.cwd}/sets/b", "data.min_side=64",
             *on, "then", "train", *TINY, "data.crop=128", f"run={cli.cwd}/runs/wrong",
             "then", *SCORES]  # fmt: skip
    jobs = submitted(cli, *words)
    watched(cli, jobs)
    shard, train, evaluate = (cli.status(job["id"]) for job in jobs)
    assert shard["state"] == "SUCCEEDED"
    assert (train["state"], train["restarts"]) == ("FAILED", 0)
    assert "exit 78: configuration error, not retried" in train["reason"]
    assert train["error"].startswith("data.crop=128 is larger than images of")
    assert (evaluate["state"], evaluate["reason"]) == ("CANCELLED", "the previous train failed")


def test_what_fails_each_time_is_tried_again_as_often_as_is_allowed(
    cli, photograph_folder, pods, on
):
    words = ["shard", f"source={photograph_folder}", f"out={cli.cwd}/sets/c", "data.min_side=64"]
    (job,) = submitted(cli, *words, *on)
    killed = []

    def ended():
        for name in left(pods, f"{job['id']}-shard-0-0-"):
            if name in pods.containers and name not in killed:
                pods.containers[name].kill()
                killed.append(name)
        return not cli.look(job["folder"]).state.live

    cli.until(ended, job["id"])
    message = cli.status(job["id"])
    assert len(killed) == 2
    assert (message["state"], message["restarts"]) == ("FAILED", 1)
    assert message["reason"].startswith(f"ReachedMaxRestarts; {killed[1]}: exit 137: killed")


def test_a_cancelled_gang_saves_and_leaves_nothing(cli, small_set, pods, on):
    words = [*TINY, f"data.url={small_set}", "max_images=1600", f"run={cli.cwd}/runs/cancelled"]
    submitted(cli, "train", *words, *on, "cluster.nodes=2")
    steps = stepped(cli, "cancelled", 2)
    cli("cancel", "cancelled")
    cli.until(lambda: not left(pods, "cancelled"), "the gang to be gone")
    assert cli.status("cancelled")["state"] == "CANCELLED"
    seen = json.loads(steps.read_text().splitlines()[-1])["images_seen"]
    saved = steps.parent / "checkpoints" / f"{seen:012d}" / "state.json"
    assert saved.exists() and seen < 1600
