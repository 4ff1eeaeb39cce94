"""The generators and the methods, by the names that `model=` and `objective.method=` give them."""

from collections.abc import Mapping
from typing import Any

from pipeline.config.groups import ModelConfig, ObjectiveConfig
from pipeline.config.methods.context_encoder import (
    ContextEncoderModel,
    ContextEncoderObjective,
)
from pipeline.config.methods.deepfill import DeepfillModel, DeepfillObjective
from pipeline.config.methods.edgeconnect import EdgeconnectModel, EdgeconnectObjective
from pipeline.config.methods.glc import GlcModel, GlcObjective
from pipeline.config.methods.gmcnn import GmcnnModel, GmcnnObjective
from pipeline.config.methods.lama import LamaModel, LamaObjective
from pipeline.config.methods.msanet import MsanetModel, MsanetObjective
from pipeline.config.methods.musical import MusicalModel, MusicalObjective
from pipeline.config.methods.pconv import PconvModel, PconvObjective
from pipeline.config.methods.shiftnet import ShiftnetModel, ShiftnetObjective

MODELS: dict[str, type[ModelConfig]] = {
    "msanet": MsanetModel,
    "musical": MusicalModel,
    "glc": GlcModel,
    "gmcnn": GmcnnModel,
    "pconv": PconvModel,
    "shiftnet": ShiftnetModel,
    "context_encoder": ContextEncoderModel,
    "edgeconnect": EdgeconnectModel,
    "deepfill": DeepfillModel,
    "lama": LamaModel,
}
METHODS: dict[str, type[ObjectiveConfig]] = {
    "msanet": MsanetObjective,
    "musical": MusicalObjective,
    "glc": GlcObjective,
    "gmcnn": GmcnnObjective,
    "pconv": PconvObjective,
    "shiftnet": ShiftnetObjective,
    "context_encoder": ContextEncoderObjective,
    "edgeconnect": EdgeconnectObjective,
    "deepfill": DeepfillObjective,
    "lama": LamaObjective,
}
# Keys that choose the schema of their section.
CHOICES: dict[str, Mapping[str, type]] = {"model.name": MODELS, "objective.method": METHODS}


def method_of(values: Mapping[str, Any]) -> str:
    """Return the method of a configuration that was written before there was a key for it."""

    def given(name: str) -> Any:
        return values.get(f"objective.{name}")

    vgg16 = given("features") == "vgg16" and not given("l2")
    return "musical" if vgg16 or any(map(given, ("adv", "l1_hole", "tv"))) else "msanet"
