"""Our runs next to the papers' rows: which cells are comparable, and how they are printed."""

import csv
import io
import re
from dataclasses import replace

import numpy as np
import pyarrow.compute as pc
import pytest
from torch import nn

from models.msanet import MSAU
from pipeline.comparison import compare, papers
from pipeline.comparison.collect import Evaluation, collect
from pipeline.comparison.table import as_csv, as_markdown, as_text
from pipeline.config.compose import compose
from pipeline.evaluation import results
from tests.support.scores import IMAGES, evaluation, table


def run(experiment, seed, psnr, recipe=None):
    facts = {"experiment": experiment, "seed": seed, "recipe": recipe or experiment}
    facts |= {"run": f"runs/{experiment}-{seed}", "images_seen": 9_600_000}
    return evaluation(f"{experiment}-{seed}@9600000", psnr, seed + 1, **facts)


def sheet(*evaluations, table=None, against=None):
    return compare.build(compare.group(evaluations), table, None, against)


def row(sheet, label, kind=None):
    found = [r for r in sheet.rows if r.label == label and kind in (None, r.kind)]
    assert len(found) == 1, [r.label for r in sheet.rows]
    return found[0]


def test_runs_that_differ_in_their_seed_alone_are_one_row_with_its_spread():
    runs = [run("msanet/table2/msag", seed, 36 + 0.1 * seed) for seed in range(3)]
    other = run("msanet/table2/single_scale", 0, 35)
    made = sheet(*runs, other, table="2")
    together = row(made, "msanet/table2/msag (3 seeds)")
    means = [results.summarize(r.table)["mean6"]["psnr"] for r in runs]
    cell = together.cells["mean6", "psnr"]
    assert cell.value == pytest.approx(np.mean(means))
    assert cell.std == pytest.approx(np.std(means, ddof=1)) and cell.n == 3
    assert "seeds 0, 1, 2" in together.provenance
    alone = row(made, "msanet/table2/single_scale-0@9600000").cells["mean6", "psnr"]
    assert alone.std is None and alone.low < alone.value < alone.high


def test_a_printed_table_shows_what_we_have_and_the_command_for_what_we_lack():
    made = sheet(run("msanet/table2/msag", 0, 36), table="2")
    labels = [r.label for r in made.rows]
    assert labels[labels.index("MSAG") + 1] == "msanet/table2/msag-0@9600000"
    lacking = {r.label: r.missing for r in made.rows if r.missing}
    assert list(lacking) == [
        f"msanet/table2/{n}" for n in ("single_scale", "inception_v1", "inception_v3")
    ]
    command = lacking["msanet/table2/single_scale"]
    assert "train experiment=msanet/table2/single_scale" in command
    assert "protocol=msanet split=test" in command


def test_table_6_shows_each_method_retrained_and_why_the_printed_rows_are_not_one_protocol():
    made = sheet(run("compare/deepfill", 0, 24), run("compare/glc", 0, 23), table="6")
    labels = [r.label for r in made.rows if r.block == "Places2"]
    assert labels[labels.index("CA") + 1] == "compare/deepfill-0@9600000"
    assert row(made, "compare/glc-0@9600000").kind == "ours"  # of which table 6 has no row
    assert ("CA", "run by the authors of MSA-Net: public weights of Yu et al. 2018 (DeepFill v1); "
            "trained on random rectangles") in made.provenances()  # fmt: skip
    lacking = {r.label: r.missing for r in made.rows if r.missing}
    assert {n for n in lacking if n.startswith("compare")} == {
        f"compare/{n}" for n in ("pconv", "edgeconnect", "gmcnn")
    }
    assert "train experiment=compare/gmcnn" in lacking["compare/gmcnn"]
    assert "trained on masks of different kinds" in as_text(made)


def test_the_tables_of_musical_say_that_the_center_holes_may_differ():
    for name in ("musical/1", "musical/2", "musical/3"):
        assert "56x56 of 128x128" in as_text(sheet(table=name))


@pytest.mark.parametrize("name", [t for t in papers.load()["tables"] if t != "1"])
def test_the_command_for_an_empty_cell_follows_the_papers_protocol(name):
    for line in sheet(table=name).rows:
        if not line.missing:
            continue
        *prepare, train, evaluate = line.missing.split(" && ")
        fetched = [c.split()[4:] for c in prepare if " fetch " in c]
        prepare = [c.split()[3:] for c in prepare if " fetch " not in c]
        sharded, *masks = [compose(command, words).config for command, *words in prepare]
        trained = compose("train", train.split()[4:]).config
        config = compose("evaluate", evaluate.split()[4:]).config
        assert sum(fetched, []) == trained.objective.published()
        assert config.checkpoint == f"{trained.run}/checkpoints/best"
        assert sharded.out == trained.data.url == config.data.url
        assert sharded.data.name == trained.data.name
        assert [m.out for m in masks] == ([config.masks.url] if config.masks.url else [])
        assert config.data.resize_short == trained.data.resize_short
        ours = {"dataset_name": trained.data.name, "masks_name": "imported"}
        ours |= {"protocol": config.protocol.name, "ssim": config.protocol.ssim}
        ours |= {"size": config.protocol.size, "split": config.split, "images": config.limit}
        ours |= {"resize_short": config.data.resize_short}
        printed = papers.table(name)
        block = next(
            b for b in printed["blocks"] if papers.dataset(b["dataset"])["title"] == line.block
        )
        row = next(
            r for r in block["rows"] if line.label in (r.get("experiment"), r.get("retrained"))
        )
        for metric in ("psnr", "ssim") if "experiment" in row else ():
            assert papers.status(printed, block, row, metric, ours) == papers.UNPUBLISHED
        assert (config.masks.url is None) == (config.protocol.buckets == ["center"])


def test_canyon_scenes_are_tested_on_val_since_nobody_has_the_labels_of_test():
    command = row(sheet(table="musical/2"), "musical/places").missing
    assert "data=places365_canyon" in command and command.endswith("split=val limit=100")


def test_the_same_network_under_its_name_of_another_table_counts():
    made = sheet(run("msanet/table2/msag", 0, 36), table="3")
    labels = [r.label for r in made.rows]
    assert labels[labels.index("Without MUM") + 1] == "msanet/table2/msag-0@9600000"
    assert "msanet/table3/no_mum" not in labels


def test_printed_numbers_come_out_as_they_are_printed():
    text = as_text(sheet(table="5"))
    assert re.search(r"CBAM \(paper\) +26\.710", text) and "0.8820" in text
    text = as_text(sheet(table="6"))
    assert re.search(r"MSA-Net \(paper\) +35\.80 .*26\.88", text) and "0.810" in text


def test_the_derived_mean_of_six_is_the_one_of_tables_4_and_5():
    made = sheet(evaluation("ours", 30))
    cell = row(made, "MSA-Net").cells["mean6", "psnr"]
    assert cell.value == pytest.approx(26.802, abs=0.002)
    assert row(made, "MSA-Net").cells["mean6", "ssim"].value == pytest.approx(0.882, abs=5e-4)
    assert cell.status.startswith("mean of printed values")


@pytest.mark.parametrize(
    ("facts", "label", "metric", "status"),
    [
        ({}, "MSA-Net", "psnr", papers.UNPUBLISHED),
        ({}, "MSA-Net", "ssim", papers.UNPUBLISHED),
        ({}, "EdgeConnect", "psnr", papers.UNPUBLISHED),
        ({}, "EdgeConnect", "ssim", "differs in SSIM window (uniform51_gray, ours gauss11_rgb)"),
        ({"dataset_name": "cats"}, "MSA-Net", "psnr", "differs in images (Places2, ours cats)"),
        (
            {"masks_name": "irregular"},
            "MSA-Net",
            "psnr",
            "differs in masks (Liu et al.'s test set, ours drawn)",
        ),
        (
            {"masks_count": 300},
            "MSA-Net",
            "psnr",
            "differs in masks (Liu et al.'s 12000, ours 300 imported)",
        ),
        ({"size": 512}, "MSA-Net", "psnr", "differs in size (256, ours 512)"),
        ({"split": "train"}, "MSA-Net", "psnr", "differs in split (test, ours train)"),
        ({"images": 2}, "MSA-Net", "psnr", "differs in number of images (2000, ours 2)"),
        (
            {"resize_short": None},
            "MSA-Net",
            "psnr",
            "differs in scale (short side 256, ours as stored)",
        ),
    ],
)
def test_each_printed_cell_says_what_it_may_be_compared_with(facts, label, metric, status):
    made = sheet(evaluation("ours", 30, **facts))
    assert row(made, label, "paper").cells["(0.1,0.2]", metric].status == status
    assert status in as_text(made) and status in as_csv(made)


def test_edgeconnects_row_of_celeba_hq_is_said_to_be_of_celeba():
    made = sheet(evaluation("ours", 30, dataset_name="celeba_hq"))
    (theirs,) = [r for r in made.rows if r.label == "EdgeConnect" and "HQ" in r.block]
    assert "of CelebA (its README), not of CelebA-HQ" in theirs.provenance
    status = theirs.cells["(0.1,0.2]", "psnr"].status
    assert status == "differs in images (CelebA, ours celeba_hq)"


def test_a_context_encoder_of_128_pixels_is_not_comparable():
    ours = evaluation(
        "ours", 24, protocol="musical", ssim="uniform7_rgb", dataset_name="celeba", images=19_962
    )
    ours = Evaluation(ours.url, ours.facts, ours.table.slice(0, IMAGES))
    made = sheet(ours, table="musical/3")
    assert "size (128, ours 256)" in row(made, "CE").cells["center", "l1"].status
    assert row(made, "SN").cells["center", "psnr"].status == papers.UNPUBLISHED


def test_a_printed_row_names_who_measured_it():
    made = sheet(evaluation("ours", 30))
    assert "copied by the authors of MSA-Net from Liu et al. 2018" in row(made, "PConv").provenance
    assert "trained on the 12,000 masks" in row(made, "EdgeConnect").provenance
    assert row(made, "MSA-Net").provenance == "measured by the authors of MSA-Net"


def test_rows_on_the_same_pairs_are_compared_with_the_best_pair_by_pair():
    made = sheet(evaluation("good", 30), evaluation("worse", 29.9, 1), evaluation("noise", 30, 2))
    assert made.reference == "good" or made.reference == "noise"
    assert row(made, "worse").against.endswith("worse")
    other = evaluation("elsewhere", 31, pairs_digest="b" * 64)
    made = sheet(evaluation("good", 30), other, against="good")
    assert row(made, "elsewhere").against == "other pairs"
    assert "other pairs" in row(made, "elsewhere").cells["(0.1,0.2]", "psnr"].status
    assert not made.is_best(row(made, "elsewhere"), "(0.1,0.2]", "psnr")
    assert made.is_best(row(made, "good"), "(0.1,0.2]", "psnr")
    with pytest.raises(ValueError, match=r"unknown against=best: choose one of your rows \(good\)"):
        sheet(evaluation("good", 30), against="best")


def test_a_row_on_easier_pairs_of_its_own_is_not_the_reference():
    easy = evaluation("easy", 40, pairs_digest="b" * 64, pairs=7)
    made = sheet(evaluation("good", 30), easy, evaluation("worse", 29, 1))
    assert made.reference == "good"
    stars = re.findall(r"^(\w+) .*\*", as_text(made), re.MULTILINE)
    assert set(stars) == {"good", "worse"}  # worse only where all are equal: SSIM, L1


def test_a_row_says_whether_weights_a_baseline_or_predictions_were_measured():
    theirs = evaluation("theirs", 30, weights="unknown", predictions="answers/theirs")
    made = sheet(theirs, evaluation("telea", 29, weights="none"), run("quickstart", 0, 28))
    provenance = {r.label: r.provenance for r in made.rows if r.kind == "ours"}
    assert provenance["theirs"].startswith(
        "measured here, weights and code not verified: images in answers/theirs on places365"
    )
    assert provenance["telea"].startswith(
        "ours: a baseline without training on places365_standard test"
    )
    assert provenance["quickstart-0@9600000"].startswith("ours: raw weights after 9600000 images")
    best = run("quickstart", 0, 28)
    best.facts["selected"] = "best PSNR of 50 validations"
    chosen = next(row.provenance for row in sheet(best).rows if row.kind == "ours")
    assert "after 9600000 images, best PSNR of 50 validations on places365" in chosen


# Row 30
@pytest.mark.parametrize(
    ("psnr", "facts", "warned"),
    [
        (
            200,
            {"predictions": "pairs", "weights": "unknown"},
            "280 of 280 predictions are the orig",
        ),
        (
            100,
            {"predictions": "pairs", "weights": "unknown"},
            r"\d+ of 280 predictions are the orig",
        ),
        (30, {"predictions": "filled", "weights": "unknown"}, ""),
        (200, {"weights": "none"}, ""),  # an identity is a legitimate model
    ],
)
def test_predictions_that_equal_the_originals_are_warned_of(psnr, facts, warned):
    made = sheet(evaluation("theirs", psnr, **facts))
    shown = [row(made, "theirs").provenance, as_text(made), as_markdown(made)]
    for text in shown:
        assert re.search(f"warning: {warned}", text) if warned else "warning" not in text


# Row 30
@pytest.mark.parametrize(
    "facts", [{"run": "runs/r", "images_seen": 1}, {}, {"predictions": "answers/theirs"}]
)
def test_results_of_two_conventions_have_two_default_files(facts):
    made = [evaluation("r", 30, ssim=name, **facts).facts for name in ("a", "uniform7_rgb")]
    urls = [results.default_url(each) for each in made]
    assert len(set(urls)) == 2 and urls[1].endswith("-uniform7_rgb.parquet")


def test_two_results_of_one_name_are_listed_separately():
    twice = (evaluation("r@1", 30), evaluation("r@1", 31, pairs_digest="b" * 64))
    labels = [g.label for g in compare.group(twice)]
    assert len(set(labels)) == 2 and all(label.startswith("r@1, 280 pairs") for label in labels)


# Row 30
@pytest.mark.parametrize("recipe", [{}, {"recipe": "r" * 64, "images_seen": 1, "seed": 0}])
def test_results_of_one_run_with_two_conventions_are_both_shown(tmp_path, recipe):
    facts = {"run": "runs/r", **recipe}
    for name in ("gauss11_rgb", "uniform7_rgb", "uniform51_gray"):
        made = evaluation("r@1", 30, ssim=name, **facts)
        results.save(f"{tmp_path}/evaluation/{name}.parquet", made.table, made.facts)
    groups = compare.group(collect(str(tmp_path), [str(tmp_path)]))
    assert sorted(g.label.rpartition(", ")[2] for g in groups) == [
        "gauss11_rgb",
        "uniform51_gray",
        "uniform7_rgb",
    ]
    made = compare.build(groups, None, "msanet", None)
    assert len([row for row in made.rows if row.kind == "ours"]) == 3


# Row 30
@pytest.mark.parametrize(("images", "verdict"), [(1, False), (4, False), (5, True), (40, True)])
def test_few_images_have_a_difference_and_no_verdict(images, verdict):
    pair = [evaluation("a", 30), evaluation("b", 28, noise=1)]
    few = [replace(e, table=e.table.filter(pc.less(e.table["key"], images))) for e in pair]
    against = {row.label: row.against for row in sheet(*few).rows if row.kind == "ours"}["b"]
    assert against.startswith(("-2.0", "-1.9"))
    assert ("worse" in against and "[" in against) if verdict else "too few images" in against


def test_csv_has_every_number_and_markdown_every_row():
    made = sheet(evaluation("a|b_c", 30), evaluation("plain", 29))
    lines = list(csv.DictReader(io.StringIO(as_csv(made))))
    assert len(lines) == sum(len(r.cells) for r in made.rows)
    first = next(x for x in lines if x["row"] == "plain" and x["column"] == "mean6")
    mean = results.summarize(table(29))["mean6"]["psnr"]
    assert float(first["value"]) == pytest.approx(mean)
    markdown = as_markdown(made)
    widths = {line.replace(r"\|", "").count("|") for line in markdown.splitlines() if "30." in line}
    assert r"a\|b\_c" in markdown and len(widths) <= 2


def test_a_comparison_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no evaluations found"):
        sheet()


@pytest.mark.parametrize("name", list(papers.load()["tables"]))
def test_every_printed_table_can_be_laid_out_before_anything_was_trained(name, tmp_path):
    words = [f"table={name}", f"root={tmp_path}"]
    result = compare.main(compose("compare", words).config)
    printed = papers.table(name)
    rows = [r for b in printed.get("blocks", [printed]) for r in b["rows"]]
    assert [r["label"] for r in result["rows"] if r["kind"] == "paper"] == [
        r["method"] for r in rows
    ]
    recipes = {r.get("experiment", r.get("retrained")) for r in rows}
    assert set(result["missing"]) == recipes - {None}


@pytest.mark.parametrize("printed", papers.table("1")["rows"], ids=lambda row: row["structure"])
def test_table_1_has_the_weights_of_the_network_that_we_build(printed):
    none = {"channel": "none", "spatial": "none", "gate": "sigmoid", "squeeze": "full"}
    built = MSAU(64, 128, 48, True, "none", structure=printed["structure"], **none)
    inception = printed["structure"].startswith("inception")  # whose aggregation is counted too
    counted = [
        sum(m.weight.numel() for m in part.modules() if isinstance(m, nn.Conv2d))
        for part in (
            built.scales,
            nn.ModuleList([built.scales, built.aggregate]) if inception else built.scales,
        )
    ]
    result = compare.main(compose("compare", ["table=1"]).config)
    ours = {r["label"]: [c["value"] for c in r["cells"]] for r in result["rows"]}
    assert ours[printed["structure"]] == counted
    rounded = [f"{count / 1000:.0f}K" for count in counted]
    assert rounded == printed["printed"]
