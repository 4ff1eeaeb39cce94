"""The networks of a run."""

from pipeline.config.compose import compose
from pipeline.training import method
from tests.support.strategies import engine_of

WORDS = ("model=musical", "model.ngf=4", "objective=musical_released", "weights=random",
         "threads=1")  # fmt: skip


def test_without_an_adversarial_weight_no_discriminator_is_built(monkeypatch):
    words = (*WORDS, "precision=fp32", "data.crop=64", "objective.adv=0")
    config = compose("train", words).config
    with engine_of(config, monkeypatch) as engine:
        networks = method.build(config, engine)
    assert [player.name for player in networks.players] == ["generator"]
    assert "densenet121" not in networks.pretrained
