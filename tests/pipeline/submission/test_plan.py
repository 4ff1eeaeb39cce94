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
SLURM = "sbatch: {gres: 'gpu:a100:8', gpu-bind: closest, constraint: gpu80gb}"
KUBERNETES = "image: r/x@sha256:0\nkind: jobset\nvolumes: {c: /claim}"
SHARD = ["shard", "data=wds", "source=s3://b/p.tar", "out=s3://b/set", "root=s3://b/runs"]
MASKS = ["masks", "out=s3://b/masks", "root=s3://b/runs"]
CHAIN = [*SHARD, "cluster=ours", "then", "train", "experiment=quickstart", "batch=64",
         "tracking.enabled=false", "then", "evaluate", "masks.url=s3://b/masks",
         "then", "promote", "a"]  # fmt: skip


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
        found[part["name"]] = (job["completions"], container["resources"].get("requests", {}))
    return found


# Row 64
@pytest.mark.parametrize("words", [SHARD, MASKS], ids=["shard", "masks"])
def test_a_site_s_gpus_and_nodes_are_not_asked_for_by_a_verb_that_uses_none(site, words):
    site("slurm")
    (options,) = directives(*words, "cluster=ours")
    assert options["nodes"] == "1" and options["constraint"] == "gpu80gb"
    assert not {"gpus-per-node", "gres", "gpu-bind"} & set(options)


@pytest.mark.parametrize("words", [SHARD, MASKS], ids=["shard", "masks"])
def test_nor_on_kubernetes(site, words):
    site("kubernetes")
    ((count, requests),) = pods(*words, "cluster=ours").values()
    assert count == 1 and "nvidia.com/gpu" not in requests


def test_gpus_that_are_said_of_the_very_verb_are_asked_for(site):
    """A partition may take none but jobs with a GPU."""
    site("slurm")
    (options,) = directives(*SHARD, "cluster=ours", "cluster.gpus_per_node=1")
    assert options["gpus-per-node"] == "1" and "gres" not in options
    gres = "cluster.sbatch={gres: 'gpu:1'}"
    (options,) = directives(*SHARD, "cluster=ours", gres)
    assert options["gres"] == "gpu:1" and "gpus-per-node" not in options


# Row 64
def test_each_stage_of_a_chain_is_given_what_it_can_use(site):
    site("slurm")
    shard, train, evaluate, promote = directives(*CHAIN)
    assert [s["nodes"] for s in (shard, train, evaluate, promote)] == ["1", "4", "1", "1"]
    assert ["gres" in s for s in (shard, train, evaluate, promote)] == [False, True, True, False]


def test_what_a_training_says_holds_for_the_stages_after_it_as_far_as_they_can_use_it(site):
    site("slurm")
    place = CHAIN.index("tracking.enabled=false")
    words = [*CHAIN[:place], "cluster.nodes=2", "cluster.time=60", *CHAIN[place:]]
    found = directives(*words)
    assert [options["nodes"] for options in found] == ["1", "2", "1", "1"]
    assert ["time" in options for options in found] == [False, True, True, True]


def test_each_stage_of_a_chain_in_pods_is_given_what_it_can_use(site):
    site("kubernetes")
    found = pods(*CHAIN)
    assert {name: count for name, (count, _) in found.items()} == {
        "shard": 1, "train": 4, "evaluate": 1, "promote": 1
    }  # fmt: skip
    gpus = {name: requests.get("nvidia.com/gpu", "0") for name, (_, requests) in found.items()}
    assert gpus == {"shard": "0", "train": "8", "evaluate": "8", "promote": "0"}


def test_several_machines_said_of_a_verb_that_takes_one_are_refused_in_one_line(site):
    site("slurm")
    with pytest.raises(
        ValueError, match="shard runs on one node; leave cluster.nodes= out"
    ) as refused:
        directives(*CHAIN[: CHAIN.index("then")], "cluster.nodes=2")
    assert "\n" not in str(refused.value)
