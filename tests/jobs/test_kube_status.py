"""What `status` says of a JobSet while its controller restarts, ends or deletes it.

The objects are as jobset.x-k8s.io/v1alpha2 documents them: `status.restarts` counts the times that
all Jobs were made again, and each pod bears the number of the attempt it belongs to as a label.
"""

from jobs.kube_status import judged, judged_stage
from jobs.spec import JobState


def pod(phase, attempt=0, code=1):
    over = {"terminated": {"exitCode": code, "message": "", "finishedAt": "2026-01-01T00:00:00Z"}}
    marks = {"jobset.sigs.k8s.io/restart-attempt": str(attempt)}
    status = {"phase": phase, "containerStatuses": [{"state": over}] if phase == "Failed" else []}
    return {"metadata": {"name": f"a-{attempt}", "labels": marks}, "status": status,
            "spec": {"nodeName": "n1"}}  # fmt: skip


def jobset(*conditions, restarts=0, deleted=False, failed=()):
    listed = [{"type": kind, "status": "True", "reason": reason} for kind, reason in conditions]
    parts = [{"name": name, "replicas": 1} for name in ("shard", "train", "evaluate")]
    said = [{"name": p["name"], "succeeded": 0, "failed": int(p["name"] in failed)} for p in parts]
    leaving = {"deletionTimestamp": "2026-01-01T00:00:00Z"} if deleted else {}
    return {"metadata": {"name": "a", **leaving}, "spec": {"replicatedJobs": parts},
            "status": {"conditions": listed, "restarts": restarts,
                       "replicatedJobsStatus": said}}  # fmt: skip


def test_pods_of_an_attempt_before_neither_run_nor_count():
    leaving = [pod("Failed"), pod("Running")]
    again = judged(jobset(restarts=1), leaving)
    assert (again.state, again.restarts) == (JobState.QUEUED, 1)
    again = judged(jobset(restarts=1), [*leaving, pod("Running", 1)])
    assert (again.state, again.restarts) == (JobState.RUNNING, 1)


def test_the_last_failure_is_no_restart_whether_its_pod_is_still_there_or_not():
    lost = jobset(("Failed", "ReachedMaxRestarts"), restarts=2)
    assert judged(lost, [pod("Failed", 2)]).restarts == judged(lost, []).restarts == 2


def test_between_the_end_of_the_pods_and_the_word_of_the_controller_it_still_runs():
    assert judged(jobset(), [pod("Succeeded")]).state is JobState.RUNNING


def test_what_has_ended_stays_so_while_it_is_deleted_and_what_has_not_was_cancelled():
    assert judged(jobset(("Completed", ""), deleted=True), []).state is JobState.SUCCEEDED
    lost = jobset(("Failed", "FailedJobs"), deleted=True, failed=["train"])
    states = [judged_stage(lost, [], stage).state for stage in ("train", "evaluate")]
    assert states == [JobState.FAILED, JobState.CANCELLED]
    assert judged(jobset(deleted=True), [pod("Running")]).state is JobState.CANCELLED


def test_only_a_stage_that_is_not_the_first_waits_for_another():
    reasons = [judged_stage(jobset(), [], stage).reason for stage in ("shard", "train")]
    assert reasons == ["the pods are being created", "waits for the previous stage"]
