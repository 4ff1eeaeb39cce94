"""The gate and the history of champions, as pure functions."""

import itertools
import random
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from pipeline.evaluation import metrics, results
from pipeline.registry import gate, history
from shards.masks import NAMES

BUCKETS = [*NAMES, "fixed"]
IMAGES = 300


def table(psnr=24.0, ssim=0.85, spread=3.0, noise=0.0, seed=0, images=IMAGES, **per_bucket):
    """Scores of `images` images in every bucket around the given means; the images' own
    difficulty (`spread`, dB) is the same for every table, `noise` is this model's own."""
    rows = images * len(BUCKETS)
    hardness = np.random.default_rng(1).normal(0, spread, rows)
    own = np.random.default_rng(seed).normal(0, noise, rows)
    names = [BUCKETS[i % len(BUCKETS)] for i in range(rows)]
    shift = np.array([per_bucket.get(name, 0.0) for name in names])
    columns = {
        "pair": range(rows),
        "name": [f"{i // len(BUCKETS):09d}-{i % len(BUCKETS)}" for i in range(rows)],
        "key": [i // len(BUCKETS) for i in range(rows)],
        "mask_key": [0] * rows,
        "bucket": names,
        "ratio": [0.3] * rows,
        **{m.name: np.full(rows, ssim) for m in metrics.METRICS},
        "psnr": psnr + hardness + own + shift,
    }
    return pa.table(columns, schema=results.schema())


def decide(challenger, champion, asked=("psnr", "ssim"), facts=({}, {}), **rules):
    pairs = {"buckets": BUCKETS, "ssim": "gauss11_rgb", "gate": asked}
    theirs = champion and (champion, facts[1])
    return gate.decide((challenger, facts[0]), theirs, pairs, gate.Rules(**rules))


def test_the_first_champion_needs_only_the_floors():
    reasons, figures = decide(table(24.0), None)
    assert reasons == []
    assert figures["fixed"]["psnr"] == pytest.approx(24.0, abs=0.6)


def test_a_first_champion_below_a_floor_in_one_bucket_is_rejected():
    reasons, _ = decide(table(24.0, **{"(0.5,0.6]": -20.0}), None)
    assert len(reasons) == 1
    assert reasons[0].startswith("(0.5,0.6]: psnr")
    assert "floor of 12" in reasons[0]


def test_equal_scores_pass():
    reasons, figures = decide(table(24.0), table(24.0))
    assert reasons == []
    assert figures["mean"] == {"psnr_difference": 0.0, "psnr_ci": [0.0, 0.0]}


def test_a_better_model_passes_and_its_gain_is_reported():
    reasons, figures = decide(table(24.3, noise=0.3, seed=2), table(24.0, noise=0.3, seed=3))
    assert reasons == []
    low, high = figures["mean"]["psnr_ci"]
    assert 0.2 < low < high < 0.4


def test_a_model_that_is_two_tenths_of_a_decibel_worse_is_rejected_in_every_bucket():
    reasons, _ = decide(table(23.8, noise=0.1, seed=2), table(24.0, noise=0.1, seed=3))
    assert len(reasons) == len(BUCKETS) + 1
    assert all("psnr is worse" in reason for reason in reasons)


def test_one_bad_bucket_rejects_a_model_that_is_better_on_average():
    reasons, figures = decide(table(24.5, **{"(0.5,0.6]": -1.0}), table(24.0))
    assert figures["mean"]["psnr_ci"][0] > 0
    assert [reason.partition(":")[0] for reason in reasons] == ["(0.5,0.6]"]


def test_a_loss_too_small_to_prove_is_reported_as_unproven_not_as_worse():
    ours, theirs = table(23.97, noise=1.0, seed=2), table(24.0, noise=1.0, seed=3)
    reasons, _ = decide(ours, theirs)
    assert any("is not shown to be as good" in reason for reason in reasons)
    assert decide(ours, theirs, tolerance=0.5, bound=0.3)[0] == []


def test_a_drop_of_ssim_alone_is_rejected():
    reasons, _ = decide(table(24.0, ssim=0.84), table(24.0, ssim=0.85))
    assert len(reasons) == len(BUCKETS)
    assert all("ssim is worse" in reason for reason in reasons)


def test_only_the_metrics_that_the_protocol_names_are_asked():
    worse_ssim = decide(table(24.0, ssim=0.4), table(24.0), asked=["psnr"])
    assert (worse_ssim[0], set(worse_ssim[1]["fixed"])) == (
        [],
        {"psnr", "psnr_difference", "psnr_ci"},
    )
    # `ssim` fills every other column, LPIPS among them: there more is worse.
    reasons, figures = decide(table(20.0, ssim=0.9), table(24.0, ssim=0.8), asked=["lpips_vgg"])
    assert len(reasons) == len(BUCKETS) and "mean" not in figures
    assert all(
        "lpips_vgg is worse: +0.1000 [+0.1000, +0.1000] against a tolerance of 0.002" in reason
        for reason in reasons
    )
    assert decide(table(20.0, ssim=0.7), table(24.0, ssim=0.8), asked=["lpips_vgg"])[0] == []


@pytest.mark.parametrize(
    ("metric", "ours", "theirs", "refused"),
    [
        ("fid", 5.3, 5.0, True),
        ("fid", 5.1, 5.0, False),
        ("fid", 4.0, 5.0, False),
        ("p_ids", 10.0, 11.0, True),
        ("p_ids", 12.0, 11.0, False),
        ("u_ids", 10.8, 11.0, False),
    ],
)
def test_a_metric_of_sets_is_asked_over_all_pairs(metric, ours, theirs, refused):
    facts = [{"sets": {"all": {metric: value}}} for value in (ours, theirs)]
    reasons, figures = decide(table(), table(), asked=[metric], facts=facts)
    assert [f"all pairs: {metric} is worse" in reason for reason in reasons] == [True] * refused
    assert figures["all pairs"][metric] == ours
    assert figures["all pairs"][f"{metric}_difference"] == pytest.approx(ours - theirs)


def test_a_metric_that_is_missing_or_of_other_weights_refuses_with_the_reason():
    few = {"notes": {"fid": "needs 2,048 pairs, empty for all"}}
    reasons, _ = decide(table(), None, asked=["psnr", "fid"], facts=(few, {}))
    assert reasons == ["the challenger has no fid: needs 2,048 pairs, empty for all"]
    facts = [{"metric_weights": {"vgg16": "a", "lpips_vgg": x}} for x in "bc"]
    reasons, _ = decide(table(), table(), asked=["psnr", "lpips_vgg"], facts=facts)
    assert [reason.partition(":")[0] for reason in reasons] == [
        "lpips_vgg of the champion used other weights"
    ]


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_missing_or_non_finite_score_is_rejected(value):
    whole = table()
    psnr = whole["psnr"].to_pylist()
    psnr[17] = value
    place = whole.column_names.index("psnr")
    broken = whole.set_column(place, "psnr", pa.array(psnr, pa.float64()))
    for reasons in (decide(broken, table())[0], decide(broken, None)[0]):
        assert reasons == ["the challenger has 1 pairs with a missing or non-finite psnr"]
    assert decide(table(), broken)[0] == [
        "the champion has 1 pairs with a missing or non-finite psnr"
    ]


@pytest.mark.parametrize(("images", "reasons"), [(1, 1), (4, 1), (5, 0)])
def test_fewer_images_than_an_interval_needs_decide_nothing(images, reasons):
    few = table(images=images)
    found, _ = decide(few, few)
    assert found == [f"an interval needs 5 images, the pairs have {images}"] * reasons
    assert decide(few, None)[0] == [], "the floors of a first champion need no interval"


def test_a_bucket_without_scores_is_rejected():
    reasons, _ = decide(table().slice(0, 6), None)
    assert reasons == ["the challenger has no scores of fixed"]


def test_scores_on_other_pairs_are_rejected():
    renamed = table()
    names = pa.array([f"{name}x" for name in renamed["name"].to_pylist()])
    other = renamed.set_column(renamed.column_names.index("name"), "name", names)
    reasons, _ = decide(table(), other)
    assert "other pairs" in reasons[0]


# --- the history ----------------------------------------------------------------------------------


def version(number, baseline=None, kind="promote", content=None):
    tags = {}
    if baseline is not None:
        tags = {"gate.baseline": str(baseline), "gate.kind": kind, "gate.previous": ""}
        if content:
            tags["gate.content"] = str(content)
        tags["gate.digest"] = history.digest(tags)
    return SimpleNamespace(version=str(number), tags=tags)


def line(versions):
    return [int(v.version) for v in history.fold(versions).line]


def test_versions_that_were_only_registered_are_not_champions():
    assert line([version(1), version(2)]) == []


def test_champions_follow_each_other_by_what_they_were_decided_against():
    assert line([version(1), version(2, 0), version(3), version(4, 2)]) == [2, 4]


def test_of_two_promotions_against_one_champion_the_later_does_not_count():
    assert line([version(1, 0), version(2, 1), version(3, 1), version(4, 2)]) == [1, 2, 4]


def test_a_rollback_removes_promotions_from_the_stack():
    folded = history.fold(
        [version(1, 0), version(2, 1), version(3, 2), version(4, 3, "rollback", content=2)]
    )
    assert [int(v.version) for v in folded.line] == [1, 2, 3, 4]
    assert [int(v.version) for v in folded.stack] == [1, 2]


def test_any_interleaving_of_four_promotions_has_one_line():
    """Each reads the champion, waits, then appends: any order gives one line without gaps."""
    random.seed(0)
    for order in itertools.islice(itertools.permutations("rrrrwwww"), 0, 40320, 97):
        log, read, pending = [], [], list(order)
        for action in pending:
            if action == "r":
                read.append(line(log)[-1] if line(log) else 0)
            elif read:
                log.append(version(len(log) + 1, read.pop(random.randrange(len(read)))))
        for baseline in read:
            log.append(version(len(log) + 1, baseline))
        champions = history.fold(log).line
        assert [int(v.tags["gate.baseline"]) for v in champions] == [
            0,
            *(int(v.version) for v in champions[:-1]),
        ]


def test_a_deleted_champion_is_detected_but_a_deleted_candidate_is_no_fault():
    log = [version(1, 0), version(2), version(3, 1), version(4, 3)]
    model = SimpleNamespace(tags={history.HEAD: "4"}, aliases={"champion": "4"})
    assert history.deleted(model, log) == []
    assert history.deleted(model, [log[0], log[2], log[3]]) == [], "2 was never champion"
    assert history.deleted(model, [log[0], log[1], log[3]]) == [3]
    assert history.deleted(model, log[:3]) == [4], "the model's tag names the last one"


def test_a_changed_tag_and_a_moved_alias_are_reported():
    log = [version(1, 0), version(2, 1)]
    log[1].tags["gate.previous"] = log[0].tags["gate.digest"]
    log[1].tags["gate.digest"] = history.digest(log[1].tags)
    model = SimpleNamespace(tags={}, aliases={"champion": 2})
    assert history.faults(model, log) == []

    model.aliases["champion"] = "1"
    assert "alias champion names 1, the history 2" in history.faults(model, log)[0]
    model.aliases["champion"] = "2"
    log[1].tags["gate.figures"] = "better than they were"
    assert history.faults(model, log) == ["the tags of version 2 were changed"]
    log[1].tags.pop("gate.figures")
    log[0].tags["gate.user"] = "somebody else"
    log[0].tags["gate.digest"] = history.digest(log[0].tags)
    assert history.faults(model, log) == [
        "version 1 changed after version 2 was decided against it"
    ]
