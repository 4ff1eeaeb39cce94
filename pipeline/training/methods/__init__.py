"""The methods, one file each: which networks a method has, and what each of them learns."""

from pipeline.config.schema import TrainConfig
from pipeline.training.engine import Engine
from pipeline.training.method import Method
from pipeline.training.methods.msanet import MSANet
from pipeline.training.methods.musical import Musical

METHODS: dict[str, type[Method]] = {"msanet": MSANet, "musical": Musical}


def build(config: TrainConfig, engine: Engine) -> Method:
    """Build the networks of the configured method."""
    return METHODS[config.objective.method](config, engine)
