"""The networks of a run."""

import pytest

from pipeline.config.compose import compose
from pipeline.training import method
from tests.support.strategies import engine_of

WORDS = ("model=musical", "model.ngf=4", "objective=musical_released", "weights=random",
         "threads=1")  # fmt: skip


@pytest.mark.parametrize("side", [64, 112])
def test_a_crop_that_does_not_fit_the_discriminator_is_refused_before_the_first_step(
    monkeypatch, side
):
    words = (*WORDS, "precision=fp32", f"data.crop={side}")
    config = compose("train", words).config
    with (
        engine_of(config, monkeypatch) as engine,
        pytest.raises(ValueError, match=f"data.crop={side}.*multiple of 32, at least 96"),
    ):
        method.build(config, engine)


def test_without_an_adversarial_weight_no_discriminator_is_built(monkeypatch):
    words = (*WORDS, "precision=fp32", "data.crop=64", "objective.adv=0")
    config = compose("train", words).config
    with engine_of(config, monkeypatch) as engine:
        networks = method.build(config, engine)
    assert networks.discriminator is None and networks.players == [networks.generator]
    assert "densenet121" not in networks.pretrained
