"""The generators and the methods, by the names that `model=` and `objective.method=` give them."""

from collections.abc import Mapping
from typing import Any

from pipeline.config.groups import ModelConfig, ObjectiveConfig
from pipeline.config.methods.deepfill import DeepfillModel, DeepfillObjective
from pipeline.config.methods.edgeconnect import EdgeconnectModel, EdgeconnectObjective
from pipeline.config.methods.msanet import MsanetModel, MsanetObjective
from pipeline.config.methods.musical import MusicalModel, MusicalObjective
from pipeline.config.methods.pconv import PconvModel, PconvObjective

MODELS: dict[str, type[ModelConfig]] = {
    "msanet": MsanetModel,
    "musical": MusicalModel,
    "pconv": PconvModel,
    "edgeconnect": EdgeconnectModel,
    "deepfill": DeepfillModel,
}
METHODS: dict[str, type[ObjectiveConfig]] = {
    "msanet": MsanetObjective,
    "musical": MusicalObjective,
    "pconv": PconvObjective,
    "edgeconnect": EdgeconnectObjective,
    "deepfill": DeepfillObjective,
}
# Keys that choose the schema of their section.
CHOICES: dict[str, Mapping[str, type]] = {"model.name": MODELS, "objective.method": METHODS}


def method_of(values: Mapping[str, Any]) -> str:
    """Return the method of a configuration that was written before there was a key for it."""

    def given(name: str) -> Any:
        return values.get(f"objective.{name}")

    vgg16 = given("features") == "vgg16" and not given("l2")
    return "musical" if vgg16 or any(map(given, ("adv", "l1_hole", "tv"))) else "msanet"
