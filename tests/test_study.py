"""The small study: its statistics against numbers worked out by hand, its page against results."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.compose import compose

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("study", ROOT / ".ci/study.py")
study = importlib.util.module_from_spec(spec)
spec.loader.exec_module(study)


def test_the_page_is_what_the_committed_results_give():
    assert study.REPORT.read_text() == study.report()


@pytest.mark.parametrize("name", study.CELLS)
def test_a_cell_is_a_recipe_of_the_paper_at_small_scale(name):
    config = compose("train", study.CELLS[name].train(3).split()).config
    ends = [phase.until for phase in config.objective.phases]
    images = study.CELLS[name].images
    assert ends == [images * 5 // 8, images * 7 // 8, None]
    assert (config.seed, config.model.width, config.objective.l2) == (3, 0.25, 1.0)


def test_an_interval_over_seeds_is_students():
    """Differences 1, 2, 3 of three seeds: 2 ± 4.303 / √3, t = 2 √3 with two degrees of freedom."""
    theirs = np.zeros((3, 4))
    ours = theirs + np.array([[1.0], [2.0], [3.0]])
    found = study.differs(ours, theirs)
    assert found["mean"] == 2
    assert found["t"] == pytest.approx([2 - 2.4841, 2 + 2.4841], abs=1e-3)
    assert found["p"] == pytest.approx(0.0742, abs=1e-4)
    assert 1 <= found["both"][0] < 2 < found["both"][1] <= 3


def test_photographs_that_disagree_widen_the_second_interval_alone():
    ours = np.tile([-3.0, 5.0, -3.0, 5.0], (8, 1)) + np.linspace(-0.1, 0.1, 8)[:, None]
    found = study.differs(ours, np.zeros_like(ours))
    assert found["t"][0] > 0.9 and found["both"][0] < 0
    assert study.conclusion(1, found, 0.001) == "cannot be told"


def test_holms_correction_is_that_of_the_textbook():
    assert study.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
