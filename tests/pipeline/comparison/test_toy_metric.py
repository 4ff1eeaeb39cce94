"""A metric is added by a function and a row of `METRICS`; all that prints scores shows it."""

import pytest
import torch

from pipeline.comparison import compare, report
from pipeline.comparison.collect import Evaluation
from pipeline.comparison.table import as_csv, as_markdown, as_text
from pipeline.evaluation import metrics, results
from pipeline.evaluation.pairs import make_pairs
from pipeline.evaluation.scoring import validate
from pipeline.registry import package
from shards.manifest import open_manifest
from tests.support.pairs import BUCKETS, SIZE, crops, image_set, mask_set, score
from tests.support.scores import FACTS

VALUE = 7.25  # of every image; printed with the two decimals of the row below
TOY = metrics.Metric(
    "toy_loss", "Toy", "u", 2, -1, lambda result, image, mask: torch.full((len(image),), VALUE)
)


@pytest.fixture
def pairs(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "METRICS", (*metrics.METRICS, TOY))
    images = open_manifest(image_set(tmp_path / "images", crops(2)))
    masks = open_manifest(mask_set(tmp_path / "masks"))
    return make_pairs(images, "val", masks, BUCKETS, SIZE)


def gray(image, mask):
    return torch.full_like(image, 0.5)


def test_a_metric_of_one_row_is_in_results_tables_report_and_model_card(pairs, tmp_path):
    url = str(tmp_path / "toy.parquet")
    results.save(url, score(gray, pairs), {**FACTS, "name": "toy run"})
    table, facts = results.load(url)
    summary = results.summarize(table)
    assert {row["toy_loss"] for row in summary["buckets"].values()} == {VALUE}
    assert summary["mean6"]["toy_loss"] == VALUE

    text = results.as_text(summary).splitlines()
    assert text[0].endswith("Toy u") and all(line.endswith("7.25") for line in text[1:])

    card = package.write_card(
        {"name": "toy", "network": "msanet", "images_seen": "1", "weights": "raw"},
        {**facts, **summary},
        "m-1",
        tmp_path,
    )
    assert "| Toy u |" in card and card.count("| 7.25 |") == len(text) - 1

    made = compare.build(compare.group([Evaluation(url, facts, table)]), None, None, None)
    for printed in (as_text(made), as_markdown(made)):
        section = printed.partition("Toy u")[2]
        assert (
            section.partition("toy run")[2].split("\n")[0].count("7.25") == len(BUCKETS) + 1
        )  # and mean6
    assert f"toy_loss,{VALUE}" in as_csv(made)
    html = report.render(made, [])
    assert "<h2>Toy u</h2>" in html and html.count(">7.25<") == len(BUCKETS) + 1

    validated = validate(gray, pairs, lambda part: [part], torch.device("cpu"), 0, 1)
    assert validated["val/toy_loss"] == VALUE
    assert metrics.direction("val/toy_loss") == -1


def test_a_table_written_before_a_metric_was_added_is_still_read(tmp_path, monkeypatch, pairs):
    with monkeypatch.context() as before:
        before.setattr(metrics, "METRICS", metrics.METRICS[:-1])
        results.save(str(tmp_path / "old.parquet"), score(gray, pairs), FACTS)
    table, _ = results.load(str(tmp_path / "old.parquet"))
    assert table.schema.names == results.schema().names
    summary = results.summarize(table)
    assert "toy_loss" not in summary["mean6"]
    assert results.as_text(summary).splitlines()[1].endswith("-")
