import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from models import masking
from pipeline.evaluation import results
from pipeline.evaluation.pairs import make_pairs
from shards.manifest import open_manifest
from shards.mask_sets import open_masks
from shards.masks import NAMES
from tests.support.pairs import BUCKETS, IMAGES, SIZE, crops, hole, image_set, mask_set, score


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    out = tmp_path_factory.mktemp("sets")
    return image_set(out / "images", crops()), mask_set(out / "masks")


@pytest.fixture(scope="module")
def pairs(sets):
    images, masks = sets
    return make_pairs(open_manifest(images), "val", open_manifest(masks), BUCKETS, size=SIZE)


def gray(image, mask):
    return torch.full_like(image, 0.5)


def blur(image, mask):
    """Depends on neighboring pixels, not on the other images of the batch."""
    return torch.nn.functional.avg_pool2d(image, 9, 1, 4)


def test_every_image_gets_one_mask_of_every_bucket_in_key_order(pairs):
    assert len(pairs) == IMAGES * len(BUCKETS)
    assert [p.image.key for p in pairs.pairs] == sorted(p.image.key for p in pairs.pairs)
    assert len({p.name for p in pairs.pairs}) == len(pairs)
    assert pairs.pairs[9].name == "000000001-b2" and pairs.pairs[9].bucket == "(0.2,0.3]"
    assert pairs.reused
    first, fourth = pairs.pairs[0], pairs.pairs[3 * len(BUCKETS)]
    assert first.mask == fourth.mask  # a bucket has three masks, which are reused


def test_scores_equal_scikit_image_on_the_composite(blurred):
    image, bucket = crops()[1], BUCKETS[4]
    mask = hole(bucket, 1)
    erased = torch.from_numpy(np.where(mask[..., None], 0, image)).permute(2, 0, 1)[None] / 255
    raw = blur(erased, None)[0].permute(1, 2, 0).numpy()
    result = np.where(mask[..., None], np.round(raw * 255).astype(np.uint8), image)
    row = blurred.filter(pa.compute.equal(blurred["name"], "000000001-b4")).to_pylist()[0]
    assert row["bucket"] == bucket and row["ratio"] == mask.mean()
    assert row["psnr"] == pytest.approx(peak_signal_noise_ratio(image, result, data_range=255))
    wang = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    ssim = structural_similarity(image, result, data_range=255, channel_axis=2, **wang)
    assert row["ssim_gauss11_rgb"] == pytest.approx(ssim, abs=1e-6)
    difference = np.abs(image.astype(float) - result)
    assert row["l1"] == pytest.approx(difference.mean() / 2.55)
    assert row["l1_hole"] == pytest.approx(difference[mask == 1].mean() / 2.55)


@pytest.fixture(scope="module")
def blurred(pairs):
    return score(blur, pairs, batch=4)


@pytest.mark.parametrize("world_size", [2, 7])
def test_any_world_size_gives_the_same_table(pairs, blurred, world_size):
    ranks = [score(blur, pairs, 4, rank=r, world_size=world_size) for r in range(world_size)]
    assert sum(t.num_rows for t in ranks) == len(pairs)
    assert results.merge(reversed(ranks), len(pairs)).equals(results.merge([blurred], len(pairs)))


def test_the_pixels_of_the_hole_never_reach_the_model(pairs):
    def check_erased(image, mask):
        assert torch.equal(image, masking.erase(image, mask))
        return image

    score(check_erased, pairs, batch=8)


def test_a_perfect_model_reaches_the_cap_and_a_gray_one_gets_worse_with_the_hole(pairs):
    originals = torch.from_numpy(np.stack([c for c in crops() for _ in BUCKETS]))

    def perfect(image, mask, done=[0]):  # noqa: B006
        start, done[0] = done[0], done[0] + len(image)
        return originals[start : done[0]].permute(0, 3, 1, 2) / 255

    best = results.summarize(score(perfect, pairs, batch=8))
    assert best["mean6"]["psnr"] == 100 and best["mean6"]["l1"] == 0
    plain = results.summarize(score(gray, pairs, batch=8))
    psnr = [plain["buckets"][name]["psnr"] for name in NAMES]
    assert psnr == sorted(psnr, reverse=True)
    assert plain["mean6"]["psnr"] == pytest.approx(np.mean(psnr))
    assert plain["mean6"]["n"] == IMAGES


def test_the_mean_of_six_of_the_published_rows_is_the_published_mean():
    """Table 6's full model on Places2 and tables 4 and 5, to the rounding of two decimals."""
    psnr = [35.80, 30.03, 26.88, 24.69, 22.91, 20.51]
    columns = {name: [0.0] * 6 for name in results.schema().names}
    columns |= {"pair": range(6), "name": list("abcdef"), "key": [1] * 6, "mask_key": range(6)}
    columns |= {"bucket": list(NAMES), "psnr": psnr}
    table = pa.table(columns, schema=results.schema())
    assert results.summarize(table)["mean6"]["psnr"] == pytest.approx(26.802, abs=0.005)


def test_a_table_is_read_back_from_its_file_with_its_facts(pairs, tmp_path):
    table = score(gray, pairs, batch=8)
    url = str(tmp_path / "scores.parquet")
    results.save(url, table, {"protocol": "msanet", "pairs_digest": pairs.digest})
    again, facts = results.load(url)
    assert again.select(table.column_names).equals(table)
    assert facts["pairs_digest"] == pairs.digest
    (tmp_path / "other.parquet").write_bytes(b"PAR")
    with pytest.raises(ValueError, match="is not a Parquet file"):
        results.load(str(tmp_path / "other.parquet"))
    with pytest.raises(ValueError, match=r"evaluation .*none\.parquet does not exist"):
        results.load(str(tmp_path / "none.parquet"))


def test_the_digest_follows_contents_and_not_the_way_they_are_sharded(sets, pairs, tmp_path):
    images, masks = (open_manifest(url) for url in sets)
    image_set(tmp_path / "i", crops(), per_shard=5)
    other = open_manifest(str(tmp_path / "i"))
    assert other.digest != images.digest
    assert make_pairs(other, "val", masks, BUCKETS, SIZE).digest == pairs.digest
    assert make_pairs(images, "val", masks, BUCKETS, SIZE, limit=4).digest != pairs.digest
    assert make_pairs(images, "val", masks, BUCKETS[::-1], SIZE).digest != pairs.digest


def test_the_center_protocol_needs_no_mask_set(sets):
    pairs = make_pairs(open_manifest(sets[0]), "val", None, ["center"], SIZE)
    table = score(gray, pairs, batch=8)
    assert table["ratio"].to_pylist() == [0.25] * IMAGES
    loaded = pairs.load(0, 1)
    assert loaded.masks[0, 16:48, 16:48].all() and loaded.masks.sum() == 32 * 32
    assert results.summarize(table)["mean6"] is None


def test_a_user_s_mistake_gives_one_line(sets, tmp_path):
    images, masks = (open_manifest(url) for url in sets)
    cases = [
        (("test", masks, BUCKETS, SIZE), "no split 'test': set split= to one of val"),
    ]
    for arguments, line in cases:
        with pytest.raises(ValueError, match=line):
            make_pairs(images, *arguments)
    with pytest.raises(ValueError, match="holds images, not masks"):
        open_masks(sets[0], BUCKETS)
    with pytest.raises(ValueError, match=r"has no masks in \(0.6,0.7\]: make or import them"):
        open_masks(sets[1], [*BUCKETS, "(0.6,0.7]"])
    with pytest.raises(ValueError, match="masks are 64×64, but protocol.size=32"):
        make_pairs(images, "val", masks, BUCKETS, 32).load(0, 1)
    with pytest.raises(ValueError, match="image 0: the image of 64x64 pixels is smaller"):
        make_pairs(images, "val", None, ["center"], 128).load(0, 1)


def test_a_flipped_byte_in_a_shard_is_detected(sets, tmp_path):
    crop = cv2.GaussianBlur(crops()[0], (5, 5), 2)  # bytes no other test has cached
    image_set(tmp_path / "i", [crop])
    tar = tmp_path / "i" / "val" / "shard-000000.tar"
    damaged = bytearray(tar.read_bytes())
    damaged[512 + 700] ^= 1
    tar.write_bytes(damaged)
    pairs = make_pairs(open_manifest(str(tmp_path / "i")), "val", None, ["center"], SIZE)
    with pytest.raises(ValueError, match="differs from its index"):
        pairs.load(0, 1)
