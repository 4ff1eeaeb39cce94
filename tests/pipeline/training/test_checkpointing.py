"""Checkpoints on a disk: what exists, what is skipped, what is kept."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pipeline.config.compose import compose
from pipeline.config.phases import turn_at
from pipeline.runs.checkpoints import (
    build_generator,
    find,
    latest,
    list_checkpoints,
    load_generator,
    pin,
)
from pipeline.runs.folder import folder_at
from pipeline.runs.run_json import update_run_json
from pipeline.training import checkpointing
from pipeline.training.checkpointing import Saver
from pipeline.training.progress import TrainState
from shards.objects import StoreError
from tests.support.objectives import method_of

MODEL = {"name": "msanet", "width": 0.1}


@pytest.fixture
def run(tmp_path):
    return folder_at(str(tmp_path / "run"))


def save(run, images_seen, psnr=None, keep=3, files=None, trains=None):
    saver = Saver(run, keep)
    state = {"model": MODEL, "dataset": "d", "metrics": {} if psnr is None else {"val/psnr": psnr}}
    state |= {} if trains is None else {"trains_image": trains}  # None: of an earlier version
    saver.save(images_seen, files or {"generator": {"weight": torch.ones(3) * images_seen}}, state)
    saver.close()


def seen(run):
    return [c.images_seen for c in list_checkpoints(run.url)]


def test_a_checkpoint_of_a_phase_that_trains_no_image_is_not_the_best(run):
    """Nor kept as such; where there is no other, the best of them."""
    for images, psnr, trains in ((1, 20, None), (2, 21, True), (3, 22, False), (4, 9, True)):
        save(run, images, psnr, keep=1, trains=trains)
    assert seen(run) == [2, 4] and find(run.url, "best").images_seen == 2
    other = folder_at(f"{run.url}-only")
    for images, psnr in ((1, 20), (2, 21), (3, 19)):
        save(other, images, psnr, trains=False)
    assert find(other.url, "best").images_seen == 2


@pytest.mark.parametrize(
    ("images_seen", "trains"), [(3, True), (6, True), (9, False), (12, False), (15, True)]
)
def test_a_checkpoint_says_whether_the_phase_of_its_last_step_trains_the_generator(
    images_seen, trains
):
    """Batches of 3; from 4 to 10 images the discriminator alone."""
    phases = "[{until: 4}, {until: 10, rates: {discriminator: 1.0}}, {until: null, lr: 1.0}]"
    words = ["batch=3", "objective=musical_paper", f"objective.phases={phases}"]
    config, saved = compose("train", words).config, []
    networks = method_of(config.objective, nn.Linear(1, 1), judge=nn.Linear(1, 1))
    for player in networks.players:
        player.optimizer = torch.optim.SGD(player.module.parameters())
    players = config.objective.players
    networks.begin(turn_at(config.objective.phases, images_seen - 3, 3, players))
    checkpointing.save(
        config,
        networks,
        SimpleNamespace(is_main=True, world_size=1),
        SimpleNamespace(save=lambda images, files, facts: saved.append(facts)),
        SimpleNamespace(digest="d"),
        TrainState(images_seen=images_seen),
    )
    assert [facts["trains_image"] for facts in saved] == [trains]


def test_a_checkpoint_is_safetensors_and_json(run):
    save(run, 7)
    folder = run.local / "checkpoints" / "000000000007"
    assert sorted(p.name for p in folder.iterdir()) == ["generator.safetensors", "state.json"]
    assert load_file(folder / "generator.safetensors")["weight"].tolist() == [7, 7, 7]
    state = json.loads((folder / "state.json").read_text())
    assert state["images_seen"] == 7 and len(state["files"]["generator"]["sha256"]) == 64


def test_without_its_state_a_checkpoint_does_not_exist(run):
    save(run, 7)
    save(run, 9)
    (run.local / "checkpoints" / "000000000009" / "state.json").unlink()
    assert seen(run) == [7]
    assert latest(run.url).images_seen == 7


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "state"])
def test_a_corrupt_checkpoint_is_skipped_with_a_warning(run, damage, capsys):
    save(run, 7)
    save(run, 9)
    path = run.local / "checkpoints" / "000000000009" / "generator.safetensors"
    data = path.read_bytes()
    if damage == "flip":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "state":
        path.with_name("state.json").write_text('{"images_seen": ')
    elif damage == "cut":
        path.write_bytes(data[:-4])
    else:
        path.unlink()
    assert latest(run.url).images_seen == 7
    assert "000000000009 (checksum mismatch)" in capsys.readouterr().err


@pytest.mark.s3
def test_an_unreadable_bucket_is_not_corruption_and_deletes_nothing(faults, tmp_path):
    """Else training would go on from an older checkpoint, and the next save drop the newer one."""
    run = folder_at(f"{faults.server.bucket()}/run")
    update_run_json(run.url, pinned=[7])
    save(run, 7)
    save(run, 9)
    denied = {"act": "status", "status": 403, "code": "AccessDenied", "method": "GET", "times": 99}
    for name in ("state.json", "generator.safetensors"):
        faults.set({**denied, "path": f"000000000009/{name}"})
        with pytest.raises(StoreError, match="AccessDenied; check the credentials"):
            latest(run.url)
    faults.set({**denied, "path": "000000000009/state.json"})
    with pytest.raises(StoreError, match="AccessDenied"):
        save(run, 11, keep=1)
    faults.set({**denied, "path": "run.json"})
    with pytest.raises(StoreError, match="AccessDenied"):  # not: "is not JSON", what is pinned
        save(run, 13, keep=1)
    faults.set()
    assert seen(run) == [7, 9, 11, 13]
    assert latest(run.url).images_seen == 13


def test_training_may_change_weights_while_they_are_written(run):
    weight = torch.zeros(1_000_000)
    saver = Saver(run, 3)
    saver.save(1, {"generator": {"weight": weight}}, {"model": MODEL})
    weight += 1
    saver.close()
    assert not latest(run.url).read("generator")["weight"].any()


def test_the_newest_the_best_and_pinned_checkpoints_are_kept(run):
    for n, psnr in ((1, 20.0), (2, 25.0), (3, 21.0), (4, 22.0), (5, 23.0)):
        save(run, n, psnr, keep=2)
        if n == 3:
            pin(run.url, 3)
    assert seen(run) == [2, 3, 4, 5]
    assert find(run.url, "best").images_seen == 2
    assert find(f"{run.url}/checkpoints/best").images_seen == 2
    assert find(run.url, "last").images_seen == 5


def test_files_of_a_killed_writer_are_deleted_with_the_next_checkpoint(run):
    save(run, 7, keep=1)
    base = run.local / "checkpoints"
    (base / "000000000007" / ".state.json.0123456789abcdef.lacuna-tmp").write_text("{")
    (base / "000000000008").mkdir()
    (base / "000000000008" / "generator.safetensors").write_bytes(b"no state was written")
    save(run, 9, keep=1)
    assert [p.name for p in base.iterdir()] == ["000000000009"]


def test_a_corrupt_later_checkpoint_replaces_no_intact_one(run):
    """Training went on from the one before it, and was stopped before it came as far again."""
    save(run, 7, 20.0, keep=1)
    save(run, 9, 30.0, keep=1)
    torn = run.local / "checkpoints" / "000000000009" / "generator.safetensors"
    torn.write_bytes(torn.read_bytes()[:-4])
    save(run, 8, 21.0, keep=1)
    assert latest(run.url).images_seen == 8
    save(run, 9, 22.0, keep=1)  # again, and whole
    assert seen(run) == [9] and latest(run.url).images_seen == 9


def test_nothing_is_deleted_if_the_newest_cannot_be_read_back(run, monkeypatch):
    for n in (1, 2):
        save(run, n, keep=1)
    assert seen(run) == [2]
    monkeypatch.setattr(checkpointing, "is_whole", lambda checkpoint: False)
    save(run, 3, keep=1)
    assert seen(run) == [2, 3]


def test_a_checkpoint_is_also_found_by_its_own_url(run):
    save(run, 7)
    save(run, 9)
    assert find(f"{run.url}/checkpoints/000000000007").images_seen == 7
    assert find(f"{run.url}/checkpoints/last", "7").images_seen == 9
    with pytest.raises(ValueError, match=r"no checkpoint '8': choose from last, best, 7, 9"):
        find(run.url, "8")
    with pytest.raises(ValueError, match="holds no checkpoint"):
        find(str(run.local.parent))


def test_a_generator_comes_back_with_its_weights(run):
    made = build_generator(MODEL)
    averaged = build_generator(MODEL)
    files = {"generator": dict(made.state_dict()), "generator_ema": dict(averaged.state_dict())}
    save(run, 7, files=files)
    for weights, expected in (("raw", made), ("ema", averaged), ("auto", averaged)):
        generator, info = load_generator(run.url, weights=weights)
        assert not generator.training and info["images_seen"] == 7
        for name, tensor in expected.state_dict().items():
            assert torch.equal(generator.state_dict()[name], tensor)


def test_another_architecture_is_refused_naming_a_tensor(run):
    wider = build_generator({"name": "msanet", "width": 0.2})
    save(run, 7, files={"generator": dict(wider.state_dict())})
    with pytest.raises(ValueError, match=r"another architecture: \d+ tensors differ, first "):
        load_generator(run.url)


def test_missing_averaged_weights_are_refused(run):
    save(run, 7)
    with pytest.raises(ValueError, match="no averaged weights: give weights=raw"):
        load_generator(run.url, weights="ema")


def test_a_newer_schema_is_refused(run):
    save(run, 7)
    path = run.local / "checkpoints" / "000000000007" / "state.json"
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(ValueError, match="schema 2, this version reads 1"):
        latest(run.url)
