"""The HTML report: one self-contained file that works in a browser."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.comparison import compare
from pipeline.config.compose import compose
from pipeline.evaluation import pair_images, results
from tests.support.browser import Page, installed
from tests.support.scores import evaluation


@pytest.fixture
def root(tmp_path):
    """A folder with two evaluations, one with a name that is HTML, each with two images."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    mask = np.zeros((2, 32, 32), np.uint8)
    mask[:, 8:24, 8:24] = 1
    for name, psnr, level in (("plain", 30, 90), ("<script>alert(1)</script>", 29, 200)):
        made = evaluation(name, psnr, int(psnr))
        url = str(tmp_path / "runs" / "evaluation" / f"{len(name)}.parquet")
        results.save(url, made.table, made.facts)
        result = np.where(mask[..., None] == 1, np.uint8(level), image)
        names = ("000000000-b0", "000000001-b1")
        pair_images.save(
            url, [pair_images.EvaluatedPair(*s) for s in zip(names, image, mask, result)]
        )
    return str(tmp_path / "runs")


def written(root, out):
    words = [f"root={root}", f"out={out}", "tracking.enabled=false"]
    return compare.main(compose("compare", words).config)


def test_the_report_is_one_file_that_escapes_names_and_loads_nothing(root, tmp_path):
    result = written(root, tmp_path / "out")
    assert [u.rsplit(".")[-1] for u in result["written"]] == ["md", "csv", "html"]
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
    assert not re.search(r"(src|href)=[\"']?(https?:|//)", page)
    assert "<script>alert" not in (tmp_path / "out" / "compare.md").read_text()


def test_named_runs_alone_are_compared_and_unknown_ones_refused(root):
    words = [f"root={root}", "runs=[plain]"]
    result = compare.main(compose("compare", words).config)
    assert [r["label"] for r in result["rows"] if r["kind"] == "ours"] == ["plain"]
    with pytest.raises(ValueError, match="runs=none has no evaluation"):
        compare.main(compose("compare", [f"root={root}", "runs=[none]"]).config)


def test_foreign_files_among_the_evaluations_are_skipped_with_a_message(root, capsys):
    folder = f"{root}/evaluation"
    pq.write_table(pa.table({"a": [1]}), f"{folder}/other.parquet")
    with open(f"{folder}/torn.parquet", "wb") as file:
        file.write(b"PAR1")
    result = compare.main(compose("compare", [f"root={root}"]).config)
    assert len([r for r in result["rows"] if r["kind"] == "ours"]) == 2
    message = capsys.readouterr().err
    assert (
        "other.parquet is not a table that `evaluate` wrote" in message
        and "torn.parquet" in message
    )
    with pytest.raises(ValueError, match=r"other\.parquet is not a table"):
        compare.main(compose("compare", [f"root={root}", f"runs=[{folder}/other.parquet]"]).config)


@pytest.mark.skipif(installed() is None, reason="no Chromium here: apt-get install chromium")
def test_in_a_browser_a_click_flips_a_result_to_its_original_and_back(root, tmp_path):
    written(root, tmp_path / "out")
    with Page((tmp_path / "out" / "compare.html").as_uri()) as page:
        assert page.run("document.querySelectorAll('#images tbody tr').length") == 2
        heads = page.run("[...document.querySelectorAll('#images th')].map(e => e.textContent)")
        assert heads == ["sample", "original", "mask", "<script>alert(1)</script>", "plain"]
        page.until("[...document.images].every(i => i.naturalWidth === 32)")
        cell = "document.querySelectorAll('#images tbody tr')[1].children[4].querySelector('img')"
        first = "document.querySelectorAll('#images tbody tr')[1].children[1].querySelector('img')"
        own = page.run(f"{cell}.src")
        page.run(f"{cell}.click()")
        assert page.run(f"{cell}.src === {first}.src")
        page.run(f"{cell}.click()")
        assert page.run(f"{cell}.src") == own != page.run(f"{first}.src")
        assert page.errors == []
        assert [url for url in page.requests if not url.startswith("file:")] == []
