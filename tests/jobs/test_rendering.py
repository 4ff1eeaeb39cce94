"""Whole scripts and manifests, and what bash, shellcheck and Kubernetes' schemas say of them."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from jobs import kubernetes, scheduler, slurm_script
from jobs.scheduler import Stage
from jobs.spec import Cluster, SubmitError
from tests.jobs.cases import CASES, IMAGE, KUBERNETES, REMOTE, SHARD, SLURM, SMALL, TRAIN

EXPECTED = Path(__file__).resolve().parent / "expected"
SCRIPTS = [name for name in CASES if not name.endswith(".yaml")]
MANIFESTS = [name for name in CASES if name.endswith(".yaml")]
HOSTILE = "a b'c\"d$(touch x)`touch y`;*\\"


@pytest.mark.parametrize("name", CASES)
def test_a_job_is_rendered_to_the_letter(name):
    assert scheduler.render(CASES[name]).text == (EXPECTED / name).read_text()


def test_every_expected_text_belongs_to_a_case():
    assert {p.name for p in EXPECTED.iterdir()} == set(CASES)


@pytest.mark.parametrize("name", SCRIPTS)
def test_bash_can_parse_a_script(name):
    assert subprocess.run(["bash", "-n", EXPECTED / name]).returncode == 0


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck_has_nothing_to_say_about_a_script(name):
    message = subprocess.run(
        ["shellcheck", "-e", "SC1091", EXPECTED / name], capture_output=True, text=True
    )
    assert message.stdout == ""


@pytest.mark.parametrize("version", ["1.31", "1.34", "1.37"])
@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_is_strictly_valid_for_kubernetes(name, version):
    validated = []
    for made in yaml.safe_load_all((EXPECTED / name).read_text()):
        parts = made["spec"].get("replicatedJobs")
        jobs = [{"apiVersion": "batch/v1", "kind": "Job", **p["template"]} for p in parts or ()]
        for each in jobs or [made]:
            kubernetes_validate.validate(each, version, strict=True)  # raises
            validated.append(each["kind"])
    assert "Job" in validated


# Row 63
def test_every_start_of_a_job_has_another_port_below_those_of_outgoing_connections():
    """A requeued job must not meet the port that a process of before still holds."""
    for name in SCRIPTS:
        lines = [
            line for line in (EXPECTED / name).read_text().splitlines() if "MASTER_PORT=" in line
        ]
        for line in lines:
            given = [{}, {"SLURM_RESTART_COUNT": "1"}, {"SLURM_RESTART_COUNT": "2"}]
            for number in ("7", "11999", "4194303"):
                ports = [
                    subprocess.check_output(
                        ["bash", "-uc", f"{line}; echo $PET_MASTER_PORT"],
                        env={"SLURM_JOB_ID": number, **env},
                    )
                    for env in given
                ]
                assert len(set(ports)) == 3 and all(20000 <= int(p) < 32000 for p in ports)
    assert lines or name == "local-train.sh"


def test_a_value_reaches_the_job_as_it_is_whatever_it_holds(tmp_path):
    """The rendered step, with srun replaced by a program that prints what it was given."""
    run, folder = f"{tmp_path}/{HOSTILE}", tmp_path / "folder with ' quote"
    job = replace(
        TRAIN,
        arguments=(f"run={run}",),
        folder=str(folder),
        cwd=str(tmp_path),
        env={"SITE": HOSTILE},
    )
    script = slurm_script.render(
        replace(job, code=None), Cluster(scheduler="slurm", python="/bin/echo")
    )
    (folder / "logs").mkdir(parents=True)
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in {
        "srun": 'shift 6; printf "%s\\n" "$SITE" "$@" > "$SEEN"',
        "scontrol": "echo n1",
    }.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    env = {
        "PATH": f"{programs}:/usr/bin:/bin", "SEEN": str(tmp_path / "seen"), "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n1",
    }  # fmt: skip
    subprocess.run(["bash", "-c", script], env=env, check=True)
    seen = (tmp_path / "seen").read_text().splitlines()
    assert seen[0] == HOSTILE
    assert seen[-1] == f"run={run}"
    assert not (tmp_path / "x").exists() and not (tmp_path / "y").exists()
    assert (folder / "logs" / "state-7").read_text() == "SUCCEEDED\n"


# Row 61
@pytest.mark.parametrize(
    ("setup", "failed"),
    [
        (["false"], "false"),
        (["module load nonesuch"], "module load nonesuch"),  # no such command
        (["tool() { return 3; }", "tool use x", "export A=b"], "tool use x"),
        (["source /none/activate"], "source /none/activate"),
        (["source {ends_badly}"], "source {ends_badly}"),
        (["A=$(false)"], "A=$(false)"),
        (["if true; then", "false", "fi"], "false"),
        (["false || true", "if false; then", "true", "fi", "source {has_failures}"], None),
        ([], None),
    ],
)
def test_a_failing_line_of_setup_ends_the_job_as_a_configuration_error(tmp_path, setup, failed):
    """The rendered script in bash, with srun and scontrol replaced by programs that succeed."""
    files = {"ends_badly": "true\nfalse\n", "has_failures": "false\ntrue\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    paths = {name: tmp_path / name for name in files}
    setup = [line.format(**paths) if "source {" in line else line for line in setup]
    for program in ("srun", "scontrol"):
        (tmp_path / program).write_text("#!/bin/sh\nsleep 1\n")  # a real srun takes longer
        (tmp_path / program).chmod(0o755)
    (tmp_path / "logs").mkdir()
    job = replace(TRAIN, run=str(tmp_path), folder=str(tmp_path), cwd=str(tmp_path), env={})
    script = slurm_script.render(job, replace(SLURM, setup=setup, secrets_file=None))
    (tmp_path / "job").write_text(script)
    slurm_sets = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "PATH": f"{tmp_path}:/bin"}
    done = subprocess.run(
        ["bash", tmp_path / "job"], env=slurm_sets, capture_output=True, text=True, cwd=tmp_path
    )
    state = (tmp_path / "logs" / "state-7").read_text()
    if failed is None:
        assert (done.returncode, state) == (0, "SUCCEEDED\n"), done.stderr
    else:
        reason = f"cluster.setup: '{failed.format(**paths) if 'source {' in failed else failed}'"
        assert done.returncode == 78 and state.startswith(f"FAILED {reason} failed"), done.stderr
        assert reason in done.stderr


def directives(job, cluster):
    lines = slurm_script.render(job, cluster).splitlines()
    return [line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH ")]


@pytest.mark.parametrize("nodes", [1, 8, 64])
def test_more_nodes_change_only_the_number_of_nodes(nodes):
    small, large = (slurm_script.render(TRAIN, replace(SLURM, nodes=n)) for n in (2, nodes))
    assert large == small.replace("--nodes=2", f"--nodes={nodes}").replace(
        "PET_NNODES=2", f"PET_NNODES={nodes}"
    )


@pytest.mark.parametrize("nodes", [8, 64])
def test_more_pods_change_only_the_number_of_pods(nodes):
    small, large = (kubernetes.render(REMOTE, replace(KUBERNETES, nodes=n)) for n in (2, nodes))
    changed = [(a, b) for a, b in zip(small.splitlines(), large.splitlines()) if a != b]
    assert len(small.splitlines()) == len(large.splitlines())
    assert [b.strip() for _, b in changed] == [
        f"completions: {nodes}", f"parallelism: {nodes}", f"value: '{nodes}'"
    ]  # fmt: skip
    assert [b for _, b in changed] == [a.replace("2", str(nodes)) for a, _ in changed]


def test_one_node_needs_no_service_and_meets_itself():
    (job,) = kubernetes.manifest(REMOTE, replace(KUBERNETES, nodes=1))
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert {"name": "PET_MASTER_ADDR", "value": "127.0.0.1"} in container["env"]


def test_any_option_of_sbatch_is_passed_through():
    given = {"reservation": "night", "exclude": "n[1-3]", "gres": "gpu:a100:4", "overcommit": None}
    lines = directives(TRAIN, replace(SLURM, sbatch=given))
    assert {"reservation=night", "exclude='n[1-3]'", "gres=gpu:a100:4", "overcommit"} <= set(lines)
    assert not any(line.startswith("gpus-per-node") for line in lines)  # gres says it


def test_percent_signs_in_a_folder_are_no_pattern_of_sbatch():
    lines = directives(replace(TRAIN, folder="/shared/100%j"), SLURM)
    assert "output=/shared/100%%j/logs/slurm-%j.out" in lines


@pytest.mark.parametrize("time", ["4", "3:30", "1:00:00", "0-1", "0", "UNLIMITED", None])
def test_a_wall_limit_that_leaves_time_to_work_is_none_of_our_business(time):
    lines = directives(TRAIN, replace(SLURM, time=time))
    assert [line for line in lines if line.startswith("time")] == [f"time={time}"] * bool(time)


def test_a_chain_waits_for_success_and_says_so_before_ids_are_known():
    text = scheduler.render([Stage(SHARD, SLURM), Stage(TRAIN, SLURM)]).text
    assert "#SBATCH --dependency=afterok:shard-11112222\n" in text
    assert "#SBATCH --kill-on-invalid-dep=yes\n" in text


def test_the_first_matching_rule_of_a_pod_is_the_configuration_error():
    _, job = kubernetes.manifest(REMOTE, KUBERNETES)
    actions = [r["action"] for r in job["spec"]["podFailurePolicy"]["rules"]]
    assert actions == ["FailJob", "Ignore", "Ignore"]


def test_an_array_in_a_jobset_is_not_tried_again_as_a_whole():
    """Its elements have retries of their own; the reasons are those of JobSet's API."""
    jobset = kubernetes.manifest(SHARD, replace(KUBERNETES, kind="jobset", nodes=1))[0]
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    assert rule["action"] == "FailJobSet" and "FailedIndexes" in rule["onJobFailureReasons"]
    spec = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert spec["backoffLimitPerIndex"] == 3
    assert spec["podFailurePolicy"]["rules"][0]["action"] == "FailIndex"


def test_kubernetes_does_not_substitute_in_our_words():
    job = replace(REMOTE, arguments=("run=s3://b/$(HOME)",), env={"SITE": "$(PATH)"})
    container = kubernetes.manifest(job, KUBERNETES)[-1]["spec"]["template"]["spec"]["containers"][
        0
    ]
    assert container["command"][-1] == "run=s3://b/$$(HOME)"
    assert {"name": "SITE", "value": "$$(PATH)"} in container["env"]


def test_a_patch_merges_mappings_by_key_and_named_lists_by_name():
    pod = kubernetes.manifest(REMOTE, KUBERNETES)[-1]["spec"]["template"]
    container = pod["spec"]["containers"][0]
    assert pod["metadata"]["annotations"] == {"team": "vision"}
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK"]}
    assert container["image"] == IMAGE


def test_a_sweep_of_several_nodes_each_is_one_part_of_a_jobset_a_point():
    points = replace(REMOTE, arguments=(), elements=(("run=s3://b/a",), ("run=s3://b/b",)))
    jobset = kubernetes.manifest(points, replace(KUBERNETES, kind="jobset"))[0]
    parts = jobset["spec"]["replicatedJobs"]
    assert [p["name"] for p in parts] == ["train-0", "train-1"]
    commands = [
        p["template"]["spec"]["template"]["spec"]["containers"][0]["command"] for p in parts
    ]
    assert [c[-1] for c in commands] == ["run=s3://b/a", "run=s3://b/b"]


@pytest.mark.parametrize(
    ("job", "cluster", "message"),
    [
        (TRAIN, replace(SLURM, sbatch={"comment": "a\n#SBATCH --wrap=x"}), "line break"),
        (TRAIN, replace(SLURM, sbatch={"Constraint": "x"}), "invalid option"),
        (TRAIN, replace(SLURM, sbatch={"array": "0-3"}), "set by `submit` itself"),
        (TRAIN, replace(SLURM, sbatch={"arra": "0-3"}), "arra (--array) is set by `submit` itself"),
        (TRAIN, replace(SLURM, sbatch={"clusters": "x"}), "from a login node of the other"),
        (TRAIN, replace(SLURM, sbatch={"cluster": "x"}), "from a login node of the other"),
        (TRAIN, replace(SLURM, sbatch={"M": "x"}), "invalid option"),
        (
            TRAIN,
            replace(SLURM, time="1"),
            "time=1 is 60 s, and the stop signal comes cluster.lead_sec",
        ),
        (TRAIN, replace(SLURM, time="3:29"), "time=3:29 is 209 s"),
        (TRAIN, replace(SLURM, sbatch={"time-min": "0-00:02"}), "time-min=0-00:02 is 120 s"),
        (TRAIN, replace(SLURM, time="1-0", lead_seconds=86400), "time=1-0 is 86400 s"),
        (replace(TRAIN, folder="/r/a\\b"), SLURM, "/r/a\\b contains a backslash"),
        (TRAIN, replace(SLURM, setup=["module load\ncuda"]), "line break"),
        (TRAIN, replace(SLURM, env={"A B": "1"}), "invalid variable name 'A B'"),
        (TRAIN, replace(SLURM, env={"WANDB_API_KEY": "1"}), "looks like a secret"),
        (TRAIN, replace(SLURM, env={"PET_NNODES": "9"}), "use cluster.nodes="),
        (TRAIN, replace(SLURM, container="pyxis"), "needs cluster.image="),
        (TRAIN, replace(SLURM, image="x"), "cluster.container=pyxis or apptainer"),
        (replace(TRAIN, run="a\nb"), SLURM, "line break"),
        (replace(TRAIN, folder=f"/r/{'x' * 256}"), SLURM, "has 256 bytes"),
        (TRAIN, replace(SLURM, python="a\nb"), "cluster.python contains a line break"),
        (REMOTE, replace(KUBERNETES, namespace="a\nb"), "cluster.namespace contains a line break"),
        (REMOTE, replace(KUBERNETES, secrets=["a\nb"]), "cluster.secrets contains a line break"),
        (REMOTE, replace(KUBERNETES, image=None), "cluster.image= is missing"),
        (REMOTE, replace(KUBERNETES, image="a:latest", code="image"), "is a tag"),
        (REMOTE, replace(KUBERNETES, name="x" * 62), "give a shorter one with cluster.name="),
        (
            REMOTE,
            replace(KUBERNETES, kind="jobset", name="x" * 48),
            "has 58 characters, at most 57 are allowed",
        ),
        (SHARD, replace(KUBERNETES, nodes=2), "cluster.kind=jobset"),
        (TRAIN, Cluster(nodes=2), "this machine is one node"),
        (TRAIN, replace(SLURM, throttle=2), "applies only to arrays"),
        (TRAIN, replace(SLURM, mounts=["/a:/a"]), "needs cluster.container"),
        (
            replace(TRAIN, reads=("/a:b",)),
            replace(SLURM, container="pyxis", image=IMAGE),
            "a colon",
        ),
        (REMOTE, replace(KUBERNETES, shm_gb=512), "counts against cluster.memory_gb=512"),
        (
            replace(SHARD, verb="train"),
            replace(KUBERNETES, kind="jobset", throttle=1),
            "elements of several nodes each start together",
        ),
    ],
)
def test_what_no_scheduler_could_run_is_refused_in_one_line(job, cluster, message):
    with pytest.raises(SubmitError) as refused:
        scheduler.render([Stage(job, cluster)])
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_chain_on_kubernetes_needs_jobset():
    with pytest.raises(SubmitError, match="cluster.kind=jobset"):
        scheduler.render([Stage(SHARD, KUBERNETES), Stage(REMOTE, KUBERNETES)])


def test_a_stage_waits_for_as_many_others_as_a_jobset_allows():
    def chain(points):
        elements = tuple((f"run=s3://b/{i}",) for i in range(points))
        sweep = replace(REMOTE, arguments=(), elements=elements)
        stages = [Stage(sweep, replace(KUBERNETES, kind="jobset")), Stage(REMOTE, SMALL)]
        return yaml.safe_load(scheduler.render(stages).text)["spec"]["replicatedJobs"][-1]

    assert [d["name"] for d in chain(5)["dependsOn"]] == [f"train-{i}" for i in range(5)]
    with pytest.raises(
        SubmitError, match="`train` would wait for 6 Jobs, and JobSet allows at most 5"
    ):
        chain(6)


def test_a_chain_over_two_schedulers_is_refused():
    with pytest.raises(SubmitError, match="one scheduler"):
        scheduler.render([Stage(SHARD, SLURM), Stage(REMOTE, KUBERNETES)])
