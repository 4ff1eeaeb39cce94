"""What schedulers say, in our words. The SLURM lines are those of 22.05, shortened."""

import json

import pytest

from jobs import kubectl, kubernetes
from jobs.kube_status import judged, judged_stage, queued, refused
from jobs.slurm_status import from_notes, from_sacct, from_scontrol
from jobs.spec import Cluster, JobState, Status, SubmitError, summary
from tests.jobs.cases import CASES

LINE = (
    "JobId={job} JobName=x JobState={state} Reason={reason} Dependency=(null) Requeue=1 "
    "Restarts={restarts} ExitCode={code}:0 Command=(null) NodeList={nodes}\n"
)


def line(state, reason="None", code=0, job=7, restarts=0, nodes="n[1-2]"):
    return LINE.format(
        state=state, reason=reason, code=code, job=job, restarts=restarts, nodes=nodes
    )


@pytest.mark.parametrize(
    ("text", "state", "reason"),
    [
        (line("PENDING", "Resources"), "QUEUED", "Resources: waits for free nodes"),
        (line("PENDING", "Licenses"), "QUEUED", "Licenses"),
        (
            line("PENDING", "BeginTime", restarts=2),
            "QUEUED",
            "BeginTime: not before its start time",
        ),
        (line("RUNNING"), "RUNNING", "on n[1-2]"),
        (line("COMPLETED"), "SUCCEEDED", ""),
        (line("FAILED", "NonZeroExitCode", 78), "FAILED", "configuration error"),
        (line("FAILED", "NonZeroExitCode", 75), "INTERRUPTED", "saved"),
        (line("FAILED", "NonZeroExitCode", 137), "FAILED", "killed"),
        (line("CANCELLED"), "CANCELLED", ""),
        (line("CANCELLED", "BeginTime"), "CANCELLED", ""),  # requeued, waiting, cancelled
        (line("CANCELLED", "DependencyNeverSatisfied"), "CANCELLED", "DependencyNeverSatisfied"),
        (line("STOPPED"), "RUNNING", "on n[1-2]"),
        (line("RESV_DEL_HOLD", "ReservationDeleted"), "QUEUED", "ReservationDeleted"),
        (line("TIMEOUT", "TimeLimit"), "INTERRUPTED", "raise cluster.lead_seconds"),
        (line("NODE_FAIL"), "INTERRUPTED", "a node failed"),
        (line("PREEMPTED"), "INTERRUPTED", "preempted"),
        (line("OUT_OF_MEMORY", code=1), "FAILED", "raise cluster.memory_gb"),
        (line("SOMETHING_NEW"), "UNKNOWN", ""),
    ],
)
def test_a_slurm_job_has_one_of_our_states_with_the_reason(text, state, reason):
    found = from_scontrol(text)
    assert found.state == state
    assert reason in found.reason and (reason or not found.reason)


def test_what_the_script_noted_is_the_reason_of_a_failure():
    found = from_scontrol(line("FAILED", code=1), {"7": "FAILED crashed 3 times, last exit 1"})
    assert found.reason == "crashed 3 times, last exit 1"


def test_an_array_has_the_state_of_its_elements_pending_ones_in_one_line():
    text = (
        line("PENDING", "JobArrayTaskLimit", job=5).replace(
            " JobName", " ArrayTaskId=3,5-7%2 JobName"
        )
        + line("RUNNING", job=6).replace(" JobName", " ArrayTaskId=0 JobName")
        + line("FAILED", code=1, job=8).replace(" JobName", " ArrayTaskId=1 JobName")
    )
    found = from_scontrol(text)
    assert found.state is JobState.RUNNING
    assert set(found.elements) == {"0", "1", "3", "5", "6", "7"}
    assert found.line().startswith("RUNNING · 4 queued, 1 running, 1 failed")


def element(index, *words, **more):
    text = line(*words, job=20 + index, **more)
    return text.replace(" JobName", f" ArrayJobId=20 ArrayTaskId={index} JobName")


def test_each_element_of_an_array_has_its_own_note():
    text = element(0, "COMPLETED") + element(1, "FAILED", code=1)
    found = from_scontrol(
        text, {"20_0": "SUCCEEDED", "20_1": "FAILED crashed 4 times, last exit 1"}
    )
    assert (found.state, found.reason) == (JobState.FAILED, "crashed 4 times, last exit 1")


def test_an_element_that_slurm_lists_no_more_is_what_it_said_last():
    """One that is cancelled before it starts is only taken out of the list of those that wait."""
    text = line("PENDING", "Resources", job=20).replace(
        " JobName", " ArrayJobId=20 ArrayTaskId=0-1 JobName"
    )
    left = {"20_0": "QUEUED", "20_1": "QUEUED", "20_2": "QUEUED", "20_3": "SUCCEEDED",
            "20_4": "FAILED crashed 4 times, last exit 1", "20_5": "RUNNING on n1",
            "19_7": "FAILED of another submission"}  # fmt: skip
    found = from_scontrol(text, left)
    assert found.state is JobState.QUEUED
    assert {k: v.value for k, v in found.elements.items()} == {
        "0": "QUEUED", "1": "QUEUED", "2": "CANCELLED", "3": "SUCCEEDED", "4": "FAILED",
        "5": "UNKNOWN",
    }  # fmt: skip


def test_a_forgotten_array_is_what_its_elements_said_last_and_not_what_one_of_them_said():
    def state(*left):
        found = from_notes({f"20_{i}": note for i, note in enumerate(left)}, "SLURM")
        return found.state, found.reason

    assert state("SUCCEEDED", "SUCCEEDED") == (JobState.SUCCEEDED, "")
    assert state("SUCCEEDED", "FAILED configuration error") == (
        JobState.FAILED,
        "configuration error",
    )
    forgotten = "SLURM has forgotten the job; last state: "
    assert state("SUCCEEDED", "QUEUED") == (JobState.UNKNOWN, forgotten + "queued")
    assert state("RUNNING on n1", "SUCCEEDED") == (JobState.UNKNOWN, forgotten + "running")
    assert state() == (JobState.UNKNOWN, "SLURM has forgotten the job")


def test_a_script_that_was_killed_says_so_and_not_where_it_ran():
    text = line("FAILED", code=0).replace("ExitCode=0:0", "ExitCode=0:9")
    found = from_scontrol(text, {"7": "RUNNING on n1,n2"})
    assert found.state is JobState.FAILED
    assert found.reason.startswith("exit 137: killed (memory limit")


def test_a_job_whose_output_no_node_could_open_says_where_it_was_to_be():
    message = "a node cannot open /r/a/logs: check that the folder is on a shared disk"
    text = line("FAILED", "JobLaunchFailure").replace("ExitCode=0:0", "ExitCode=0:53")
    assert from_scontrol(text, {"7": "QUEUED"}, "/r/a/logs").reason == message
    assert from_sacct("7|FAILED|0:53\n", {"7": "QUEUED"}, "/r/a/logs").reason == message


def test_sacct_names_the_elements_of_an_array_as_scontrol_does():
    text = "20_0|COMPLETED|0:0\n20_1|FAILED|0:11\n20_[2-3%1]|PENDING|0:0\n"
    found = from_sacct(text, {"20_1": "RUNNING on n1"})
    assert {k: v.value for k, v in found.elements.items()} == {
        "0": "SUCCEEDED", "1": "FAILED", "2": "QUEUED", "3": "QUEUED"
    }  # fmt: skip


def test_sacct_tells_who_cancelled():
    found = from_sacct("9|CANCELLED by 1000|0:0\n")
    assert (found.state, found.reason) == (JobState.CANCELLED, "by user 1000")


@pytest.mark.parametrize(
    ("states", "whole"),
    [
        (["SUCCEEDED", "RUNNING", "FAILED"], "RUNNING"),
        (["SUCCEEDED", "QUEUED", "FAILED"], "QUEUED"),
        (["SUCCEEDED", "FAILED", "CANCELLED"], "FAILED"),
        (["SUCCEEDED", "SUCCEEDED"], "SUCCEEDED"),
        ([], "UNKNOWN"),
    ],
)
def test_an_array_goes_on_while_an_element_does_and_fails_with_one(states, whole):
    assert summary({str(i): JobState(s) for i, s in enumerate(states)}) == whole


def job(*conditions, **status):
    listed = [{"type": t, "status": "True", "reason": r, "message": r} for t, r in conditions]
    return {"metadata": {"name": "a"}, "status": {"conditions": listed, **status}}


def pod(phase, name="a-0-x", index="0", conditions=(), **container):
    statuses = [{"name": "main", "state": container}] if container else []
    annotations = {"batch.kubernetes.io/job-completion-index": index}
    return {
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"nodeName": "node-3"},
        "status": {
            "phase": phase, "containerStatuses": statuses, "conditions": list(conditions)
        },
    }  # fmt: skip


def ended(code, message="", reason="Error"):
    return {"terminated": {"exitCode": code, "message": message, "reason": reason}}


UNSCHEDULED = {
    "type": "PodScheduled", "status": "False", "message": "0/4 nodes: Insufficient nvidia.com/gpu"
}  # fmt: skip


@pytest.mark.parametrize(
    ("pods", "made", "state", "reason"),
    [
        ([pod("Running")], job(), "RUNNING", "on node-3"),
        ([], job(("Complete", "")), "SUCCEEDED", ""),
        (
            [pod("Pending", waiting={"reason": "ImagePullBackOff", "message": "no such tag"})],
            job(), "QUEUED", "the image cannot be pulled (ImagePullBackOff: no such tag)",
        ),
        (
            [pod("Pending", waiting={"reason": "CreateContainerConfigError", "message": ""})],
            job(), "QUEUED", "a Secret or ConfigMap is missing",
        ),
        ([pod("Pending", conditions=[UNSCHEDULED])], job(), "QUEUED", "Insufficient nvidia"),
        (
            [pod("Failed", **ended(78, "log\npipeline train: batch=3 is not divisible"))],
            job(("Failed", "PodFailurePolicy")),
            "FAILED", "configuration error, not retried, pipeline train: batch=3 is not divisible",
        ),
        (
            [pod("Failed", **ended(137, reason="OOMKilled"))],
            job(("Failed", "MaxFailedIndexesExceeded")), "FAILED", "raise cluster.memory_gb",
        ),
        ([], job(("Suspended", "waiting for quota")), "QUEUED", "waiting for quota"),
    ],
)  # fmt: skip
def test_a_kubernetes_job_has_one_of_our_states_with_the_reason(pods, made, state, reason):
    found = judged(made, pods)
    assert found.state == state
    assert reason in found.reason


def failed(index, code, message, second, reason="Error", name=""):
    over = ended(code, message, reason)
    over["terminated"]["finishedAt"] = f"2026-01-01T00:00:{second:02d}Z"
    return pod("Failed", name or f"a-{index}-{second}", str(index), **over)


LOST = "rank 0 on a-0: [pair.cc:547] Connection closed by peer [10.0.0.2]:4242"


@pytest.mark.parametrize(
    ("pods", "message"),
    [
        ([failed(0, 1, LOST, 3), failed(1, 137, "", 4, "OOMKilled")], "a-1-4: out of memory"),
        ([failed(0, 1, LOST, 3), failed(1, 139, "", 4)], "a-1-4: exit 139: segmentation fault"),
        ([failed(0, 1, LOST, 3), failed(1, 1, "rank 1 on a-1: No space left", 4)], "No space left"),
        ([failed(0, 1, LOST, 4), failed(1, 1, "rank 1 on a-1: disk", 2),
          failed(1, 1, "rank 1 on a-1: the last attempt's", 5)], "the last attempt's"),
        ([failed(0, 1, "first", 3), failed(1, 1, "second", 4)], "first"),
    ],
)  # fmt: skip
def test_a_failed_gang_tells_the_cause_and_not_what_followed_from_it(pods, message):
    found = judged(job(("Failed", "MaxFailedIndexesExceeded")), pods)
    assert found.state is JobState.FAILED and message in found.reason
    assert "closed by peer" not in found.reason


def test_each_element_of_an_array_of_pods_has_its_state():
    """completedIndexes and failedIndexes as batch/v1 writes them."""
    array = job(active=1, completedIndexes="0,2-3", failedIndexes="5")
    array["spec"] = {"completions": 6, "backoffLimitPerIndex": 3}
    found = judged(array, [pod("Running", "a-1-x", "1")])
    assert found.line() == "RUNNING · 1 queued, 1 running, 3 succeeded, 1 failed · on node-3"
    array["spec"]["maxFailedIndexes"] = 0  # the nodes of one training are no array
    assert not judged(array, []).elements


def jobset(said, *conditions):
    """The fields of jobset.x-k8s.io/v1alpha2 that say how its parts are."""
    listed = [{"type": t, "status": "True", "reason": r} for t, r in conditions]
    parts = [{"name": name, "replicas": 1} for name in ("shard", "train-0", "train-1", "evaluate")]
    status = [{"name": name, "succeeded": n, "failed": int(n < 0)} for name, n in said.items()]
    return {"metadata": {"name": "a"}, "spec": {"replicatedJobs": parts},
            "status": {"conditions": listed, "replicatedJobsStatus": status}}  # fmt: skip


def test_each_stage_of_a_chain_in_one_jobset_has_its_own_state():
    going = jobset({"shard": 1, "train-0": 1, "train-1": 0, "evaluate": 0})
    assert judged_stage(going, [], "shard").state is JobState.SUCCEEDED
    assert judged_stage(going, [pod("Running")], "train").state is JobState.RUNNING
    waits = judged_stage(going, [], "evaluate")
    assert (waits.state, waits.reason) == (JobState.QUEUED, "waits for the previous stage")
    lost = jobset({"shard": 1, "train-0": 1, "train-1": -1}, ("Failed", "FailedJobs"))
    assert judged_stage(lost, [], "shard").state is JobState.SUCCEEDED
    broken = judged_stage(lost, [failed(0, 1, "no space left", 3)], "train")
    assert broken.state is JobState.FAILED and "no space left" in broken.reason
    never = judged_stage(lost, [], "evaluate")
    assert (never.state, never.reason) == (JobState.CANCELLED, "the previous train-1 failed")


def test_one_pod_that_cannot_start_keeps_a_gang_queued_while_the_others_wait_for_it():
    stuck = pod("Pending", "a-1-y", "1", waiting={"reason": "ErrImagePull"})
    found = judged(job(), [pod("Running"), stuck])
    assert found.state is JobState.QUEUED
    assert "a-1-y" in found.reason


def test_a_restart_of_two_pods_is_one_restart():
    gone = [pod("Failed", f"a-{i}-z", str(i), **ended(75)) for i in (0, 1)]
    running = [pod("Running", f"a-{i}-y", str(i)) for i in (0, 1)]
    assert judged(job(), [*gone, *running]).restarts == 1


def test_kueue_says_why_it_holds_a_job_back():
    message = "couldn't assign flavors: insufficient quota for nvidia.com/gpu"
    workload = {
        "metadata": {"ownerReferences": [{"name": "a"}]},
        "status": {
            "conditions": [{"type": "QuotaReserved", "status": "False", "message": message}]
        },
    }
    assert queued([workload], "a") == f"Kueue: {message}"
    assert queued([workload], "b") == ""
    # As Kueue leaves it when the job is admitted again (SetQuotaReservation).
    workload["status"]["conditions"] = [
        {"type": "QuotaReserved", "status": "True", "message": ""},
        {"type": "Evicted", "status": "False", "message": "Previously: preempted"},
        {"type": "PodsReady", "status": "False", "message": "Not all pods are ready"},
    ]
    assert queued([workload], "a") == ""


def event(name, message, when="2026-01-01T00:00:00Z"):
    return {"involvedObject": {"kind": "Job", "name": name}, "reason": "FailedCreate",
            "message": message, "lastTimestamp": when}  # fmt: skip


def test_a_job_whose_pods_a_quota_refuses_says_so():
    message = 'Error creating: pods "a-0-" is forbidden: exceeded quota: gpus'
    events = [
        event("a", message, "2026-01-01T00:00:09Z"),
        event("a", "earlier"),
        event("ab", "other"),
    ]
    assert refused(events, "a") == f"pods are refused: {message}"
    assert refused([event("a-train-0", message)], "a") == refused([event("a", message)], "a")
    assert refused(events, "b") == ""


def test_asking_passes_on_what_the_server_warns_of(tmp_path, monkeypatch):
    """A policy refuses pods, never the Job: the server's warning is all there is beforehand."""
    message = 'Warning: would violate PodSecurity "restricted:latest": runAsNonRoot != true'
    (tmp_path / "kubectl").write_text(f"#!/bin/bash\necho '{message}' >&2\n")
    (tmp_path / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    made = [{"kind": "Job", "metadata": {"name": "a"}}]
    cluster = Cluster(scheduler="kubernetes")
    assert kubectl.ask(made, [cluster]) == ["Job a: the cluster would accept it", message]


def test_kubectl_is_asked_why_there_are_no_pods_and_not_where_there_are(tmp_path, monkeypatch):
    """A kubectl that answers as a cluster does whose quota is used up."""
    answers = {"job": job(), "pods": {"items": []}, "events": {"items": [event("a", "no quota")]}}
    (tmp_path / "kubectl").write_text('#!/bin/bash\ncat "${0%/*}/$2.json"\n')
    (tmp_path / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def reason():
        for name, answer in answers.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(answer))
        found = kubectl.status("job/a", Cluster(scheduler="kubernetes"))
        assert found.state is JobState.QUEUED
        return found.reason

    assert reason() == "pods are refused: no quota"
    answers["pods"] = {"items": [pod("Pending")]}
    assert reason() == "a-0-x: pending"


def answering(tmp_path, monkeypatch, **answers):
    """A kubectl that prints the given text for each kind, and writes down what it is asked."""
    for name, answer in answers.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(answer))
    program = 'echo "$*" >> "${0%/*}/asked"; [ $1 = get ] && cat "${0%/*}/$2.json"; true'
    (tmp_path / "kubectl").write_text(f"#!/bin/bash\n{program}\n")
    (tmp_path / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return Cluster(scheduler="kubernetes")


def test_each_stage_of_a_chain_is_known_by_its_own_run_and_cancelled_by_nobody_else(
    tmp_path, monkeypatch
):
    stages = CASES["kubernetes-chain.yaml"]
    made = kubernetes.chain([s.job for s in stages], [s.cluster for s in stages])[0]
    cluster = answering(tmp_path, monkeypatch, jobset=made, pods={"items": [pod("Pending")]})
    number = f"jobset/{made['metadata']['name']}"
    for stage in stages:
        mine = f"{number}#{stage.job.verb}"
        assert kubectl.status(mine, cluster, stage.job.run).state.live
        found = kubectl.status(mine, cluster, "s3://bucket/mine")
        assert found.state is JobState.UNKNOWN
        assert found.reason == f"{number} now belongs to {stage.job.run}"
        with pytest.raises(SubmitError, match=f"belongs to {stage.job.run}"):
            kubectl.cancel(mine, cluster, "s3://bucket/mine")
    assert "delete" not in (tmp_path / "asked").read_text()
    kubectl.cancel(f"{number}#shard", cluster, stages[0].job.run)
    assert f"delete {number.replace('/', ' ')} " in (tmp_path / "asked").read_text()


def test_a_line_holds_state_elements_restarts_and_reason():
    assert Status(JobState.RUNNING, "on n1", 1).line() == "RUNNING · 1 restart · on n1"
