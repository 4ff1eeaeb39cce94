"""Properties that hold for any input: order, masks, configuration, metrics, splits, promotion.

Examples are drawn by Hypothesis from a fixed seed.
"""

from collections import Counter
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio

from pipeline.config.compose import compose
from pipeline.evaluation import metrics
from pipeline.registry import gate, history
from shards.masks import BUCKETS, NAMES, bucket, irregular
from shards.order import Order, rank_positions
from shards.sources import splits
from shards.sources.published import hold_out
from tests.support import trained

few = partial(
    settings,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


# --- order ----------------------------------------------------------------------------------------


@few(max_examples=60)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any),
    st.integers(0, 2**64 - 1),
    st.integers(1, 12),
    st.integers(1, 3),
    st.sampled_from([1, 500, 10**6]),
    st.data(),
)
def test_each_sample_comes_once_whatever_ranks_read_and_where_they_resumed(
    samples, seed, lanes, window, block, data
):
    order = Order(samples, [100 * n for n in samples], seed=seed, lanes=lanes, window=window,
                  block_bytes=block)  # fmt: skip
    position, places = 0, []
    while position < 2 * len(order):  # world and batch change at every resume
        world = data.draw(st.integers(1, 5))
        batch = world * data.draw(st.integers(1, 1 + len(order) // world))
        for rank in range(world):
            places += rank_positions(position, batch, rank, world)
        position += batch
    assert sorted(places) == list(range(position))
    for epoch in (0, 1):
        seen = Counter(order.epoch(epoch))
        assert set(seen.values()) == {1}
        assert seen == Counter((s, r) for s, n in enumerate(samples) for r in range(n))


# --- masks ----------------------------------------------------------------------------------------


@few(max_examples=25)
@given(
    st.sampled_from(list(zip(BUCKETS, NAMES))),
    st.integers(64, 96),
    st.integers(64, 96),
    st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=3),
)
def test_a_mask_s_ratio_is_within_its_bucket(which, height, width, words):
    (low, high), name = which
    mask = irregular(height, width, low, high, 0, words)
    assert mask.shape == (height, width) and set(np.unique(mask)) <= {0, 1}
    ratio = int(mask.sum()) / mask.size
    assert low < ratio <= high and bucket(ratio) == name


# --- configuration --------------------------------------------------------------------------------


words = st.fixed_dictionaries({}, optional={
    "batch": st.integers(1, 64).map(lambda n: 4 * n),
    "seed": st.integers(0, 2**31),
    "max_images": st.integers(1, 10**9),
    "model.width": st.sampled_from([0.1, 0.25, 1.0]),
    "masks.low": st.floats(0.0, 0.2),
    "masks.high": st.floats(0.25, 0.5),
    "objective.style": st.floats(0, 1e6, allow_nan=False),
    "checkpoint.every_images": st.integers(1, 10**6),
    "data.url": st.text("abc 'é$[]{}:,#=~!%@&*", min_size=1, max_size=12).map("sets/{}".format),
    "run": st.sampled_from(["runs/a b", "s3://bucket/x", "runs/1e3", "runs/null"]),
})  # fmt: skip


def quoted(value):
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)


@pytest.mark.slow
@few(max_examples=4)
@given(words)
def test_a_printed_configuration_is_composed_again_to_an_equal_one(tmp_path_factory, given_words):
    from pipeline.common.errors import ConfigError

    args = [f"{key}={quoted(value)}" for key, value in given_words.items()]
    try:
        first = compose("train", ["experiment=quickstart", *args])
    except ConfigError as error:
        assert "\n" not in str(error)
        return
    path = tmp_path_factory.mktemp("printed") / "config.yaml"
    path.write_text(first.yaml())
    again = compose("train", [f"config={path}"])
    assert again.config == first.config and again.yaml() == first.yaml()


# --- metrics --------------------------------------------------------------------------------------


@few(max_examples=8)
@given(st.integers(0, 2**32 - 1), st.integers(16, 24), st.integers(16, 24), st.floats(0.0, 1.0))
def test_metrics_agree_with_their_definitions_and_an_image_is_like_itself(seed, h, w, noise):
    random = np.random.default_rng(seed)
    image = random.integers(0, 256, (1, h, w, 3), np.uint8)
    other = np.where(random.random(image.shape) < noise, 255 - image, image)
    mask = torch.ones(1, h, w)
    found = metrics.measure(torch.from_numpy(other), torch.from_numpy(image), mask)
    same = metrics.measure(torch.from_numpy(image), torch.from_numpy(image), mask)
    difference = image.astype(float) - other
    assert float(found["l1"]) == pytest.approx(np.abs(difference).mean() / 255 * 100, rel=1e-6)
    if difference.any():
        expected = peak_signal_noise_ratio(image[0], other[0], data_range=255)
        assert float(found["psnr"]) == pytest.approx(expected, rel=1e-6)
    for name, value in same.items():
        if name.startswith("ssim") and value == value:  # NaN where the image is too small
            assert float(value) == pytest.approx(1.0, abs=1e-9)
            assert float(found[name]) <= 1 + 1e-9
        if name == "l1":
            assert float(value) == 0


# --- splits and hold-outs -------------------------------------------------------------------------


@few(max_examples=60)
@given(st.lists(st.text("abtrainvlTes_-19", min_size=1, max_size=12), max_size=6, unique=True))
def test_names_of_splits_are_understood_alike_in_any_order(names):
    def answer(some):
        try:
            return splits.assign(some, "place")
        except ValueError:
            return "ambiguous"

    found = answer(names)
    assert answer(names[::-1]) == found
    if found != "ambiguous":
        assert set(found) <= set(names) and set(found.values()) <= {"train", "val", "test"}


@few(max_examples=8)
@given(
    st.lists(st.binary(min_size=1, max_size=4), min_size=1, max_size=12),
    st.floats(0, 0.99),
    st.floats(0, 0.99),
)
def test_a_hold_out_grows_with_its_share_and_keeps_copies_together(
    tmp_path_factory, contents, low, high
):
    from shards.sources.files import list_files

    root = tmp_path_factory.mktemp("held")
    for number, data in enumerate(contents):
        (root / f"{number}.jpg").write_bytes(data)
    entries = [file.entry("", "train") for file in list_files(root)]

    def held(share):
        return {e.src for e in hold_out(entries, root, share) if e.split == "val"}

    low, high = sorted((low, high))
    assert held(low) <= held(high) and held(0) == set()
    by_content = {}
    for entry in entries:
        data = (root / entry.src.decode()).read_bytes()
        by_content.setdefault(data, set()).add(entry.src in held(high))
    assert all(len(sides) == 1 for sides in by_content.values())
    more = [e for e in entries if e.src != entries[0].src]
    assert {e.src for e in hold_out(more, root, high) if e.split == "val"} == (
        held(high) - {entries[0].src}
    ), "another image moved"


# --- promotion ------------------------------------------------------------------------------------


class Model:
    """A registry whose promotions race: each is decided against a champion that may be old."""

    def __init__(self):
        self.versions = []

    def promote(self, baseline, rollback=None):
        tags = {"gate.baseline": str(baseline), "gate.kind": "promote" if rollback is None else
                "rollback"}  # fmt: skip
        if rollback is not None:
            tags["gate.content"] = str(rollback)
        self.versions.append(SimpleNamespace(version=len(self.versions) + 1, tags=tags))


@few(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=12))
def test_any_race_of_promotions_and_rollbacks_is_one_history(moves):
    model, expected = Model(), 0
    for back, rolls in moves:
        seen = max(0, len(model.versions) - back)  # the champion as this process read it
        champions = [v.version for v in history.fold(model.versions[:seen]).line]
        stack = history.fold(model.versions[:seen]).stack
        baseline = champions[-1] if champions else 0
        target = stack[-2] if rolls and len(stack) > 1 else None
        model.promote(baseline, target and history.content(target))
        if baseline == expected:  # nobody was faster
            expected = len(model.versions)
    found = history.fold(model.versions)
    assert (found.champion.version if found.champion else 0) == expected
    baselines = [int(v.tags["gate.baseline"]) for v in found.line]
    assert baselines == [0, *[v.version for v in found.line]][: len(baselines)]


@pytest.mark.slow
@few(max_examples=3)
@given(st.floats(20, 30), st.sampled_from([-1.0, -0.2, 0.0, 0.2, 1.0]))
def test_a_model_passes_the_gate_exactly_if_it_is_not_worse(psnr, gain):
    """Scores without noise, so that an interval has no width: every loss above a bound counts."""
    pairs = {"buckets": list(NAMES), "ssim": "gauss11_rgb", "gate": ["psnr", "ssim"]}
    ours, theirs = ((trained.table(value, 0.0, 0), {}) for value in (psnr + gain, psnr))
    reasons, _ = gate.decide(ours, theirs, pairs, gate.Rules(bound=0.1))
    assert (reasons == []) == (gain >= 0)
    assert gate.decide(theirs, theirs, pairs, gate.Rules())[0] == []
