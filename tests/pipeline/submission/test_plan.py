"""What each verb of a submission is given of a cluster: no more than it can use."""

import os

import pytest
import yaml

from pipeline.submission import submit

SITE = """\
scheduler: {scheduler}
nodes: 4
gpus_per_node: 8
code: image
{more}
"""
SLURM = (
    "partition: gpu\ncpus_per_node: 64\nmemory_gb: 512\n"
    "sbatch: {gres: 'gpu:a100:8', gpu-bind: closest, constraint: gpu80gb, exclusive: null}\n"
    "commands: {masks: {partition: small, time: 1:30:00}}"
)
KUBERNETES = (
    "image: r/x@sha256:0\nkind: jobset\nvolumes: {c: /claim}\ncpus_per_node: 64\n"
    "memory_gb: 512\nshm_gb: 64\nnode_selector: {gpu: h100}"
)
SHARD = ["shard", "data=wds", "source=s3://b/p.tar", "out=s3://b/set", "root=s3://b/runs"]
MASKS = ["masks", "out=s3://b/masks", "root=s3://b/runs"]
CHAIN = [*SHARD, "cluster=ours", "then", "train", "experiment=quickstart", "batch=64",
         "tracking.enabled=false", "then", "evaluate", "masks.url=s3://b/masks",
         "then", "register", "then", "promote"]  # fmt: skip


@pytest.fixture(autouse=True)
def site(tmp_path, monkeypatch):
    """`site(scheduler)`: $LACUNA_CONF becomes a folder whose cluster=ours is that."""
    monkeypatch.chdir(tmp_path)
    for name in [n for n in os.environ if n.startswith(("AWS_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.org")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    def make(scheduler):
        folder = tmp_path / "site" / "cluster"
        folder.mkdir(parents=True)
        more = SLURM if scheduler == "slurm" else KUBERNETES
        (folder / "ours.yaml").write_text(SITE.format(scheduler=scheduler, more=more))
        monkeypatch.setenv("LACUNA_CONF", str(tmp_path / "site"))

    return make


def directives(*words):
    """Of each script its options, as sbatch reads them."""
    scripts = submit.main(list(words), dry_run=True).split("#!/bin/bash\n")[1:]
    found = []
    for script in scripts:
        lines = [w[len("#SBATCH --") :] for w in script.splitlines() if w.startswith("#SBATCH --")]
        found.append(dict(line.partition("=")[::2] for line in lines))
    return found


def pods(*words):
    """Of each stage how many pods it has, and what each of them requests."""
    made = list(yaml.safe_load_all(submit.main(list(words), dry_run=True)))
    found = {}
    for part in made[-1]["spec"]["replicatedJobs"]:
        job = part["template"]["spec"]
        container = job["template"]["spec"]["containers"][0]
        requests = dict(container["resources"]["requests"])
        assert requests.pop("ephemeral-storage") == "1Gi"  # of every pod
        found[part["name"]] = (job["completions"], requests)
    return found


OURS = ["cluster=ours"]
ONE = {"nodes": "1", "cpus-per-task": "1", "mem": "8G"}
GPU = {"partition", "gpus-per-node", "gres", "gpu-bind", "constraint", "exclusive"}
TRAIN = ["train", "experiment=quickstart", "data.url=s3://b/set", "run=s3://b/run",
         "root=s3://b/runs"]  # fmt: skip
REGISTER = ["register", "run=s3://b/run", "root=s3://b/runs"]
FITTED = {
    "one core": ([*REGISTER, *OURS], ONE, GPU),
    "as its workers": (
        [*SHARD[:1], "source=s", "out=s3://b/set", "workers=16", *OURS],
        {"nodes": "1", "cpus-per-task": "16", "mem": "128G"},
        GPU,
    ),
    "settings of the site for a command": (
        [*MASKS, *OURS],
        {**ONE, "partition": "small", "time": "1:30:00"},
        GPU - {"partition"},
    ),
    "settings for another command": ([*REGISTER, *OURS], ONE, {"time", "partition"}),
    "the same on the command line": (
        [*REGISTER, *OURS, "cluster.commands.register.time=90:00",
         "cluster.commands.register.qos=q"],
        {**ONE, "time": "90:00", "qos": "q"},
        GPU,
    ),
    "one more setting of a command": (
        [*MASKS, *OURS, "cluster.commands.masks.memory_gb=9"],
        {"mem": "9G", "partition": "small"},
        GPU - {"partition"},
    ),
    "keys of the command win": (
        [*MASKS, *OURS, "cluster.partition=mine", "cluster.cpus_per_node=4"],
        {"partition": "mine", "cpus-per-task": "4", "time": "1:30:00"},
        GPU - {"partition"},
    ),
    "a GPU that the partition demands": (
        [*SHARD, *OURS, "cluster.gpus_per_node=1"],
        {"gpus-per-node": "1", "partition": "gpu", "constraint": "gpu80gb", "cpus-per-task": "1"},
        {"gres", "exclusive"},
    ),
    "its own gres": (
        [*SHARD, *OURS, "cluster.sbatch={gres: 'gpu:1'}"],
        {"gres": "gpu:1"},
        {"gpus-per-node", "partition"},
    ),
    "a site without GPUs keeps its partition": (
        [*REGISTER, *OURS, "cluster.gpus_per_node=0", "cluster.sbatch={constraint: ib}"],
        {**ONE, "partition": "gpu", "constraint": "ib"},
        {"gres"},
    ),
    "training on one GPU of eight": (
        [*TRAIN, "cluster=ours", "cluster.nodes=1", "cluster.gpus_per_node=1"],
        {"nodes": "1", "gpus-per-node": "1", "cpus-per-task": "8", "mem": "64G",
         "partition": "gpu", "constraint": "gpu80gb"},
        {"gres", "exclusive"},
    ),
    "with CPUs and memory of its own": (
        [*TRAIN, "cluster=ours", "cluster.nodes=1", "cluster.gpus_per_node=4",
         "cluster.cpus_per_node=20", "cluster.memory_gb=100"],
        {"gpus-per-node": "4", "cpus-per-task": "20", "mem": "100G"},
        {"gres", "exclusive"},
    ),
    "one GPU of eight": (
        ["predict", "model=telea", "image=s3://b/set", "mask=1,1,9,9", "out=s3://b/o", *OURS],
        {"nodes": "1", "gpus-per-node": "1", "cpus-per-task": "8", "mem": "64G",
         "partition": "gpu", "constraint": "gpu80gb"},
        {"gres", "exclusive"},
    ),
}  # fmt: skip


# Row 64
@pytest.mark.parametrize("case", FITTED)
def test_a_command_asks_slurm_for_what_it_uses(site, case):
    site("slurm")
    words, asked, absent = FITTED[case]
    (options,) = directives(*words)
    assert {name: options.get(name) for name in asked} == asked
    assert not absent & set(options)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("cluster.commands.shrad.time=1", "cluster.commands.shrad: did you mean shard?"),
        ("cluster.commands.status.time=1", r"cluster.commands.status: .*allowed: .*shard"),
        ("cluster.commands.shard.tiem=1", r"cluster.commands.shard: unknown key cluster.tiem; did"),
        ("cluster.commands.shard=cpu", r"cluster.commands.shard: expected \{key: value\}"),
        ("cluster.commands.promote.nodes=0", "cluster.nodes=0 is too small"),
    ],
)
def test_wrong_settings_of_a_command_are_refused(site, words, message):
    site("slurm")
    with pytest.raises(ValueError, match=message):
        directives(*MASKS, *OURS, words)


@pytest.mark.parametrize("scheduler", ["slurm", "kubernetes"])
@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("gpus=2", "cluster.gpus_per_node=2"),
        ("num_gpus=4", "cluster.gpus_per_node=4"),
        ("devices=auto", "cluster.gpus_per_node=8"),
        ("device=cuda", "cluster.gpus_per_node=8"),
        ("device=cpu", "cluster.gpus_per_node=0"),
    ],
)
def test_a_habit_is_answered_with_the_key_of_a_cluster_that_can_be_pasted(
    site, scheduler, word, key
):
    site(scheduler)
    words = [*TRAIN, *OURS, "batch=64", "tracking.enabled=false"]
    name = word.partition("=")[0]
    with pytest.raises(ValueError, match=rf"^unknown key {name}: write {key} \("):
        submit.main([*words, word], dry_run=True)
    submit.main([*words, key], dry_run=True)


def test_on_this_machine_a_habit_is_answered_with_its_processes(site):
    with pytest.raises(ValueError, match="unknown key gpus: write processes=2"):
        submit.main([*TRAIN, "gpus=2"], dry_run=True)


@pytest.mark.parametrize("words", [SHARD, MASKS], ids=["shard", "masks"])
def test_nor_on_kubernetes(site, words):
    site("kubernetes")
    ((count, requests),) = pods(*words, "cluster=ours").values()
    assert count == 1 and requests == {"cpu": "1", "memory": "8Gi"}
    made = yaml.safe_load_all(submit.main([*words, "cluster=ours"], dry_run=True))
    (pod,) = (job["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
              for job in made if job["kind"] == "JobSet")  # fmt: skip
    assert "nodeSelector" not in pod
    assert pod["volumes"][1]["emptyDir"]["sizeLimit"] == "1Gi"


# Row 64
def test_each_stage_of_a_chain_is_given_what_it_can_use(site):
    site("slurm")
    found = directives(*CHAIN)
    assert [options["nodes"] for options in found] == ["1", "4", "1", "1", "1"]
    for option in ("gres", "partition", "constraint", "exclusive"):
        assert [option in options for options in found] == [False, True, True, False, False]


def test_what_a_training_says_holds_for_the_stages_after_it_as_far_as_they_can_use_it(site):
    site("slurm")
    place = CHAIN.index("tracking.enabled=false")
    words = [*CHAIN[:place], "cluster.nodes=2", "cluster.time=60", *CHAIN[place:]]
    found = directives(*words)
    assert [options["nodes"] for options in found] == ["1", "2", "1", "1", "1"]
    assert ["time" in options for options in found] == [False, True, True, True, True]


def test_each_stage_of_a_chain_in_pods_is_given_what_it_can_use(site):
    site("kubernetes")
    found = pods(*CHAIN)
    assert {name: count for name, (count, _) in found.items()} == {
        "shard": 1, "train": 4, "evaluate": 1, "register": 1, "promote": 1
    }  # fmt: skip
    gpus = {name: requests.get("nvidia.com/gpu", "0") for name, (_, requests) in found.items()}
    assert gpus == {"shard": "0", "train": "8", "evaluate": "8", "register": "0", "promote": "0"}


@pytest.mark.parametrize("scheduler", ["slurm", "kubernetes"])
def test_fewer_gpus_of_a_node_take_their_share_of_it_through_a_chain(site, scheduler):
    site(scheduler)
    place = CHAIN.index("tracking.enabled=false")
    fewer = ["cluster.nodes=1", "cluster.gpus_per_node=2"]
    words = [*CHAIN[:place], *fewer, *CHAIN[place:]]
    if scheduler == "slurm":
        found = [(o["cpus-per-task"], o["mem"], o.get("gpus-per-node")) for o in directives(*words)]
        expected = [("16", "128G", "2")] * 2
        other = ("1", "8G", None)
    else:
        made = pods(*words).values()
        found = [(r["cpu"], r["memory"], r.get("nvidia.com/gpu")) for _, r in made]
        expected = [("16", "128Gi", "2")] * 2
        other = ("1", "8Gi", None)
    assert found == [other, *expected, other, other]


def test_several_machines_said_of_a_verb_that_takes_one_are_refused_in_one_line(site):
    site("slurm")
    with pytest.raises(
        ValueError, match="shard runs on one node; leave cluster.nodes= out"
    ) as refused:
        directives(*CHAIN[: CHAIN.index("then")], "cluster.nodes=2")
    assert "\n" not in str(refused.value)
