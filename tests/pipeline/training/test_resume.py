"""`init=`: weights of a run, a checkpoint or a registered model; and their lineage."""

import pickle
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipeline.common.errors import ConfigError
from pipeline.config.methods.msanet import MsanetObjective
from pipeline.config.schema import RegisterConfig, TrainConfig
from pipeline.registry import register
from pipeline.runs.checkpoints import build_generator, find
from pipeline.runs.folder import folder_at
from pipeline.tracking.client import connect, tracking_uri
from pipeline.training.checkpointing import Saver, checkpoint_files
from pipeline.training.engine import Engine
from pipeline.training.progress import TrainState
from pipeline.training.resume import initialize, resume
from shards import objects, store
from tests.support.objectives import method_of
from tests.support.trained import MODEL, SIMPLE, finished_run


def rank(number, broadcast):
    """An engine of a rank whose broadcasts are `broadcast`."""
    engine = SimpleNamespace(is_main=number == 0, broadcast_object=broadcast)
    engine.from_main = partial(Engine.from_main, engine)
    return engine


ALONE = rank(0, lambda value: value)


def first_rank(sent):
    """A rank 0 whose broadcast values are appended to `sent`."""
    return rank(0, lambda value: sent.append(value) or value)


def fresh(average=False, model=MODEL):
    """A generator of other random weights, in training, with or without an average."""
    torch.manual_seed(99)
    network, ema = build_generator(model), build_generator(model) if average else None
    networks = method_of(MsanetObjective(), network)
    networks.players[0].ema = ema
    networks.players[0].optimizer = torch.optim.Adam(network.parameters())
    return networks


def holds(module, tensors):
    return all(torch.equal(tensor, tensors[name]) for name, tensor in module.state_dict().items())


def test_a_runs_newest_weights_are_taken_and_named_by_hash(tmp_path):
    run = finished_run(tmp_path / "first")
    networks = fresh(average=True)
    lineage = initialize(run, str(tmp_path), networks, ALONE)
    found = find(run)
    assert holds(networks.players[0].module, found.read("generator"))
    assert holds(networks.players[0].ema, found.read("generator"))  # else it starts from noise
    assert lineage["given"] == run and lineage["images_seen"] == 1000
    assert lineage["sha256"] == found.state["files"]["generator"]["sha256"]


def test_averaged_weights_are_preferred(tmp_path):
    raw, averaged = build_generator(MODEL), build_generator(MODEL)
    saver = Saver(folder_at(str(tmp_path / "run")), 1)
    files = {"generator": dict(raw.state_dict()), "generator_ema": dict(averaged.state_dict())}
    saver.save(8, files, {"model": MODEL})
    saver.close()
    networks = fresh()
    lineage = initialize(str(tmp_path / "run"), str(tmp_path), networks, ALONE)
    assert lineage["weights"] == "ema"
    assert holds(networks.players[0].module, dict(averaged.state_dict()))


def test_weights_of_another_architecture_are_refused_by_name(tmp_path):
    wider = {"name": "msanet", "width": 0.2}
    run = finished_run(tmp_path / "wide", model=wider)
    with pytest.raises(ValueError, match=r"init=.*wide .*another architecture: \d+ tensors differ"):
        initialize(run, str(tmp_path), fresh(), ALONE)


def test_the_newest_intact_weights_are_used_with_a_warning_of_corrupt_ones(tmp_path, capsys):
    run = finished_run(tmp_path / "first")
    whole = find(run)
    saver = Saver(folder_at(run), 3)
    saver.save(2000, {"generator": dict(build_generator(MODEL).state_dict())}, {"model": MODEL})
    saver.close()
    torn = tmp_path / "first" / "checkpoints" / "000000002000" / "generator.safetensors"
    torn.write_bytes(torn.read_bytes()[:-4])
    networks = fresh()
    assert initialize(run, str(tmp_path), networks, ALONE)["images_seen"] == 1000
    assert holds(networks.players[0].module, whole.read("generator"))
    assert "skipping corrupt checkpoint" in capsys.readouterr().err
    with pytest.raises(ValueError, match="000000002000/.* is corrupt .*: give another"):
        initialize(str(torn.parent), str(tmp_path), fresh(), ALONE)
    Path(whole.url, "generator.safetensors").unlink()
    with pytest.raises(ConfigError, match="holds no intact checkpoint"):
        initialize(run, str(tmp_path), fresh(), ALONE)


@pytest.mark.s3
def test_weights_in_an_unreadable_bucket_are_not_reported_as_corrupt(faults, tmp_path):
    run = finished_run(tmp_path / "first")
    there = f"{faults.server.bucket()}/run"
    for path in (tmp_path / "first" / "checkpoints").rglob("*.*"):
        store.upload(store.join(there, path.relative_to(run).as_posix()), path)
    denied = {"act": "status", "status": 403, "code": "AccessDenied", "method": "GET", "times": 9}
    faults.set({**denied, "path": "safetensors"})
    for init in (there, store.join(there, "checkpoints", f"{1000:012d}")):
        with pytest.raises(objects.StoreError, match="AccessDenied; check the credentials"):
            initialize(init, str(tmp_path), fresh(), ALONE)


def trained_once():
    """Networks whose optimizer has a state."""
    networks = fresh(average=True)
    for parameter in networks.players[0].module.parameters():
        parameter.grad = torch.ones_like(parameter)
    networks.players[0].optimizer.step()
    return networks


def test_a_resume_reads_each_file_once_for_all_ranks(tmp_path, monkeypatch):
    """Rank 1 sees no folder at all, and has the same weights and moments in the end."""
    run, before = folder_at(str(tmp_path / "run")), trained_once()
    saver = Saver(run, 1)
    state = {**vars(TrainState(images_seen=8)), "model": MODEL, "dataset": "d"}
    saver.save(8, checkpoint_files(before.players), state)
    saver.close()
    reads, sent, read = Counter(), [], store.read
    monkeypatch.setattr(store, "read", lambda url, *a: reads.update([url]) or read(url, *a))
    first = first_rank(sent)
    manifest, networks = SimpleNamespace(digest="d", url="set"), fresh(average=True)
    assert resume(TrainConfig(), run, networks, manifest, first).images_seen == 8
    assert len(reads) == 4 and set(reads.values()) == {1}  # state, weights, average, optimizer
    other, received = fresh(average=True), iter(pickle.loads(pickle.dumps(sent)))
    second = rank(1, lambda given: next(received))
    elsewhere = folder_at(str(tmp_path / "unseen"))
    assert resume(TrainConfig(), elsewhere, other, manifest, second).images_seen == 8
    assert len(reads) == 4 and next(received, None) is None
    for ours in (networks, other):
        for name, tensors in checkpoint_files(ours.players).items():
            expected = checkpoint_files(before.players)[name]
            assert tensors.keys() == expected.keys() and len(tensors) > 50
            assert all(torch.equal(tensor, expected[key]) for key, tensor in tensors.items())


def test_an_error_of_init_on_rank_0_is_raised_on_every_rank(tmp_path):
    sent = []
    first = first_rank(sent)
    with pytest.raises(ConfigError, match="holds no intact checkpoint"):
        initialize(str(tmp_path), str(tmp_path), fresh(), first)
    second = rank(1, lambda _: pickle.loads(error))
    error = pickle.dumps(sent[0])
    with pytest.raises(ConfigError, match="holds no intact checkpoint"):
        initialize(str(tmp_path), str(tmp_path), fresh(), second)


def test_another_dataset_is_refused_with_what_to_give(tmp_path):
    run = folder_at(finished_run(tmp_path / "run"))
    manifest = SimpleNamespace(digest="cd" * 32, url="other")
    with pytest.raises(ConfigError, match=r"by data.url=, or start a new run with run=NEW \(init="):
        resume(TrainConfig(), run, fresh(), manifest, ALONE)


@pytest.mark.slow
def test_a_registered_model_is_a_start_and_stays_in_the_lineage(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = str(tmp_path / "runs")
    uri = tracking_uri(root)
    run = finished_run(tmp_path / "runs" / "first", uri=uri, model=SIMPLE)
    version = register.main(RegisterConfig(run=run))
    client = connect(uri)
    client.set_registered_model_alias(version["name"], "champion", str(version["version"]))
    networks = fresh(average=True, model=SIMPLE)
    lineage = initialize(f"models:/{version['name']}@champion", root, networks, ALONE)
    expected = find(run).read("generator")
    assert holds(networks.players[0].module, expected)
    assert holds(networks.players[0].ema, expected)
    assert lineage["model_uri"] == version["model_uri"] and lineage["sha256"] == version["sha256"]
    assert lineage["images_seen"] == "1000" and lineage["given"].endswith("@champion")
