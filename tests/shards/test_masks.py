import io

import cv2
import numpy as np
import pytest
from PIL import Image

from shards import store
from shards.manifest import open_manifest, read_index
from shards.mask_sets import MaskSet, draw_masks, hole_sampler, write_mask_set
from shards.masks import (
    BUCKETS,
    FIXED,
    NAMES,
    MaskPolicy,
    border_width,
    bucket,
    center,
    draw,
    irregular,
    square,
)


def test_bucket_names_are_the_contract():
    printed = "(0.01,0.1] (0.1,0.2] (0.2,0.3] (0.3,0.4] (0.4,0.5] (0.5,0.6] fixed"
    assert " ".join([*NAMES, FIXED]) == printed


def test_buckets_are_open_below_and_closed_above():
    assert bucket(0.01) is None and bucket(0.0101) == "(0.01,0.1]"
    assert bucket(0.1) == "(0.01,0.1]" and bucket(0.1000001) == "(0.1,0.2]"
    assert bucket(0.6) == "(0.5,0.6]" and bucket(0.6001) is None


@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize(("low", "high"), BUCKETS)
@pytest.mark.parametrize("constrained", [False, True])
def test_every_mask_lies_in_its_bucket(size, low, high, constrained):
    border = border_width(size, size) if constrained else 0
    ratios = set()
    for number in range(40):
        hole = irregular(size, size, low, high, border, (7, number))
        assert (
            hole.shape == (size, size) and hole.dtype == np.uint8 and set(np.unique(hole)) == {0, 1}
        )
        assert low < hole.sum() / size**2 <= high
        ratios.add(int(hole.sum()))
        if border:
            inner = hole[border:-border, border:-border]
            assert inner.sum() == hole.sum()
    assert len(ratios) > 30


def test_border_constraint_is_fifty_pixels_at_512():
    assert border_width(512, 512) == 50 and border_width(256, 256) == 25


def test_hole_counts_are_exact_where_only_one_fits():
    """A bucket one pixel wide leaves no freedom but the shape."""
    pixels = 48 * 80
    for count in (1, 2, 50, 1000, 3000, pixels):
        hole = irregular(48, 80, (count - 0.5) / pixels, count / pixels, 0, (1, count))
        assert hole.sum() == count


def test_bounds_are_kept_to_the_last_pixel_whatever_floats_round_to():
    for pixels, side in ((100, 10), (49, 7)):
        for count in range(1, pixels):
            low, high = count / pixels, (count + 1) / pixels
            total = int(irregular(side, side, low, high, 0, (count,)).sum())
            assert low < total / pixels <= high and total == count + 1


def test_ratios_are_uniform_over_the_range():
    ratios = np.array([draw(MaskPolicy(), 64, 64, 3, 0, key).mean() for key in range(800)])
    assert ratios.min() > 0.01 and ratios.max() <= 0.6
    counts, _ = np.histogram(ratios, bins=8, range=(0.01, 0.6))
    # chi-square, 7 degrees of freedom: 24.3 is its 0.999 quantile
    assert ((counts - 100) ** 2 / 100).sum() < 24.3


def test_masks_cover_all_of_the_image_about_alike():
    total = np.mean([irregular(64, 64, 0.2, 0.4, 0, (9, n)) for n in range(600)], axis=0)
    edge = np.concatenate([total[:4].ravel(), total[-4:].ravel()])
    assert 0.85 < edge.mean() / total[24:40, 24:40].mean() < 1.15


def test_a_training_mask_belongs_to_its_seed_epoch_and_sample():
    policy = MaskPolicy()
    first = draw(policy, 64, 64, 1, 2, 3)
    assert (first == draw(policy, 64, 64, 1, 2, 3)).all()
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4), (3, 2, 1)):
        assert (first != draw(policy, 64, 64, *other)).any()


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0.0), (1.0, 1.0), (0.5, 0.5)])
def test_the_border_constraint_holds_for_its_share(share, expected):
    width = border_width(64, 64)

    def free(key):
        hole = draw(MaskPolicy(low=0.3, border=share), 64, 64, 1, 0, key).copy()
        hole[width:-width, width:-width] = 0
        return not hole.any()

    kept = np.mean([free(key) for key in range(200)])
    assert abs(kept - expected) < (0.12 if 0 < share < 1 else 0.02)


def test_center_is_the_middle_half_by_half():
    hole = center(256, 256)
    assert hole[64:192, 64:192].all() and hole.sum() == 128 * 128


def test_squares_are_a_quarter_wholly_inside_and_anywhere():
    tops = set()
    for number in range(300):
        hole = square(64, 64, (0, number))
        rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
        assert hole.sum() == 32 * 32 and len(rows) == len(columns) == 32
        tops.add(int(rows[0]))
    assert min(tops) == 0 and max(tops) == 32


def test_a_center_and_rectangles_have_the_sides_that_are_asked_for():
    hole = draw(MaskPolicy("center", sides=[56]), 128, 128, 1, 0, 0)
    assert hole[36:92, 36:92].all() and hole.sum() == 56 * 56
    policy, seen = MaskPolicy("square", sides=[20, 25]), set()
    for key in range(300):
        hole = draw(policy, 64, 64, 1, 0, key)
        rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
        assert hole.sum() == len(rows) * len(columns)
        assert np.ptp(rows) == len(rows) - 1 and np.ptp(columns) == len(columns) - 1
        seen.add((len(rows), len(columns)))
    assert seen == {(a, b) for a in range(20, 26) for b in range(20, 26)}


@pytest.mark.parametrize(
    ("kind", "sides"), [("irregular", [9]), ("center", [8, 9]), ("square", [9]), ("center", [0])]
)
def test_sides_that_a_kind_of_hole_does_not_have_are_refused(kind, sides):
    with pytest.raises(ValueError, match="does not fit masks.kind"):
        MaskPolicy(kind, sides=sides)


def test_what_cannot_be_drawn_is_refused_in_a_line():
    with pytest.raises(ValueError, match="hole ratio"):
        irregular(4, 4, 0.01, 0.02, 0, (1,))
    with pytest.raises(ValueError, match="does not fit"):
        irregular(64, 64, 0.5, 0.6, 20, (1,))
    with pytest.raises(ValueError, match="masks.high"):
        MaskPolicy(high=0.7)
    MaskPolicy(high=0.7, border=0)
    with pytest.raises(ValueError, match="masks.kind"):
        MaskPolicy(kind="blobs")
    with pytest.raises(ValueError, match="masks.url"):
        MaskPolicy(kind="external")


# --- sets -----------------------------------------------------------------------------------------


def test_a_mask_set_holds_each_bucket_with_exact_ratios(tmp_path):
    done = write_mask_set(str(tmp_path), size=64, per_bucket=6, seed=4)
    manifest = open_manifest(str(tmp_path))
    assert manifest.digest == done.manifest.digest and manifest.kind == "masks"
    shard = manifest.splits["masks"].shards[0]
    index = read_index(manifest, "masks", shard).to_pylist()
    tar = store.read(manifest.shard_url("masks", shard))
    assert len(index) == 7 * 6
    for row in index:
        png = Image.open(io.BytesIO(tar[row["offset"] : row["offset"] + row["size"]]))
        pixels = np.asarray(png)
        assert png.mode in ("L", "1") and set(np.unique(pixels).astype(int)) <= {0, 1, 255}
        assert row["ratio"] == (pixels > 0).mean()
        expected = FIXED if row["bucket"] == FIXED else bucket(row["ratio"])
        assert row["bucket"] == expected
    for name in (*NAMES, FIXED):
        assert sum(row["bucket"] == name for row in index) == 6
    constrained = [row for row in index if row["src"].endswith("-border")]
    assert len(constrained) == 6 * 3


def test_a_mask_set_is_the_same_bytes_when_made_again(tmp_path):
    digests = {
        write_mask_set(str(tmp_path / name), size=48, per_bucket=3, seed=seed).manifest.digest
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    }
    assert len(digests) == 2


def test_a_larger_set_begins_with_the_smaller_one():
    few = {mask.src: mask.hole for mask in draw_masks(48, 2, seed=1)}
    many = {mask.src: mask.hole for mask in draw_masks(48, 4, seed=1)}
    assert all((many[src] == hole).all() for src, hole in few.items())


def test_an_opened_set_gives_the_masks_that_were_drawn(tmp_path):
    write_mask_set(str(tmp_path), size=48, per_bucket=3, seed=1)
    masks = MaskSet(open_manifest(str(tmp_path)))
    for place, mask in enumerate(draw_masks(48, 3, seed=1)):
        assert (masks[place] == mask.hole).all() and masks.buckets[place] == mask.bucket
        assert masks.ratios[place] == mask.hole.mean()


def test_training_can_take_its_masks_from_a_set(tmp_path):
    write_mask_set(str(tmp_path), size=48, per_bucket=4, seed=1)
    pick = hole_sampler(MaskPolicy("external", low=0.2, high=0.4, url=str(tmp_path)), 48, 48)
    chosen = [pick(1, 0, key) for key in range(60)]
    assert all(0.2 < hole.mean() <= 0.4 for hole in chosen)
    assert len({hole.tobytes() for hole in chosen}) == 8  # not the squares
    assert (pick(1, 0, 7) == chosen[7]).all()
    smaller = hole_sampler(MaskPolicy("external", url=str(tmp_path)), 24, 24)(1, 0, 3)
    assert smaller.shape == (24, 24) and set(np.unique(smaller)) == {0, 1}
    with pytest.raises(ValueError, match="no irregular mask"):
        hole_sampler(MaskPolicy("external", low=0.9, high=1.0, url=str(tmp_path)), 48, 48)


def test_a_set_of_images_is_no_mask_set(tmp_path):
    from tests.support.sets import image_set

    with pytest.raises(ValueError, match="not masks"):
        MaskSet(image_set(tmp_path, 3))


def test_stored_masks_are_compact():
    hole = irregular(256, 256, 0.3, 0.4, 0, (1,))
    assert len(cv2.imencode(".png", hole * 255)[1]) < 4000
