"""`train smoke=true`: everything that a run does, in a few steps, and nothing left of it."""

import json

import pytest

from pipeline.config.compose import compose
from pipeline.training.smoke import shortened


def test_every_phase_is_shortened_to_two_steps_of_the_real_batch():
    words = ["experiment=quickstart", "run=somewhere", "batch=8", "accumulate=2"]
    config = compose("train", words).config
    short = shortened(config)
    ends = [phase.until for phase in short.objective.phases]
    assert ends == [16, 32, None] and short.max_images == 48
    rates = [phase.lr for phase in config.objective.phases]
    assert [phase.lr for phase in short.objective.phases] == rates
    assert (short.batch, short.accumulate, short.model) == (8, 2, config.model)
    assert short.run == "somewhere.smoke" and not short.tracking.enabled


@pytest.mark.slow
@pytest.mark.dist
def test_it_restores_exports_projects_and_leaves_nothing(train, tmp_path):
    phases = "objective.phases=[{until: 800, lr: 1.0e-3}, {until: null, lr: 1.0e-4}]"
    words = ("processes=2", "max_images=72000", phases)
    done = train(tmp_path / "here" / "run", *words, "smoke=true", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["smoke"] == "passed" and report["phases"] == 2 and report["restored_at"] == 32
    assert report["exported_mb"] > 0.1 and report["peak_memory_mb"] > 50
    hours = report["seconds_a_step"] * 72000 / 8 / 3600
    assert report["projected_hours"] == pytest.approx(hours, abs=0.01)
    assert "at 32 of 40" in done.stderr
    assert list(tmp_path.rglob("*")) == [tmp_path / "here"]
