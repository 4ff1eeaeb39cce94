"""`submit` up to the scheduler: what is decided, what is refused, what is written."""

import json
import os
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from jobs import kubernetes, scheduler, slurm_script, snapshot
from jobs.spec import JobState, Status
from pipeline.common.errors import ConfigError
from pipeline.config.compose import compose
from pipeline.runs import identity, job_record
from pipeline.runs.identity import folder_of
from pipeline.submission import plan, staging, submit
from shards import store

ROOT = Path(__file__).resolve().parents[3]
SIDES = ("data.crop=64", "validate.size=64")
TRAIN = ["train", "experiment=quickstart", "data.url=sets/photos", "batch=16"]
CENTER = "protocol=musical"
SLURM = ["cluster=slurm", "cluster.gpus_per_node=0", "cluster.code=image"]
KUBERNETES = ["cluster=kubernetes", "cluster.image=r/x@sha256:0", "cluster.gpus_per_node=0"]
PYXIS = [*SLURM[:2], "cluster.container=pyxis", "cluster.image=r/x:latest"]
REMOTE = [*KUBERNETES, "cluster.volumes={c: /claim}", "root=s3://b/runs", "data.url=s3://b/set",
          "tracking.enabled=false", "run=s3://b/runs/a"]  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A folder of its own, no site, no user, no secrets."""
    monkeypatch.chdir(tmp_path)
    for name in [n for n in os.environ if n.startswith(("AWS_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("LACUNA_CONF", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def dry(*words):
    return submit.main(list(words), dry_run=True)


def refusal(*words):
    with pytest.raises(ValueError) as refused:
        dry(*words)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_dry_run_prints_the_script_that_sbatch_takes_and_touches_nothing(tmp_path):
    script = dry(*TRAIN, *SLURM, "cluster.nodes=2", "cluster.partition=gpu")
    assert script.startswith("#!/bin/bash\n#SBATCH --job-name=quickstart-")
    assert "#SBATCH --nodes=2\n" in script and "#SBATCH --partition=gpu\n" in script
    assert "export PET_NNODES=2\n" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_a_sweep_over_methods_prints_their_gpu_hours(monkeypatch):
    """GFLOP per image by hand; an A100 has 312 TFLOP/s in bf16, an L40S 362, by the data sheets."""
    gflop = {"pconv": 100, "glc": 50}
    cost = lambda config: 1e9 * gflop[config.objective.method]  # noqa: E731
    monkeypatch.setattr("pipeline.training.flops.estimate", cost)
    words = ("train", "data.url=s", "experiment=compare/pconv,compare/glc", "weights=random")
    text = dry(*words, "seed=0,1,2", "max_images=936000", *SLURM)
    assert text.startswith("#!/bin/bash\n#SBATCH") and "#SBATCH --array=0-5" in text
    hours = {name: float(a100) for name, a100 in re.findall(r"# ([^:\n]+): A100: ([\d.]+);", text)}
    # 3 seeds x 936,000 images x 1e11 FLOP / (0.3 x 312e12 FLOP/s) = 3,000 s
    assert hours == {"compare/pconv": 0.8, "compare/glc": 0.4, "in sum": 1.2}
    assert "GPU-hours" not in dry(*words[:2], *words[3:], "experiment=compare/glc", *SLURM)


def test_a_dry_run_needs_neither_torch_nor_mlflow():
    program = (
        "import sys; from pipeline.cli import main; code = main(sys.argv[1:]); "
        "wrong = {'torch', 'mlflow', 'pyarrow'} & set(sys.modules); assert not wrong, wrong; "
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "submit", *TRAIN, *SLURM, "--dry-run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("#!/bin/bash\n")


def test_a_submitted_run_is_the_run_that_the_same_words_train_here():
    (part,) = plan.parse([*TRAIN, *SLURM])
    here = folder_of(compose("train", TRAIN[1:]).config).url
    assert part.runs == (here,)
    assert f"runs/{part.id}" == here
    assert f"-m pipeline train run={here}" in dry(*TRAIN, *SLURM)


def test_the_resolved_configuration_is_what_runs_whatever_conf_says_later(tmp_path, monkeypatch):
    (part,) = plan.parse([*TRAIN, "seed=5", *SLURM])
    staging.write_configs(part, {})
    home = tmp_path / "config" / "lacuna"
    home.mkdir(parents=True)
    (home / "defaults.yaml").write_text("seed: 77\nbatch: 32\n")
    again = compose("train", [f"run={part.runs[0]}"])
    assert again.config.seed == 5 and again.config.batch == 16
    assert again.config.model == part.points[0].config.model
    assert again.origins["seed"].endswith("config.yaml")


def test_what_auto_came_to_at_the_first_start_is_kept_when_a_run_is_submitted_again(tmp_path):
    (part,) = plan.parse([*TRAIN, "max_images=64", *SLURM])
    run = tmp_path / part.runs[0]
    for begun, threads in ((False, "auto"), (True, "3")):
        (run / "checkpoints" / "000000000016").mkdir(parents=True, exist_ok=True)
        state = run / "checkpoints" / "000000000016" / "state.json"
        state.write_text("{}") if begun else None
        (run / "config.yaml").write_text("threads: '3'\nprecision: bf16\n")
        staging.write_configs(part, {})
        again = compose("train", [f"run={part.runs[0]}"]).config
        assert (again.threads, again.max_images) == (threads, 64)
        assert again.precision == ("bf16" if begun else "auto")


def test_other_verbs_read_their_resolved_configuration_from_the_jobs_folder():
    words = [
        "evaluate",
        "checkpoint=runs/a",
        "data.url=sets/photos",
        "masks.url=sets/m",
        "weights=raw",
    ]
    (part,) = plan.parse([*words, *SLURM])
    staging.write_configs(part, {})
    again = compose("evaluate", [f"config={part.folder}/config.yaml"])
    assert again.config == part.points[0].config
    assert f"config={Path.cwd()}/{part.folder}/config.yaml" in dry(*words, *SLURM)


def test_the_same_words_are_the_same_job_and_other_words_another():
    words = ["shard", "source=photos", "out=sets/a", *SLURM]
    one, again, other = (plan.parse(w)[0].id for w in (words, words, [*words, "data.shard_mb=3"]))
    assert one == again != other


def test_script_and_logs_lie_on_a_disk_where_the_runs_are_in_a_bucket(tmp_path):
    scores = ["evaluate", "model=a", "data.url=sets/a", "masks.url=m", "root=s3://b/runs"]
    for words in ([*TRAIN, "root=s3://b/runs"], scores):
        script = dry(*words, *SLURM)
        assert f"#SBATCH --output={tmp_path}/runs/" in script and "/s3:/" not in script
    assert "is not local: give a folder" in refusal(*TRAIN, *SLURM, "cluster.folder=s3://b/jobs")


def test_an_array_of_shard_has_a_task_an_element():
    script = dry("shard", "source=p", "out=o", *SLURM, "cluster.tasks=3", "cluster.throttle=2")
    assert "#SBATCH --array=0-2%2\n" in script
    assert [f"element=(task={i}/3)" in script for i in range(3)] == [True] * 3


def test_a_chain_passes_on_what_earlier_verbs_make():
    words = ["shard", "source=p", "out=sets/a", "cluster.tasks=2", *SLURM, "then", "masks",
             "out=m", "then", "train", "experiment=quickstart", "data.resize_short=300",
             "cluster.nodes=2", "then", "evaluate", "limit=9", "then", "evaluate", "model=telea",
             "then", "register", "then", "promote"]  # fmt: skip
    parts = plan.parse(words)
    _, _, train, evaluate, baseline, register, promote = [p.points[0].config for p in parts]
    run = parts[2].runs[0]
    assert train.data.url == "sets/a"
    assert evaluate.checkpoint == f"{run}/checkpoints/best" and baseline.checkpoint is None
    for config in (evaluate, baseline):
        assert (config.data.url, config.data.resize_short) == ("sets/a", 300)
        assert (config.masks.url, config.protocol.name, config.limit) == ("m", "msanet", 9)
    assert register.run == promote.run == run and promote.model == "inpaint-msanet"
    assert [p.cluster.nodes for p in parts] == [1, 1, 2, 1, 1, 1, 1]
    assert [p.cluster.tasks for p in parts] == [2, None, None, None, None, None, None]
    script = dry(*words)
    assert script.count("#!/bin/bash") == 7
    assert [f"afterok:{p.id}\n" in script for p in parts[:6]] == [True] * 6


MUSICAL = ["train", "experiment=musical/paris", "data.url=sets/paris", "run=runs/m", *SLURM]


def test_a_chain_carries_the_protocol_of_the_recipe_unless_another_is_given():
    _, ours, *_ = plan.parse([*MUSICAL, "then", "evaluate", "split=test"])
    assert ours.points[0].config.protocol.buckets == ["center"]
    assert ours.points[0].config.data.resize_short == 350
    _, other, again = plan.parse([*MUSICAL, "then", "evaluate", "masks.url=m", "protocol=msanet",
                                  "data=celeba", "then", "evaluate", "model=telea"])  # fmt: skip
    for part in (other, again):
        config = part.points[0].config
        assert (config.protocol.name, config.data.resize_short) == ("msanet", 256)


TRAINED = [*TRAIN, *SLURM, "run=runs/a"]
EVALUATE = ["then", "evaluate", "masks.url=m"]
CHAINED = {
    "not registered": (
        [*TRAINED, *EVALUATE, "then", "promote", "a"],
        "put `then register` before it",
    ),
    "another name": (
        [*TRAINED, *EVALUATE, "then", "register", "then", "promote", "a"],
        "this chain registers inpaint-msanet",
    ),
    "no name and nothing registered": ([*TRAINED, "then", "promote"], "model= is missing"),
    "not evaluated": (
        [*TRAINED, "then", "register", "then", "promote"],
        "put `then evaluate` before it",
    ),
    "another checkpoint evaluated": (
        [*TRAINED, *EVALUATE, "then", "register", "checkpoint=last", "then", "promote"],
        "give evaluate checkpoint=runs/a/checkpoints/last weights=auto",
    ),
    "a run's newest evaluated": (
        [*TRAINED, *EVALUATE, "checkpoint=runs/a", "then", "register", "then", "promote"],
        "give evaluate checkpoint=runs/a/checkpoints/best",
    ),
    "other weights registered": (
        [*TRAINED, *EVALUATE, "then", "register", "weights=raw", "then", "promote"],
        "weights=raw",
    ),
    "only a baseline evaluated": (
        [*TRAINED, *EVALUATE, "model=telea", "then", "register", "then", "promote"],
        "put `then evaluate` before it",
    ),
    "no masks": ([*TRAINED, "then", "evaluate"], "masks.url= is missing"),
    "masks of another size": (
        ["masks", "out=m", "size=128", *SLURM, "then", *TRAIN, "then", "evaluate"],
        "evaluate needs protocol.size=256",
    ),
    "masks without squares": (
        ["masks", "out=m", "source=s", *SLURM, "then", *TRAIN, "then", "evaluate"],
        "give it fixed=true",
    ),
    "masks to train on of another size": (
        ["masks", "out=m", "size=128", *SLURM, "then", *TRAIN, "masks=external"],
        "train needs validate.size=256",
    ),
}


@pytest.mark.parametrize("case", CHAINED)
def test_what_a_later_stage_would_refuse_is_refused_at_once(case):
    words, message = CHAINED[case]
    assert message in refusal(*words)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (["evaluate", CENTER, "split=dev"], "split=dev is not a split of"),
        (["evaluate", "data.url=gone", CENTER], "gone"),
        (["evaluate", "masks.url=gone"], "gone"),
        (["evaluate", "masks.url={set}"], "not masks: give the output of"),
        (["evaluate", "checkpoint=gone", CENTER], "gone holds no checkpoint"),
        (["register", "run=gone"], "gone holds no checkpoint"),
        (["shard", "source=gone", "out=o"], "source=gone does not exist"),
        (["train", *TRAIN[1:2], "batch=16", *SIDES, "seed=5", "init=gone"], "gone"),
    ],
)
def test_what_a_later_stage_reads_is_looked_for_if_no_stage_makes_it(
    taken, tmp_path, small_set, stage, message
):
    words = [*TRAIN, f"data.url={small_set}", *SIDES, *SLURM, "tracking.enabled=false", "then"]
    with pytest.raises(ValueError, match=message):
        submit.main([*words, *(word.format(set=small_set) for word in stage)])
    assert not (tmp_path / "given").exists()
    assert not (tmp_path / "runs").exists() or list((tmp_path / "runs").iterdir()) == []


def test_a_chain_on_kubernetes_is_one_jobset_and_refused_without(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.org")
    words = ["shard", "data=wds", "source=s3://b/p.tar", "out=s3://b/set", "root=s3://b/runs",
             *KUBERNETES, "then", "train", "experiment=quickstart"]  # fmt: skip
    assert "cluster.kind=jobset" in refusal(*words)
    made = list(yaml.safe_load_all(dry(words[0], "cluster.kind=jobset", *words[1:])))
    assert [m["kind"] for m in made] == ["JobSet"]
    shard, train = made[0]["spec"]["replicatedJobs"]
    assert train["dependsOn"] == [{"name": "shard", "status": "Complete"}]


def test_a_sweep_is_one_array_with_a_run_for_each_point():
    words = ["train", "experiment=quickstart", "data.url=sets/a", "seed=0,1", "ema=0,0.9", *SLURM]
    (part,) = plan.parse(words)
    assert len(set(part.runs)) == 4
    assert {(p.config.seed, p.config.ema) for p in part.points} == {
        (0, 0),
        (0, 0.9),
        (1, 0),
        (1, 0.9),
    }
    script = dry(*words)
    assert "#SBATCH --array=0-3\n" in script
    assert all(f"element=(run={run})" in script for run in part.runs)


def test_code_is_a_commit_with_its_path_before_everything_else(monkeypatch):
    commit = snapshot.Snapshot(ROOT, "c" * 40)
    monkeypatch.setattr(snapshot, "take", lambda root, dirty: commit)
    script = dry(*TRAIN, "cluster=slurm", "cluster.gpus_per_node=0")
    (part,) = plan.parse([*TRAIN, "cluster=slurm", "cluster.gpus_per_node=0"])
    assert f"PYTHONPATH={Path.cwd()}/{part.folder}/code/cccccccccccc" in script
    assert "export PYTHONSAFEPATH=1" in script
    assert f"cd {Path.cwd()} ||" in script


# Row 41
@pytest.mark.parametrize("on", [["cluster=slurm", "cluster.gpus_per_node=0"], ["cluster=local"]])
@pytest.mark.parametrize(
    ("word", "said"),
    [("run=/x/12:00", "run=/x/12:00"), ("root=/x/12:00", "run=/x/12:00/quickstart-"),
     ("cluster.folder=/x/12:00", "cluster.folder=/x/12:00"), ("run=s3://b/12:00", "run=s3://b/12")],
)  # fmt: skip
def test_a_path_that_would_split_the_path_of_the_code_is_refused(monkeypatch, on, word, said):
    monkeypatch.setattr(snapshot, "take", lambda root, dirty: snapshot.Snapshot(ROOT, "c" * 40))
    message = refusal(*TRAIN, *on, word)
    assert message.startswith(said) and "12:00" in message and "split at ':'" in message
    assert dry(*TRAIN, *on, word, "cluster.code=image")
    assert f"LACUNA_CODE='/x/it is $HOME, 100%/code/{'c' * 12}'\n" in dry(
        *TRAIN, *on, "run='/x/it is $HOME, 100%'"
    )


@pytest.mark.parametrize("words", [["cluster=slurm", "cluster.gpus_per_node=0"], REMOTE])
def test_a_job_is_told_of_which_commit_changes_and_image_it_is(monkeypatch, words):
    changed = snapshot.Snapshot(ROOT, "c" * 40, "+x\n", b"tar", "d" * 40)
    monkeypatch.setattr(snapshot, "take", lambda root, dirty: changed)
    words = [*TRAIN, *words, "cluster.code=snapshot", "cluster.allow_dirty=true"]
    (part,) = plan.parse(words)
    text = re.sub(r"\n *value: ", "=", dry(*words))
    folder = part.folder if "s3:" in part.folder else f"{Path.cwd()}/{part.folder}"
    assert f"LACUNA_COMMIT={'c' * 40}\n" in text
    assert f"LACUNA_DIFF={folder}/code/cccccccccccc-dddddddd.diff\n" in text
    assert ("LACUNA_IMAGE=r/x@sha256:0\n" in text) == (part.cluster.scheduler == "kubernetes")


def test_the_submitters_endpoints_travel_and_secrets_do_not(monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.org")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret-value")
    script = dry(*TRAIN, *SLURM)
    assert "export MLFLOW_TRACKING_URI=https://mlflow.example.org\n" in script
    assert "planted-secret-value" not in script
    message = capsys.readouterr().err
    assert (
        "AWS_SECRET_ACCESS_KEY" in message and "chmod 600" in message and "planted" not in message
    )


def test_what_names_a_file_of_this_machine_does_not_travel_into_a_pod(monkeypatch):
    """botocore refuses to start with a bundle or a profile that is not there."""
    monkeypatch.setenv("AWS_CA_BUNDLE", "/etc/ssl/ours.pem")
    monkeypatch.setenv("AWS_PROFILE", "ours")
    monkeypatch.setenv("AWS_REGION", "eu-1")
    assert "export AWS_PROFILE=ours\n" in dry(*TRAIN, *SLURM)
    text = dry(*TRAIN, *REMOTE)
    assert "AWS_REGION" in text
    assert "AWS_CA_BUNDLE" not in text and "AWS_PROFILE" not in text


def test_a_file_of_secrets_must_be_private(tmp_path):
    secrets = tmp_path / "config" / "lacuna" / "secrets.env"
    secrets.parent.mkdir(parents=True)
    secrets.write_text("AWS_SECRET_ACCESS_KEY=x\n")
    secrets.chmod(0o644)
    assert "chmod 600" in refusal(*TRAIN, *SLURM)
    secrets.chmod(0o600)
    assert f". {secrets} || exit 78" in dry(*TRAIN, *SLURM)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "not a command for a job"),
        (["status"], "not a command for a job"),
        ([], "no command given"),
        ([*TRAIN, "cluster=slrum"], "did you mean slurm?"),
        ([*TRAIN, *SLURM, "cluster.partitoin=x"], "did you mean cluster.partition?"),
        ([*TRAIN, *SLURM, "cluster.queue=x"], "cluster.queue does not apply to slurm"),
        ([*TRAIN, *KUBERNETES, "cluster.qos=x"], "cluster.qos does not apply to kubernetes"),
        ([*TRAIN, *SLURM, "cluster.nodes=3"], "batch=16 is not divisible by cluster.nodes=3"),
        ([*TRAIN, *SLURM, "cluster.tasks=3"], "only `shard` is divided into tasks"),
        (["masks", "out=m", *SLURM, "cluster.nodes=2"], "masks runs on one node"),
        (["shard", "out=o", *SLURM], "source= is missing"),
        (["shard", "source=p", *SLURM], "shard: out= is missing"),
        (["shard", "verify", *SLURM], "shard verify needs the URL"),
        (["shard", "verify", "s", *SLURM, "cluster.tasks=2"], "only `shard` is divided into tasks"),
        (["shard", "source=p", "out=o", "task=0/2", *SLURM, "cluster.tasks=2"], "task=0/2 is set"),
        (["evaluate", "data.url=s", *SLURM], "nothing to score: give one of checkpoint="),
        (
            ["evaluate", "model=a", "checkpoint=b", "data.url=s", *SLURM],
            "checkpoint= and model= are given",
        ),
        (["evaluate", "model=a", *SLURM], "data.url= is missing"),
        ([*TRAIN, *SLURM, "processes=2"], "set cluster.processes_per_node= (now 1)"),
        ([*TRAIN, "cluster.processes_per_node=2"], "processes_per_node does not apply to local"),
        ([*TRAIN, "seed=1,2", *SLURM, "then", "evaluate"], "choose one with checkpoint="),
        ([*TRAIN, "seed=1,2", *SLURM, "then", "promote", "a"], "choose one with run="),
        ([*TRAIN, "then", "evaluate", "masks.url=m", *SLURM], "set cluster= in its first command"),
        ([*TRAIN, *SLURM, "smoke=true", "seed=1,2"], "smoke=true with a sweep"),
        (
            [*TRAIN, *SLURM, "run=runs/same", "max_images=16,24"],
            "2 configurations of the sweep have the same run runs/same",
        ),
        ([*TRAIN, *SLURM, "seed=1,1"], "give each value once"),
        ([*TRAIN, *SLURM, "max_images=16,24"], "max_images, processes, accumulate"),
        ([*TRAIN, *SLURM, "cluster.nodes=0"], "cluster.nodes=0 is too small: expected at least 1"),
        (
            [*TRAIN, *SLURM, "cluster.processes_per_node=0"],
            "processes_per_node=0 is too small: expected at least 1",
        ),
        (
            [*TRAIN, *SLURM, "cluster.processes_per_node=-1"],
            "processes_per_node=-1 is too small: expected at least 1",
        ),
        (
            [*TRAIN, *SLURM, "cluster.gpus_per_node=-1"],
            "cluster.gpus_per_node=-1 is too small: expected at least 0",
        ),
        ([*TRAIN, *SLURM, "accumulate=0"], "accumulate=0"),
        (
            [*TRAIN, *SLURM, "cluster.retries=-1"],
            "cluster.retries=-1 is too small: expected at least 0",
        ),
        (
            [*TRAIN, *SLURM, "cluster.lead_seconds=0"],
            "cluster.lead_seconds=0 is too small: expected at least 1",
        ),
        (
            ["shard", "source=p", *SLURM, "cluster.tasks=0"],
            "cluster.tasks=0 is too small: expected at least 1",
        ),
        (
            ["shard", "source=p", *SLURM, "cluster.tasks=-2"],
            "cluster.tasks=-2 is too small: expected at least 1",
        ),
        (
            ["shard", *SLURM, "cluster.gpus_per_node=-1"],
            "cluster.gpus_per_node=-1 is too small: expected at least 0",
        ),
        (["shard", *SLURM, "cluster.nodes=0"], "cluster.nodes=0 is too small: expected at least 1"),
        (
            [*TRAIN, *SLURM, "seed=1,2", "cluster.throttle=0"],
            "cluster.throttle=0 is too small: expected at least 1",
        ),
        (
            [*TRAIN, *REMOTE, "cluster.port=0"],
            "cluster.port=0 is too small: expected at least 1024",
        ),
        (
            [*TRAIN, *REMOTE, "cluster.ttl_hours=-1"],
            "cluster.ttl_hours=-1 is too small: expected at least 0",
        ),
        (
            [*TRAIN, "cluster=local", "cluster.nodes=0"],
            "cluster.nodes=0 is too small: expected at least 1",
        ),
        ([*TRAIN, *SLURM, "cluster.throttle=2"], "applies only to arrays"),
        (
            [*TRAIN, *SLURM, "cluster.memory_gb=-4"],
            "cluster.memory_gb=-4 is too small: expected at least 1",
        ),
        (
            [*TRAIN, *SLURM, "cluster.cpus_per_node=0"],
            "cpus_per_node=0 is too small: expected at least 1",
        ),
        (
            [*TRAIN, *SLURM, "cluster.mounts=['/a:/a']"],
            "cluster.mounts= needs cluster.container=pyxis",
        ),
        ([*TRAIN, *PYXIS, "cluster.code=image", "root=/runs", "data.url=/set"], "is a tag"),
        ([*TRAIN, *PYXIS, "cluster.code=image"], "is relative to another folder inside the image"),
        ([*TRAIN, "cluster.memory_gb=4"], "cluster.memory_gb does not apply to local"),
        ([*TRAIN, "cluster.lead_seconds=4"], "cluster.lead_seconds does not apply to local"),
        ([*TRAIN, *REMOTE, "cluster.memory_gb=8"], "cluster.shm_gb=64 counts against"),
        ([*TRAIN, *REMOTE, "tracking.enabled=true"], "is not reachable from pods"),
        ([*TRAIN, *REMOTE, "init=runs/old"], "init=runs/old is a folder of this machine"),
        ([*TRAIN, *REMOTE[:-1], "run=/no-claim/x"], "run=/no-claim/x is a folder of this machine"),
        ([*TRAIN, *REMOTE[:-1], "run=/claim/x"], "not mounted at /claim on this machine"),
        (["evaluate", "checkpoint=runs/a", CENTER, *REMOTE[:-2]], "checkpoint=runs/a is a folder"),
        (["evaluate", "model=./a.pt2", CENTER, *REMOTE[:-2]], "model=./a.pt2 is a folder of this"),
        (["promote", "a", "pairs=p.parquet", *REMOTE[:-3]], "pairs=p.parquet is a folder of this"),
        (["promote", "a", "run=runs/a", *REMOTE[:-3]], "run=runs/a is a folder of this"),
        (["demo", "model=a", "against=./b.pt2", *REMOTE[:-3]], "against=./b.pt2 is a folder"),
        (["sync", "runs", *REMOTE[:-3]], "dir=runs is a folder of this"),
        (["compare", "runs=[a,runs/b]", *REMOTE[:-3]], "runs=runs/b is a folder of this"),
        (
            ["predict", "model=a", "image=a.png", "mask=1,1,9,9", "out=s3://b/x", *REMOTE[:-3]],
            "image=a.png is a folder of this",
        ),
        ([*TRAIN, *KUBERNETES], "is a folder of this machine, which pods cannot read"),
        ([*TRAIN, *SLURM, "cluster.sbatch={comment: 'a\nb'}"], "line break"),
        (
            [*TRAIN, *SLURM, "cluster.sbatch={a: n[1-3]}"],
            "the default is {}, written {name: 'a value'}",
        ),
        ([*TRAIN, *SLURM, "cluster.setup=module load x"], "written ['one', 'another']"),
        ([*TRAIN, *SLURM, "cluster.env={HF_TOKEN: x}"], "looks like a secret"),
        ([*TRAIN, *SLURM, "cluster.env={URL: 'https://u:p@h'}"], "holds a secret"),
        ([*TRAIN, *SLURM, "cluster.secrets_file=/no/such/file"], "No such file"),
        ([*TRAIN, "config=/no/such.yaml", *SLURM], "config=/no/such.yaml does not exist"),
    ],
)
def test_what_cannot_be_submitted_is_refused_in_one_line(words, message):
    assert message in refusal(*words)


@pytest.mark.parametrize(
    "word",
    [
        "cluster.env={X: planted-secret-value}",
        "cluster.setup=['export X=planted-secret-value']",
        "cluster.sbatch={comment: planted-secret-value}",
        "cluster.name=planted-secret-value",
    ],
)
def test_a_value_of_the_environment_is_no_value_of_the_configuration(monkeypatch, word):
    monkeypatch.setenv("MY_API_KEY", "planted-secret-value")
    with pytest.raises(ConfigError, match="holds a secret"):
        dry(*TRAIN, *SLURM, word)


def record(folder, **values):
    made = job_record.SubmittedJob(
        **{"id": "a", "verb": "train", "run": str(folder), "folder": str(folder), "number": "7",
           "cluster": {"scheduler": "slurm"}, "submitted": "2026-01-01T00:00:00Z", **values}
    )  # fmt: skip
    job_record.write(made)
    job_record.point_to(made)
    return made


def test_a_record_is_found_by_id_folder_and_from_elsewhere(tmp_path, monkeypatch):
    made = record(tmp_path / "runs" / "a")
    assert job_record.find("a", "runs") == made
    assert job_record.find(str(tmp_path / "runs" / "a"), "other") == made
    monkeypatch.chdir("/")
    assert job_record.find("a", "runs") == made
    assert [r.id for r in job_record.every("runs")] == ["a"]


def test_an_unknown_id_is_told_the_known_ones(tmp_path):
    record(tmp_path / "runs" / "a")
    with pytest.raises(ValueError, match=r"no record of a job 'b' under .*\(known: a\)"):
        job_record.find("b", "runs")


def test_the_points_of_a_sweep_lead_to_the_sweep(tmp_path):
    made = record(tmp_path / "runs" / "sweep-1", id="sweep-1", points=("runs/p0", "runs/p1"))
    assert job_record.find("p1", "runs") == made


@pytest.mark.parametrize(
    ("found", "state"),
    [("UNKNOWN", "CANCELLED"), ("INTERRUPTED", "CANCELLED"), ("SUCCEEDED", "SUCCEEDED"),
     ("RUNNING", "RUNNING")],
)  # fmt: skip
def test_a_job_that_ended_after_it_was_cancelled_was_cancelled(tmp_path, monkeypatch, found, state):
    made = record(tmp_path / "a", cancelled=True)
    monkeypatch.setattr(scheduler, "status", lambda *_: Status(JobState(found), "x"))
    assert made.status().state == state


def test_the_record_holds_no_more_of_the_cluster_than_where_it_is(tmp_path):
    (part,) = plan.parse([*TRAIN, *SLURM, "cluster.env={SITE: x}"])
    kept = job_record.where_of(part.cluster)
    assert set(kept) == {"scheduler", "context", "namespace", "queue", "kind"}
    assert json.dumps(kept)


@pytest.mark.parametrize(
    ("uri", "reached"),
    [("https://mlflow.example.org", True), ("sqlite:////claim/mlflow.db", True),
     ("sqlite:////home/me/mlflow.db", False), ("http://127.0.0.1:5000", False)],
)  # fmt: skip
def test_pods_are_given_a_record_that_they_can_reach(monkeypatch, uri, reached):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    words = [*TRAIN, *REMOTE, "tracking.enabled=true"]
    if reached:
        assert f"value: {uri}\n" in dry(*words)
    else:
        assert f"MLFLOW_TRACKING_URI={uri} is not reachable from pods" in refusal(*words)


@pytest.mark.parametrize(
    "words",
    [
        [*TRAIN, *REMOTE, "init=models:/a/1"],
        ["demo", "model=models:/a", "against=b", *REMOTE[:-3]],
        ["promote", "a", "run=0123456789abcdef", *REMOTE[:-3]],
    ],
)
def test_what_is_a_name_is_not_a_folder_of_this_machine(monkeypatch, words):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.org")
    assert "kind: Job" in dry(*words)


def test_a_tag_is_told_to_be_one_where_only_the_environment_is_taken_from_it(monkeypatch, capsys):
    monkeypatch.setattr(snapshot, "take", lambda root, dirty: snapshot.Snapshot(ROOT, "c" * 40))
    assert "container-image=r/x:latest" in dry(*TRAIN, *PYXIS, "cluster.code=snapshot")
    assert "cluster.image=r/x:latest is a tag" in capsys.readouterr().err


def test_a_container_is_given_every_folder_that_its_job_reads_or_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot, "take", lambda root, dirty: snapshot.Snapshot(ROOT, "c" * 40))
    on = [*PYXIS, "cluster.code=snapshot", "cluster.folder=/shared/jobs"]

    def mounts(*words):
        (found,) = re.findall(r"--container-mounts=(\S+?)'? ", dry(*words, *on))
        return set(found.split(","))

    jobs = {part.folder for part in plan.parse(["shard", "source=/photos", "out=/sets/a", *on])}
    shard = mounts("shard", "source=/photos", "out=/sets/a", "cluster.tasks=2")
    assert {m.partition(":")[0] for m in shard} == {"/photos", "/sets/a", str(tmp_path), *jobs}
    assert all(m.partition(":")[0] == m.partition(":")[2] for m in shard)
    sweep = [*TRAIN, "data.url=/sets/a", "root=/elsewhere/runs", "seed=1,2"]
    points = {run for part in plan.parse([*sweep, *on]) for run in part.runs}
    assert len(points) == 2
    assert points | {"/sets/a"} <= {m.partition(":")[0] for m in mounts(*sweep)}


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """A login node whose sbatch would take a job, until it is asked to."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "sbatch").write_text(
        '#!/bin/bash\n[ "$1" = --test-only ] && exit\necho "sbatch: error: shut" >&2; exit 1\n'
    )
    (programs / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")


def test_a_chain_is_only_asked_about_whichever_of_its_verbs_says_so(sbatch, tmp_path):
    words = ["shard", "source=p", "out=sets/a", *SLURM, "then", "train", *TRAIN[1:2], "check=true"]
    (tmp_path / "programs" / "srun").write_text("#!/bin/bash\necho 3.11 2.13\n")
    (tmp_path / "programs" / "srun").chmod(0o755)
    answers = submit.main(words)["check"]
    assert len(answers) == 6  # of each stage: the queue, its memory, the interpreter
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("srun: error: Unable to allocate resources: Node count specification invalid",
         "interpreter not verified, SLURM allocated no node: srun: error: Unable to"),
        ("srun: error: n1: task 0: Exited with exit code 127", None),
    ],
)  # fmt: skip
def test_what_slurm_refuses_of_the_question_alone_is_no_refusal_of_the_job(
    sbatch, tmp_path, said, message
):
    (tmp_path / "programs" / "srun").write_text(f"#!/bin/bash\necho '{said}' >&2; exit 1\n")
    (tmp_path / "programs" / "srun").chmod(0o755)
    words = ["masks", "out=m", *SLURM, "check=true"]
    if message:
        assert submit.main(words)["check"][2].startswith(message)
    else:
        with pytest.raises(ValueError, match="a node cannot run .*: srun: error: n1"):
            submit.main(words)


@pytest.mark.parametrize("points", [["seed=1"], ["seed=1,2"]])
def test_a_job_that_is_refused_leaves_no_run_behind(sbatch, tmp_path, small_set, points):
    from mlflow.tracking import MlflowClient

    with pytest.raises(ValueError, match="shut"):
        submit.main([*TRAIN, f"data.url={small_set}", *SIDES, *points, *SLURM])
    assert [p.name for p in (tmp_path / "runs").iterdir() if p.is_dir()] == []
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    ids = [e.experiment_id for e in client.search_experiments()]
    assert len(ids) == 2 and client.search_runs(ids) == []


LOST = [
    "Batch job submission failed: Socket timed out on send/recv operation",
    "Batch job submission failed: Zero Bytes were transmitted or received",
    "Batch job submission failed: Unable to contact slurm controller (connect failure)",
    "",
]
REFUSED = [
    "Batch job submission failed: Invalid partition name specified",
    "Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's "
    "size and/or time limits)",
    "Batch job submission failed: Access/permission denied",
    "unrecognized option '--colour'",
]


# Row 45
@pytest.mark.parametrize("queued", [True, False], ids=["queued", "not queued"])
@pytest.mark.parametrize("said", [*LOST, *REFUSED])
def test_only_a_refusal_takes_the_record_of_a_job_back(sbatch, tmp_path, capsys, said, queued):
    """An sbatch that fails with what SLURM says, after slurmctld has taken the job or not."""
    programs, words = tmp_path / "programs", ["masks", "out=m", *SLURM]
    (part,) = plan.parse(words)
    folder = tmp_path / part.folder
    line = f"JobId=7 JobState=PENDING Reason=Priority StdOut={folder}/logs/slurm-7.out"
    for name, lines in {
        "sbatch": f'[ "$1" = --test-only ] && exit\necho 7 >> {tmp_path}/taken\n'
        f'[ -z "{said}" ] || echo "sbatch: error: {said}" >&2; exit 1',
        "squeue": f"echo 7 {part.id}" if queued else "",
        "scontrol": f'echo "{line}"' if queued else "echo Invalid job id specified >&2; exit 1",
    }.items():
        (programs / name).write_text(f"#!/bin/bash\n{lines}\n")
        (programs / name).chmod(0o755)
    lost = said in LOST
    if lost and queued:
        assert [job["number"] for job in submit.main(words)["jobs"]] == ["7"]
        with pytest.raises(ValueError, match="is QUEUED .* as slurm job 7"):
            submit.main(words)
        assert (tmp_path / "taken").read_text() == "7\n"
    else:
        with pytest.raises(ValueError) as message:
            submit.main(words)
        assert said in str(message.value) and "\n" not in str(message.value)
        assert ("may have been accepted, and no job of that name" in str(message.value)) == lost
    assert (folder / "jobs.json").exists() == (folder / "config.yaml").exists() == lost


def test_a_refusal_takes_back_no_more_than_was_written(sbatch, tmp_path, small_set):
    words = [*TRAIN, f"data.url={small_set}", *SIDES, *SLURM]
    (part,) = plan.parse(words)
    run = tmp_path / part.runs[0]
    (run / "logs").mkdir(parents=True)
    before = {"config.yaml": "seed: 7\n", "logs/state-3": "SUCCEEDED\n", "run.json": "{}\n"}
    for name, text in before.items():
        (run / name).write_text(text)
    program = tmp_path / "programs" / "sbatch"
    program.write_text(program.read_text().replace("exit\n", f"exit\ntouch {run}/theirs\n"))
    with pytest.raises(ValueError, match="shut"):
        submit.main(words)
    files = [p for p in run.rglob("*") if p.is_file() and not p.name.startswith(".")]
    found = {str(p.relative_to(run)): p.read_text() for p in files}
    assert found == {**before, "theirs": ""}


@pytest.fixture
def taken(sbatch, tmp_path):
    """A login node whose sbatch takes every job, and counts."""
    (tmp_path / "programs" / "sbatch").write_text(
        f'#!/bin/bash\n[ "$1" = --test-only ] && echo >> {tmp_path}/judged && exit\n'
        f"echo >> {tmp_path}/given; wc -l < {tmp_path}/given\n"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["evaluate", "checkpoint=runs/none", "data.url=SET", CENTER],
            "checkpoint=runs/none holds no checkpoint",
        ),
        (["evaluate", "model=telea", "data.url=sets/none", CENTER], "data.url=sets/none holds"),
        (["evaluate", "model=telea", "data.url=SET", "masks.url=none"], "masks.url=none holds"),
        (["evaluate", "model=telea", "data.url=SET", "masks.url=SET"], "holds images, not masks"),
        (["shard", "source=nosuch", "out=s"], "source=nosuch does not exist"),
    ],
)
def test_what_a_verb_would_not_find_is_refused_before_it_is_queued(
    taken, tmp_path, small_set, words, message
):
    with pytest.raises(ValueError, match=message) as refused:
        submit.main([word.replace("SET", str(small_set)) for word in (*words, *SLURM)])
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "given").exists()
    assert not (tmp_path / "runs").exists() or list((tmp_path / "runs").iterdir()) == []


def test_on_this_machine_it_is_its_processes_that_share_the_batch(tmp_path, small_set):
    words = [*TRAIN, f"data.url={small_set}", *SIDES, "processes=3", "cluster.code=image"]
    with pytest.raises(ValueError, match="batch=16 is not divisible by 3 processes"):
        submit.main(words)
    assert not (tmp_path / "runs").exists()


def test_what_an_earlier_stage_makes_is_not_looked_for(taken, tmp_path):
    (tmp_path / "p").mkdir()
    words = ["shard", "source=p", "out=s", *SLURM, "then", "evaluate", "model=telea", CENTER]
    assert len(submit.main(words)["jobs"]) == 2


CHAIN = ["shard", "source=p", "out=s", *SLURM, "then", *TRAIN[:2], "batch=16", *SIDES, "run=runs/a",
         "tracking.enabled=false"]  # fmt: skip


def test_a_cache_that_cannot_be_written_costs_no_record(taken, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nope")
    (tmp_path / "p").mkdir()
    jobs = submit.main(CHAIN)["jobs"]
    for number, job in zip("12", jobs):
        kept = json.loads((tmp_path / job["folder"] / "jobs.json").read_text())
        assert kept["number"] == job["number"] == number
    message = capsys.readouterr().err
    assert "/proc/nope/lacuna/jobs cannot be written" in message and "set XDG_CACHE_HOME" in message


def test_kubernetes_judges_each_object_once(tmp_path, monkeypatch):
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "kubectl").write_text(
        f'#!/bin/bash\necho "$*" >> {tmp_path}/asked\n'
        'case "$*" in *"create -o json"*) echo \'{"metadata": {"uid": "1"}}\' ;;\n'
        '  *"config view"*) exit 1 ;; esac  # as in a pod, which has no kubeconfig\n'
    )
    (programs / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    where = [f"root={tmp_path}/runs", f"cluster.volumes={{c: {tmp_path}}}", "cluster.code=image"]
    submit.main(["masks", f"out={tmp_path}/masks", *KUBERNETES, *where])
    asked = (tmp_path / "asked").read_text().splitlines()
    judged = [line for line in asked if "--dry-run=server" in line]
    created = [line for line in asked if line.startswith("create") and line not in judged]
    assert len(judged) == len(created) == 1


def test_a_refusal_gives_pods_of_an_earlier_submission_their_last_words_back(tmp_path, monkeypatch):
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "kubectl").write_text(
        '#!/bin/bash\ncase "$*" in *dry-run=server*|*" get "*|get*) exit 0 ;; esac\n'
        'echo "Error from server (Forbidden): exceeded quota" >&2; exit 1\n'
    )
    (programs / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    where = [f"root={tmp_path}/runs", f"cluster.volumes={{c: {tmp_path}}}", "cluster.code=image"]
    words = ["masks", f"out={tmp_path}/masks", *KUBERNETES, *where]
    (part,) = plan.parse(words)
    logs = Path(part.folder, "logs")
    logs.mkdir(parents=True)
    (logs / "pod-0.state").write_text("SUCCEEDED\n")
    with pytest.raises(ValueError, match="exceeded quota"):
        submit.main(words)
    assert (logs / "pod-0.state").read_text() == "SUCCEEDED\n"


def test_the_scheduler_judges_each_job_once(taken, tmp_path):
    (tmp_path / "p").mkdir()
    submit.main(CHAIN)
    assert (tmp_path / "judged").read_text() == (tmp_path / "given").read_text() == "\n\n"


def test_a_refusal_gives_a_run_that_was_there_its_status_back(sbatch, tmp_path, small_set):
    from mlflow.tracking import MlflowClient

    words = [*TRAIN, f"data.url={small_set}", *SIDES, *SLURM]
    (part,) = plan.parse(words)
    run = tmp_path / part.runs[0]
    with ExitStack() as undo:
        staging.write_configs(part, staging.announce_runs(part, undo))
        undo.pop_all()
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    known = json.loads((run / "run.json").read_text())["mlflow_run_id"]
    client.set_terminated(known, "KILLED")
    with pytest.raises(ValueError, match="shut"):
        submit.main(words)
    assert client.get_run(known).info.status == "KILLED"
    assert json.loads((run / "run.json").read_text())["mlflow_run_id"] == known


def test_a_smoke_test_is_a_job_of_its_own_that_leaves_the_run_alone(tmp_path):
    (part,) = plan.parse([*TRAIN, "smoke=true", *SLURM])
    with ExitStack() as undo:
        staging.write_configs(part, staging.announce_runs(part, undo))
        undo.pop_all()
    assert part.id.startswith("smoke-")
    assert [p.name for p in (tmp_path / "runs").iterdir()] == [part.id]
    script = dry(*TRAIN, "smoke=true", *SLURM)
    assert f"train config={tmp_path}/runs/{part.id}/config.yaml" in script
    again = compose("train", [f"config=runs/{part.id}/config.yaml"]).config
    here = compose("train", TRAIN[1:]).config
    assert again.smoke and folder_of(again).url == folder_of(here).url


BANNERS = {
    "before": "Welcome to the cluster\\n7",
    "with a number of its own": "2026\\nquota: 5 of 9 nodes\\n7",
    "before the number with its cluster": "hello\\n7;main",
    "without --parsable": "hello\\nSubmitted batch job 7",
    "alone": "Welcome to the cluster",
}


# Row 44
@pytest.mark.parametrize("printed", BANNERS.values(), ids=BANNERS)
def test_the_job_id_is_read_whatever_a_wrapper_of_sbatch_prints(sbatch, tmp_path, printed):
    programs, words = tmp_path / "programs", ["masks", "out=m", *SLURM]
    (part,) = plan.parse(words)
    output = f"StdOut={tmp_path}/{part.folder}/logs/slurm-7.out"
    for name, lines in {
        "sbatch": f'[ "$1" = --test-only ] && exit\nprintf "{printed}\\n"',
        "squeue": f"echo 7 {part.id}",
        "scontrol": f'echo "JobId=7 JobState=PENDING Reason=Priority {output}"',
    }.items():
        (programs / name).write_text(f"#!/bin/bash\n{lines}\n")
        (programs / name).chmod(0o755)
    (job,) = submit.main(words)["jobs"]
    assert (
        job["number"] == json.loads((tmp_path / job["folder"] / "jobs.json").read_text())["number"]
    )
    assert job["number"] == "7"


@pytest.fixture
def counted(monkeypatch):
    """`counted(module, name)`: the arguments of each call of a function from now on."""

    def watch(module, name):
        calls, function = [], getattr(module, name)

        def call(*args, **kwargs):
            calls.append(args)
            return function(*args, **kwargs)

        monkeypatch.setattr(module, name, call)
        return calls

    return watch


@pytest.mark.parametrize("points", [["seed=1"], ["seed=1,2"]], ids=["run", "sweep"])
def test_a_submission_computes_each_of_its_parts_once(
    taken, tmp_path, small_set, monkeypatch, counted, points
):
    commit = snapshot.Snapshot(ROOT, "c" * 40, tar=b"")
    monkeypatch.setattr(snapshot, "take", lambda root, dirty: commit)
    monkeypatch.setattr(snapshot, "unpack", lambda data, folder: folder.mkdir(parents=True))
    counts = {
        "snapshots": counted(snapshot, "take"),
        "renderings": counted(slurm_script, "render"),
        "hashes": counted(identity, "hashed_values"),
    }
    reads = counted(store, "read")
    train = [*TRAIN, f"data.url={small_set}", *SIDES, *points, "tracking.enabled=false"]
    chain = ["then", "evaluate", CENTER, *(["model=telea"] if len(points[0]) > 6 else [])]
    submit.main([*train, "cluster=slurm", "cluster.gpus_per_node=0", *chain])
    runs = points[0].count(",") + 1
    assert {name: len(calls) for name, calls in counts.items()} == {
        "snapshots": 1, "renderings": 2, "hashes": runs
    }  # fmt: skip
    places = [url for (url, *_) in reads if url.endswith("jobs.json")]
    assert len(places) == len(set(places)) == 2 + (runs if runs > 1 else 0)
    assert (tmp_path / "judged").read_text() == (tmp_path / "given").read_text() == "\n\n"


def test_a_manifest_is_rendered_once(tmp_path, monkeypatch, counted):
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "kubectl").write_text(
        '#!/bin/bash\ncase "$*" in *"create -o json"*) echo \'{"metadata": {"uid": "1"}}\' ;;\n'
        '  *"config view"*) exit 1 ;; esac\n'
    )
    (programs / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    where = [f"root={tmp_path}/runs", f"cluster.volumes={{c: {tmp_path}}}", "cluster.code=image"]
    manifests = counted(kubernetes, "manifest")
    submit.main(["masks", f"out={tmp_path}/masks", *KUBERNETES, *where])
    assert len(manifests) == 1
