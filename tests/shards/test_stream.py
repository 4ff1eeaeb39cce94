"""One rank or many, any threads, stopped anywhere: the same samples, the same pixels, once each."""

import gc
import io
import itertools
import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shards.decode import Crop, plan
from shards.manifest import open_manifest
from shards.mask_sets import write_mask_set
from shards.masks import MaskPolicy, draw
from shards.order import Order, mix
from shards.stream import Stream, check_guards, examples, order_of
from tests.support.sets import image_set, jpeg, smooth_image

COUNT = 500
CROP = Crop(32, flip=True)
PLAIN = MaskPolicy("none")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return image_set(tmp_path_factory.mktemp("set"), COUNT)


def stream(manifest, **settings):
    settings = {"batch": 24, "seed": 3, "crop": CROP, "masks": PLAIN, "threads": 0, **settings}
    return Stream(manifest, "train", **settings)


def take(manifest, steps, world=1, **settings):
    """`steps` global batches of `world` ranks, each in its global order, and the last position."""
    ranks = [stream(manifest, rank=rank, world_size=world, **settings) for rank in range(world)]
    found = []
    for _ in range(steps):
        batches = [next(rank) for rank in ranks]
        assert len({len(batch.keys) for batch in batches}) == 1
        assert len({batch.position for batch in batches}) == 1
        found.append([torch.stack(part, 1).flatten(0, 1) for part in list(zip(*batches))[:3]])
    for rank in ranks:
        rank.close()
    return found, batches[0].position


def keys(found):
    return np.concatenate([batch[2].numpy() for batch in found])


def same(left, right):
    return all(torch.equal(a, b) for x, y in zip(left, right) for a, b in zip(x, y))


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_every_sample_comes_once_an_epoch(pictures, threads):
    found, position = take(pictures, 125, batch=12, threads=threads)
    assert position == 3 * COUNT
    for epoch in keys(found).reshape(3, COUNT):
        assert sorted(epoch) == list(range(COUNT))


@pytest.mark.parametrize(
    ("world", "threads"), [(1, 1), (1, 4), (2, 0), (2, 2), (3, 1), (4, 2), (6, 1), (8, 3)]
)
def test_batches_are_bit_identical_for_any_ranks_and_threads(pictures, world, threads):
    masks = MaskPolicy("irregular")
    alone, _ = take(pictures, 30, masks=masks)
    shared, _ = take(pictures, 30, world, masks=masks, threads=threads)
    assert same(alone, shared)


def test_the_order_is_the_pure_function_of_manifest_and_seed(pictures):
    order = order_of(pictures, "train", seed=3)
    starts = np.cumsum([0, *(shard.samples for shard in pictures.splits["train"].shards)])
    expected = [starts[s] + row for epoch in (0, 1) for s, row in order.epoch(epoch)]
    found, _ = take(pictures, 40)
    assert keys(found).tolist() == expected[: 40 * 24]


@pytest.mark.filterwarnings("ignore:5 processes")
def test_a_run_resumed_on_other_worlds_goes_on_to_the_sample(pictures):
    """4 ranks, stopped in mid-epoch; 3; over the epoch's end as 5; 1: as if never stopped."""
    masks = MaskPolicy("square")
    whole, _ = take(pictures, 40, masks=masks, batch=60)
    parts, position = [], 0
    for world, threads, steps in ((4, 1, 5), (3, 0, 7), (5, 2, 11), (1, 1, 17)):
        found, position = take(
            pictures, steps, world, masks=masks, batch=60, threads=threads, position=position
        )
        parts += found
    assert position == 40 * 60 and same(whole, parts)


def test_any_position_is_a_place_to_go_on_from(pictures):
    whole = keys(take(pictures, 50)[0])
    for position in (1, 499, 500, 501, 777):
        found = keys(take(pictures, 3, position=position)[0])
        assert (found == whole[position : position + 72]).all()


def test_prefetched_batches_are_not_counted_as_used(pictures):
    with stream(pictures, threads=2, prefetch=4) as running:
        third = [next(running) for _ in range(3)][-1]
        time.sleep(0.2)  # it makes more of them meanwhile
        assert running.position == third.position == 72


def test_pixels_are_the_stored_images_at_the_crop_of_seed_epoch_and_key(pictures):
    found, _ = take(pictures, 50, masks=MaskPolicy("irregular"))
    for at, (images, masks, numbers) in enumerate(found):
        for i, (pixels, hole, key) in enumerate(zip(images, masks, numbers.tolist())):
            if (at * 24 + i) % 17:
                continue
            epoch = (at * 24 + i) // COUNT
            cut = plan(CROP, 40, 40, mix(3, epoch, 3, key))
            whole = np.asarray(Image.open(io.BytesIO(jpeg(smooth_image(key)))).convert("RGB"))
            expected = whole[cut.top : cut.top + 32, cut.left : cut.left + 32]
            expected = expected[:, ::-1] if cut.flip else expected
            assert (pixels.numpy() == expected).all()
            assert (hole.numpy() == draw(MaskPolicy(), 32, 32, 3, epoch, key)).all()


def test_crops_and_holes_change_from_epoch_to_epoch(pictures):
    found, _ = take(pictures, 50, batch=20, masks=MaskPolicy("irregular"))
    images, masks, numbers = (torch.cat(part) for part in zip(*found))
    first, second = (numbers[e * COUNT : (e + 1) * COUNT].argsort() for e in (0, 1))
    changed = (images[:COUNT][first] != images[COUNT:][second]).flatten(1).any(1)
    assert changed.float().mean() > 0.9
    assert (masks[:COUNT][first] != masks[COUNT:][second]).flatten(1).any(1).all()


def test_a_batch_has_the_promised_shapes_and_types(pictures):
    batch = next(stream(pictures, batch=8, world_size=2, masks=MaskPolicy("center")))
    assert batch.images.shape == (4, 32, 32, 3) and batch.images.dtype == torch.uint8
    assert batch.masks.shape == (4, 32, 32) and batch.masks.dtype == torch.uint8
    assert batch.masks.sum() == 4 * 16 * 16 and batch.masks.max() == 1
    assert batch.keys.dtype == torch.int64 and batch.images.is_contiguous()


def test_masks_can_come_from_a_set(pictures, tmp_path):
    write_mask_set(str(tmp_path), size=32, per_bucket=4, seed=0)
    policy = MaskPolicy("external", low=0.1, high=0.2, url=str(tmp_path))
    alone, _ = take(pictures, 4, masks=policy)
    shared, _ = take(pictures, 4, 2, masks=policy, threads=2)
    ratios = alone[0][1].float().mean((1, 2))
    assert ratios.min() > 0.1 and ratios.max() <= 0.2 and same(alone, shared)


def test_memory_is_used_again_but_never_under_a_tensor_that_somebody_holds(pictures):
    with stream(pictures, threads=1) as running:
        held = [next(running) for _ in range(6)]
        copies = [batch.images.clone() for batch in held]
        rows = held[0].images[3]
        addresses = {next(running).images.data_ptr() for _ in range(12)}
        assert all(torch.equal(batch.images, copy) for batch, copy in zip(held, copies))
        assert len(addresses) < 8
        del held
        for _ in range(10):
            next(running)
        assert torch.equal(rows, copies[0][3])


def test_closing_ends_all_threads_at_once(pictures):
    before = set(threading.enumerate())
    with stream(pictures, threads=3) as running:
        next(running)
        assert len(set(threading.enumerate()) - before) == 3
    assert set(threading.enumerate()) == before
    with pytest.raises(ValueError, match="closed"):
        next(running)


def test_a_stream_that_is_dropped_ends_its_threads(pictures):
    before = set(threading.enumerate())
    next(stream(pictures, threads=2))
    gc.collect()
    assert set(threading.enumerate()) == before


def test_a_stream_nobody_asks_of_starts_nothing(pictures):
    before = set(threading.enumerate())
    idle = stream(pictures, threads=2)
    assert set(threading.enumerate()) == before
    idle.close()


# --- guards and refusals --------------------------------------------------------------------------


def test_guards_are_json_and_tell_another_order_by_name(pictures):
    saved = json.loads(json.dumps(stream(pictures).guards()))
    check_guards(saved, stream(pictures, batch=48, threads=2).guards())
    with pytest.raises(ValueError, match="seed 3 → 4"):
        check_guards(saved, stream(pictures, seed=4).guards())
    with pytest.raises(ValueError, match="lanes 192 → 48"):
        check_guards(saved, stream(pictures, lanes=48).guards())
    with pytest.raises(ValueError, match="digest"):
        check_guards(saved, {**saved, "digest": "0" * 64})


def test_a_world_that_does_not_divide_the_lanes_is_warned_of_once(pictures):
    with (
        pytest.warns(UserWarning, match="read by 5 of them.*4 or 6") as caught,
        stream(pictures, world_size=5, batch=20) as opened,
    ):
        next(opened), next(opened)
    assert len(caught) == 1
    with pytest.warns(UserWarning, match="128"):
        stream(pictures, world_size=128, batch=128)


def test_settings_that_cannot_be_are_refused(pictures):
    for settings, named in (
        ({"batch": 10, "world_size": 4}, "multiple of 4"),
        ({"rank": 2, "world_size": 2}, "rank=2"),
        ({"threads": -1}, "threads=-1"),
        ({"position": -5}, "position=-5"),
    ):
        with pytest.raises(ValueError, match=named):
            stream(pictures, **settings)
    with pytest.raises(ValueError, match="no split 'test'.*train"):
        Stream(pictures, "test", batch=2, seed=0, crop=CROP, masks=PLAIN)


@pytest.mark.parametrize("threads", [0, 2])
def test_a_image_smaller_than_the_crop_is_named(pictures, threads):
    running = stream(pictures, crop=Crop(48), threads=threads)
    with pytest.raises(
        ValueError, match=r"shard-\d+.tar: sample \d{9} at byte \d+: the image of 40x40"
    ):
        next(running)
    with stream(pictures, crop=Crop(48, resize_short=50), threads=threads) as larger:
        assert next(larger).images.shape[1] == 48


# --- what others read, what evaluation reads ------------------------------------------------------


def test_plain_webdataset_opens_the_shards(pictures):
    import webdataset

    urls = [pictures.shard_url("train", shard) for shard in pictures.splits["train"].shards]
    read = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode("rgb8")
    found = {sample["__key__"]: sample["jpg"] for sample in read}
    ours = {f"{key:09d}": pixels for key, pixels in examples(pictures, "train")}
    assert set(found) == set(ours) and len(ours) == COUNT
    assert all((found[key] == ours[key]).all() for key in itertools.islice(ours, 0, None, 50))


def test_examples_come_once_in_stored_order_shared_among_ranks(pictures):
    assert [key for key, _ in examples(pictures, "train", threads=3)] == list(range(COUNT))
    for world in (2, 3, 7):
        shares = [
            [key for key, _ in examples(pictures, "train", rank=rank, world_size=world, limit=90)]
            for rank in range(world)
        ]
        assert [share[0] for share in shares] == list(range(world))
        assert sorted(key for share in shares for key in share) == list(range(90))


def test_examples_can_be_cropped_and_given_up_halfway(pictures):
    before = set(threading.enumerate())
    walk = examples(pictures, "train", crop=Crop(32, "center"), threads=2)
    key, pixels = next(walk)
    whole = np.asarray(Image.open(io.BytesIO(jpeg(smooth_image(key)))).convert("RGB"))
    assert (pixels == whole[4:36, 4:36]).all()
    walk.close()
    assert set(threading.enumerate()) == before


def test_planning_reads_the_manifest_only(pictures, tmp_path):
    """Nothing of the set but its manifest is needed to know the order."""
    manifest = Path(pictures.url, "manifest.json").read_bytes()
    (tmp_path / "manifest.json").write_bytes(manifest)
    alone = open_manifest(str(tmp_path))
    there, here = (order_of(one, "train", seed=1) for one in (pictures, alone))
    assert isinstance(here, Order) and list(there.epoch(2)) == list(here.epoch(2))
