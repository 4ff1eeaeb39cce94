"""`init=`: weights of a run, a checkpoint or a registered model; and whose they were."""

from types import SimpleNamespace

import pytest
import torch
from support.trained import MODEL, finished_run

from pipeline import registry, server
from pipeline.checkpoint import Saver, build_generator, find, folder_at
from pipeline.config import ObjectiveConfig, TrainConfig
from pipeline.method import Method
from pipeline.resume import initialise, resume
from pipeline.trainee import Trainee


def fresh(average=False):
    """A generator of other random weights, in training, with or without an average."""
    torch.manual_seed(99)
    network, ema = build_generator(MODEL), build_generator(MODEL) if average else None
    adam = torch.optim.Adam(network.parameters())
    trainee = Trainee("generator", network, network, adam, ema)
    return Method(ObjectiveConfig(), [], trainee)


def holds(module, tensors):
    return all(torch.equal(tensor, tensors[name]) for name, tensor in module.state_dict().items())


def test_a_runs_newest_weights_are_taken_and_named_by_hash(tmp_path):
    run = finished_run(tmp_path / "first")
    networks = fresh(average=True)
    lineage = initialise(run, str(tmp_path), networks)
    found = find(run)
    assert holds(networks.generator.module, found.read("generator"))
    assert holds(networks.generator.ema, found.read("generator"))  # else it starts from noise
    assert lineage["given"] == run and lineage["images_seen"] == 1000
    assert lineage["sha256"] == found.state["files"]["generator"]["sha256"]


def test_averaged_weights_are_taken_where_there_are_any(tmp_path):
    raw, averaged = build_generator(MODEL), build_generator(MODEL)
    saver = Saver(folder_at(str(tmp_path / "run")), 1)
    files = {"generator": dict(raw.state_dict()), "generator_ema": dict(averaged.state_dict())}
    saver.save(8, files, {"model": MODEL})
    saver.close()
    networks = fresh()
    lineage = initialise(str(tmp_path / "run"), str(tmp_path), networks)
    assert lineage["weights"] == "ema"
    assert holds(networks.generator.module, dict(averaged.state_dict()))


def test_weights_of_another_architecture_are_refused_by_name(tmp_path):
    wider = {"name": "msanet", "width": 0.2}
    run = finished_run(tmp_path / "wide", model=wider)
    with pytest.raises(ValueError, match=r"init=.*wide .*another architecture: \d+ tensors differ"):
        initialise(run, str(tmp_path), fresh())


def test_ranks_that_see_different_checkpoints_do_not_go_on(tmp_path):
    """As where a shared disk shows a node its newest files late: rank 1 would train on old ones."""
    run = folder_at(finished_run(tmp_path / "run"))
    networks = fresh()
    before = {name: tensor.clone() for name, tensor in networks.generator.weights().items()}
    late = SimpleNamespace(rank=1, is_main=False, gather=lambda mine: ["000000002000", mine])
    with pytest.raises(RuntimeError, match="checkpoint 000000002000, which rank 1 does not"):
        resume(TrainConfig(), run, networks, SimpleNamespace(digest="d"), late)
    assert holds(networks.generator.module, before)


@pytest.mark.slow
def test_a_registered_model_is_a_start_and_stays_in_the_lineage(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = str(tmp_path / "runs")
    uri = server.tracking_uri(root)
    run = finished_run(tmp_path / "runs" / "first", uri=uri)
    told = registry.register(run)
    client = server.connect(uri)
    client.set_registered_model_alias(told["name"], "champion", str(told["version"]))
    networks = fresh(average=True)
    lineage = initialise(f"models:/{told['name']}@champion", root, networks)
    expected = find(run).read("generator")
    assert holds(networks.generator.module, expected)
    assert holds(networks.generator.ema, expected)
    assert lineage["model_uri"] == told["model_uri"] and lineage["sha256"] == told["sha256"]
    assert lineage["images_seen"] == "1000" and lineage["given"].endswith("@champion")
