"""Every number has a receipt: which numbers share a column, and does it come out again."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline import cli
from pipeline.comparison import compare, report
from pipeline.comparison.table import as_text
from pipeline.config import checks
from pipeline.config.compose import compose
from pipeline.evaluation import evaluate, results
from tests.support.pairs import BUCKETS, SIZE, crops, image_set, mask_set
from tests.support.scores import IMAGES, evaluation, table

WEIGHTS = {"vgg16": "aa" * 32, "lpips_vgg": "bb" * 32}
LPIPS = {"metrics": ["lpips_vgg"], "metric_weights": WEIGHTS}


@pytest.mark.parametrize(
    ("facts", "metric", "part"),
    [
        ({"pairs_digest": "c" * 64}, "psnr", "pairs"),
        ({"masks": "c" * 64}, "psnr", "masks"),
        ({"pairs": 7}, "l1", "n"),
        ({"size": 512}, "psnr", "size"),
        ({"resize_short": None}, "psnr", "resize"),
        ({"ssim": "uniform7_rgb"}, "ssim", "convention"),
        ({"code": "0.0.9"}, "psnr", "code"),
        ({"metric_weights": {**WEIGHTS, "vgg16": "cc" * 32}}, "lpips_vgg", "weights"),
    ],
)
def test_numbers_share_a_column_only_if_their_receipts_agree(facts, metric, part):
    ours = [evaluation("good", 30, **LPIPS), evaluation("other", 31, **{**LPIPS, **facts})]
    ours.append(evaluation("again", 29, 1, **LPIPS))
    made = compare.build(compare.group(ours), None, None, "good")
    cells = {row.label: row.cells["(0.1,0.2]", metric] for row in made.rows if row.kind == "ours"}
    assert cells["again"].status == "same pairs"
    assert f"other {part}" in cells["other"].status
    blocks = {row.label: row.block for row in made.rows_with(metric) if row.kind == "ours"}
    assert blocks["good"] == blocks["again"] == "Places2"
    assert blocks["other"] == f"Places2 · other {part}"
    assert f"[Places2 · other {part}]" in as_text(made)
    assert not any(
        made.is_best(row, "(0.1,0.2]", metric) for row in made.rows if row.label == "other"
    )


def rows_of(*evaluations):
    made = compare.build(compare.group(evaluations), None, None, evaluations[0].facts["name"])
    return {row.label: row for row in made.rows if row.kind == "ours"}


def test_a_difference_to_the_reference_row_needs_equal_receipts():
    rows = rows_of(evaluation("good", 30), evaluation("same", 31), evaluation("new", 31, code="2"))
    assert rows["same"].against.endswith("better")
    assert rows["new"].against == "other code"


def test_numbers_that_the_reference_row_lacks_are_said_to_have_no_other_weights():
    rows = rows_of(evaluation("good", 30), evaluation("one", 31, **LPIPS))
    cell = rows["one"].cells["(0.1,0.2]", "lpips_vgg"]
    assert cell.status == "not measured of the reference row"


def test_a_row_of_several_seeds_has_a_receipt_of_all_their_weights():
    seeds = [
        evaluation(f"s{i}", 30, recipe="r", images_seen=9, seed=i, sha256=f"{i}f" * 32)
        for i in range(2)
    ]
    compared = compare.build(compare.group(seeds), None, None, None)
    (row,) = (row for row in compared.rows if row.kind == "ours")
    assert all(f"{i}f" * 32 in row.receipts["psnr"]["model"] for i in range(2))


def test_a_comparison_says_which_numbers_are_biased_or_missing():
    notes = {"fid": "biased below 10,000 pairs: all", "lpips_vgg": "empty: run `fetch`"}
    rows = rows_of(evaluation("good", 30, notes=notes, **LPIPS))
    assert rows["good"].provenance.endswith(
        "; LPIPS (VGG): empty: run `fetch`; FID: biased below 10,000 pairs: all"
    )


def test_another_metrics_weights_leave_psnr_in_one_column():
    other = {**LPIPS, "metric_weights": {**WEIGHTS, "vgg16": "cc" * 32}}
    ours = [evaluation("good", 30, **LPIPS), evaluation("other", 31, **other)]
    made = compare.build(compare.group(ours), None, None, "good")
    assert len({row.block for row in made.rows_with("psnr") if row.kind == "ours"}) == 1


def test_the_report_shows_the_receipt_of_every_number():
    ours = [evaluation("good", 30, masks="d" * 64, code="0.1.0", **LPIPS)]
    page = report.render(compare.build(compare.group(ours), None, None, None), [])
    for text in ("a" * 64, "d" * 64, "aa" * 32, "bb" * 32, "short side to 256", "composite"):
        assert text in page
    for metric in ("PSNR dB", "SSIM", "L1 %", "LPIPS (VGG)"):
        assert f"<dt>good, {metric}</dt>" in page


def run_evaluate(*words):
    config = compose("evaluate", list(words)).config
    checks.evaluate(config)
    return evaluate.main(config)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A results file of 14 pairs, and what `evaluate` returned."""
    out = tmp_path_factory.mktemp("evaluated")
    words = [f"data.url={image_set(out / 'i', crops(2))}", f"masks.url={mask_set(out / 'm')}"]
    words += [f"protocol.size={SIZE}", "model=mean_colour", "pictures=0", "protocol.name=mine"]
    return run_evaluate(*words, f"out={out}/t.parquet")


def test_an_evaluation_is_repeated_from_its_file_alone(evaluated):
    assert run_evaluate(f"verify={evaluated['parquet']}")["differences"] == []
    assert evaluated["receipts"]["ssim"]["convention"] == "gauss11_rgb"
    assert (
        evaluated["receipts"]["psnr"].items()
        >= {
            "pairs": evaluated["pairs_digest"],
            "masks": evaluated["masks"],
            "n": 14,
            "size": SIZE,
            "region": "composite",
        }.items()
    )


def test_verification_says_where_a_file_differs(evaluated, tmp_path, capsys):
    scores, facts = results.load(evaluated["parquet"])
    psnr = scores["psnr"].to_pylist()
    psnr[3] += 0.01
    column = scores.schema.get_field_index("psnr")
    results.save(f"{tmp_path}/t.parquet", scores.set_column(column, "psnr", pa.array(psnr)), facts)
    found = run_evaluate(f"verify={tmp_path}/t.parquet")
    old, new = psnr[3], evaluated_psnr(evaluated)[3]
    assert found["differences"] == [
        f"psnr: 1 of 14 pairs, first 000000000-b3: {old:.6g} in the file, now {new:.6g}"
    ]
    assert "psnr: 1 of 14 pairs" in evaluate.show(found)
    for url, status in ((f"{tmp_path}/t.parquet", 1), (evaluated["parquet"], 0)):
        assert cli.main(["evaluate", f"verify={url}", "--json"]) == status
        assert bool(json.loads(capsys.readouterr().out)["differences"]) == bool(status)

    results.save(f"{tmp_path}/t.parquet", scores, {**facts, "code": "0.0.9", "pairs_digest": "0"})
    found = run_evaluate(f"verify={tmp_path}/t.parquet")["differences"]
    assert {"psnr: another pairs", "psnr: another code", "l1: another code"} <= set(found)


def test_verification_says_which_weights_are_missing_here(evaluated, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    scores, facts = results.load(evaluated["parquet"])
    config = facts["config"].replace("metrics: []", "metrics: [dists]")
    facts |= {
        "config": config,
        "metrics": ["dists"],
        "metric_weights": {"vgg16": "a", "dists": "b"},
    }
    results.save(f"{tmp_path}/t.parquet", scores, facts)
    found = run_evaluate(f"verify={tmp_path}/t.parquet")["differences"]
    said = "dists: empty: the weights vgg16 are not in the cache: run `python -m pipeline fetch"
    assert found[0] == "dists: another weights" and found[1].startswith(said)


def evaluated_psnr(result):
    return results.load(result["parquet"])[0]["psnr"].to_pylist()


def test_a_file_of_a_version_without_receipts_is_refused_in_one_line(tmp_path):
    old = evaluation("old", 30)
    results.save(f"{tmp_path}/old.parquet", old.table, old.facts)
    with pytest.raises(ValueError, match=r"old\.parquet was written by an older version"):
        run_evaluate(f"verify={tmp_path}/old.parquet")


def test_a_results_file_holds_no_credentials(evaluated):
    config = compose("evaluate", ["config=" + _config(evaluated)]).config
    assert config.protocol.name == "mine"
    url = "https://user:secret@host/set"
    assert "secret" not in evaluate.reproducible(with_url(config, url), {})


def _config(result):
    path = result["parquet"] + ".yaml"
    with open(path, "w") as file:
        file.write(results.load(result["parquet"])[1]["config"])
    return path


def with_url(config, url):
    config.data.url = url
    return config


@pytest.mark.parametrize(("row", "buckets"), [("all", 7), ("mean6", 6)])
def test_intervals_are_over_photographs_not_pairs(row, buckets):
    """Seven pairs of a photograph have one difficulty: taken as independent they are too narrow."""
    scores = table(30)
    found = results.summarize(scores)[row]
    psnr = np.array(scores["psnr"].to_pylist()).reshape(IMAGES, len(BUCKETS))[:, :buckets]
    spread = psnr.mean(1).std(ddof=1) / np.sqrt(IMAGES)
    low, high = found["psnr_ci"]
    assert found["psnr"] == pytest.approx(psnr.mean())
    assert (low + high) / 2 == pytest.approx(psnr.mean(), abs=0.2 * spread)
    assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.15)
    pairwise = 2 * 1.96 * psnr.std(ddof=1) / np.sqrt(psnr.size)
    assert high - low > 1.3 * pairwise


@pytest.mark.parametrize(("photographs", "some"), [(4, False), (5, True)])
def test_fewer_than_five_photographs_have_no_interval_however_many_pairs(photographs, some):
    summary = results.summarize(table(30).slice(0, photographs * len(BUCKETS)))
    for row in (summary["all"], summary["mean6"], *summary["buckets"].values()):
        for key in ("psnr_ci", "ssim_ci", "l1_ci", "lpips_vgg_ci"):
            assert (row[key] is not None) == some


@pytest.mark.parametrize(("last", "headline"), [(1, 1), (2, 2), (7, 6)])
def test_mlflow_gets_one_number_of_all_buckets_or_of_the_six(last, headline, monkeypatch):
    logged = {}
    monkeypatch.setattr("pipeline.runs.checkpoints.pin", lambda *facts: None)
    monkeypatch.setattr(
        "pipeline.tracking.lifecycle.record", lambda run, values, *rest: logged.update(values)
    )
    scores = table(30)
    scores = scores.filter(pc.is_in(scores["bucket"], pa.array(BUCKETS[:last])))
    facts = {"run": "r", "protocol": "p", "images_seen": 1, "parquet": "", "samples": ""}
    evaluate._record_in_run(compose("evaluate", []).config, facts | results.summarize(scores))
    psnr = np.array(scores["psnr"].to_pylist()).reshape(IMAGES, last)
    assert logged["eval/p/psnr"] == pytest.approx(psnr[:, :headline].mean())
