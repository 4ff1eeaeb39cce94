"""Masks of LaMa's and MAT's protocols: pinned, and distributed as the papers' programs draw."""

import hashlib

import numpy as np
import pytest

from shards import field_masks

# sha256 of the first 64 masks of seed 0, the mean hole ratio of 1,000 and its deciles; then both of
# 4,000 (medium and thick at 512: 1,000) masks of the papers' own programs, run as their
# configurations say (advimman/lama 786f593, fenglinglwb/MAT). Theirs without cropping.
PINNED = {
    ("lama", 256, "thin"): (
        "dda259d5f1b2272c",
        0.2917,
        [0.11, 0.166, 0.214, 0.251, 0.296, 0.346, 0.382, 0.419, 0.456],
    ),
    ("lama", 256, "medium"): (
        "c894e080a94048cf",
        0.2417,
        [0.034, 0.078, 0.19, 0.233, 0.267, 0.296, 0.321, 0.355, 0.396],
    ),
    ("lama", 256, "thick"): (
        "8787f1c1100537de",
        0.2612,
        [0.091, 0.134, 0.182, 0.222, 0.253, 0.294, 0.341, 0.392, 0.449],
    ),
    ("lama", 512, "thin"): (
        "3526ca1fb627137d",
        0.2885,
        [0.1, 0.162, 0.209, 0.247, 0.294, 0.344, 0.384, 0.42, 0.457],
    ),
    ("lama", 512, "medium"): (
        "8ba4ffac13a47c91",
        0.2743,
        [0.069, 0.124, 0.188, 0.248, 0.296, 0.336, 0.372, 0.408, 0.446],
    ),
    ("lama", 512, "thick"): (
        "bb835655ca050f93",
        0.2587,
        [0.081, 0.128, 0.174, 0.218, 0.256, 0.295, 0.338, 0.39, 0.447],
    ),
    ("mat", 512, "small"): (
        "37f4a932c5e25fc6",
        0.2221,
        [0.057, 0.097, 0.129, 0.163, 0.197, 0.231, 0.273, 0.323, 0.427],
    ),
    ("mat", 512, "large"): (
        "8f87382b9d2ebcc4",
        0.3998,
        [0.162, 0.235, 0.298, 0.345, 0.397, 0.442, 0.494, 0.553, 0.642],
    ),
}
PAPERS = {
    ("mat", 512, "small"): (0.2204, [0.057, 0.1, 0.132, 0.162, 0.193, 0.229, 0.274, 0.329, 0.42]),
    ("mat", 512, "large"): (
        0.3993,
        [0.164, 0.239, 0.299, 0.348, 0.397, 0.443, 0.494, 0.554, 0.637],
    ),
    ("lama", 256, "thin"): (0.2878, [0.099, 0.153, 0.205, 0.253, 0.298, 0.34, 0.384, 0.42, 0.455]),
    ("lama", 256, "medium"): (
        0.2384,
        [0.033, 0.064, 0.184, 0.231, 0.265, 0.295, 0.324, 0.356, 0.396],
    ),
    ("lama", 256, "thick"): (
        0.2657,
        [0.088, 0.138, 0.183, 0.223, 0.265, 0.304, 0.349, 0.395, 0.447],
    ),
    ("lama", 512, "thin"): (
        0.2897,
        [0.096, 0.152, 0.208, 0.257, 0.301, 0.346, 0.387, 0.424, 0.459],
    ),
    ("lama", 512, "medium"): (
        0.2755,
        [0.063, 0.118, 0.191, 0.247, 0.296, 0.336, 0.375, 0.417, 0.453],
    ),
    ("lama", 512, "thick"): (
        0.2634,
        [0.075, 0.131, 0.179, 0.22, 0.265, 0.305, 0.349, 0.399, 0.453],
    ),
}


@pytest.mark.parametrize(("kind", "size", "bucket"), PINNED)
def test_masks_are_pinned_and_distributed_as_the_papers_programs_draw_them(kind, size, bucket):
    masks = [field_masks.draw(kind, size, bucket, 0, i) for i in range(1000)]
    assert {(m.shape, m.dtype.str) for m in masks} == {((size, size), "|u1")}
    digest, mean, deciles = PINNED[kind, size, bucket]
    first = hashlib.sha256(np.stack(masks[:64]).tobytes()).hexdigest()
    assert first.startswith(digest), "other pixels: raise VERSION and the protocols' version"
    ratios = np.array([mask.mean() for mask in masks])
    found = np.percentile(ratios, range(10, 100, 10))
    assert (round(ratios.mean(), 4), found.round(3).tolist()) == (mean, deciles)

    mean, deciles = PAPERS[kind, size, bucket]
    # Four standard errors of both means; a decile of so few varies about twice as much.
    error = 4 * ratios.std() * np.sqrt(2 / 1000)
    assert ratios.mean() == pytest.approx(mean, abs=error)
    assert found == pytest.approx(deciles, abs=2 * error)


def test_a_mask_depends_on_its_seed_and_number_alone():
    for kind, size in (("lama", 256), ("mat", 512)):
        drawn = {(b, i): m for b, i, m in field_masks.masks(kind, size, 2, 5)}
        bucket = list(field_masks.KINDS[kind, size])[-1]
        assert np.array_equal(drawn[bucket, 1], field_masks.draw(kind, size, bucket, 5, 1))
        assert not np.array_equal(drawn[bucket, 1], drawn[bucket, 0])
        assert not np.array_equal(drawn[bucket, 1], field_masks.draw(kind, size, bucket, 6, 1))
