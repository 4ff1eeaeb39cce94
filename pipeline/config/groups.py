"""The schema of the groups under `conf/` and of a run's other sections.

The schema is closed: `pipeline.config.resolve` rejects a key that is neither here nor in `schema`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from omegaconf import MISSING

DRAWN = ("center", "square", "irregular")  # buckets that need no mask set

STRUCTURES = ("msau", "single", "inception_v1", "inception_v3")
CHANNEL = ("augmented", "none", "se", "cbam", "sca")
SPATIAL = ("fusing", "none", "cbam", "sca")
KINDS = ("irregular", "center", "square", "external", "none")
SSIM_WINDOWS = {"gauss11_rgb": 11, "uniform7_rgb": 7, "uniform7_gray": 7, "uniform51_gray": 51}


def key(
    default: Any,
    help: str,
    choices: tuple[Any, ...] = (),
    least: float | None = None,
    most: float | None = None,
    below: float | None = None,
    path: str | None = None,
) -> Any:
    """Return a field with its help text, choices or range (of a list: of each element) and,
    if it holds a path or URL, the kind of it."""
    metadata = {"help": help, "choices": choices, "least": least, "most": most, "below": below}
    metadata["path"] = path
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


# Keys that hold the path or URL of what is read, of what is written, and of what is read or a name.
reads, writes, may_read = (partial(key, path=kind) for kind in ("read", "written", "read or name"))


# --- groups: model ------------------------------------------------------------------------------


@dataclass
class ModelConfig:
    name: str = key("msanet", "the generator", ("msanet", "musical"))


@dataclass
class MsanetModel(ModelConfig):
    name: str = "msanet"
    fe: list[int] = key([64, 64], "extraction widths; all but the first downsample", least=1)
    msau: list[list[int]] = key(
        [[128, 48], [256, 96]], "per MSAU: width of F_D and of each scale", least=1
    )
    iru: list[int] = key([192, 96, 64], "widths of the restoration units", least=1)
    width: float = key(1.0, "multiplies every width", least=0.01)
    structure: str = key("msau", "multi-scale structure (tables 1, 2)", STRUCTURES)
    mask_update: bool = key(True, "max-pooling mask update (table 3)")
    channel: str = key("augmented", "channel attention in the MSAUs", CHANNEL)
    spatial: str = key("fusing", "spatial attention in the MSAUs", SPATIAL)
    restore_channel: str = key("augmented", "channel attention in restoration", CHANNEL)
    restore_spatial: str = key("fusing", "spatial attention in restoration", SPATIAL)
    norm: str = key("batch", "normalization; not given in the paper", ("batch", "instance", "none"))
    squeeze: str = key("full", "n of eq. 7; not given in the paper", ("full", "half", "quarter"))
    gate: str = key("sigmoid", "attention's gate; not given in the paper", ("sigmoid", "none"))
    taps: int = key(3, "feature maps in the perceptual and style losses", least=1)


@dataclass
class MusicalModel(ModelConfig):
    name: str = "musical"
    ngf: int = key(64, "width of the first layer", least=1)
    attention: str = key("multi", "contextual attention", ("multi", "single", "none"))
    order: str = key("paper", "order of the attention's steps", ("paper", "released"))
    temperature: float = key(10.0, "factor of the cosine in softmax; none in the paper", least=0.0)
    propagation: int = key(1, "k of eq. 2; not given in the paper", least=0, most=8)


MODELS = {"msanet": MsanetModel, "musical": MusicalModel}


# --- groups: data, masks, objective, parallel, cluster, protocol ---------------------------------


@dataclass
class ResizedData:
    resize_short: int | None = key(None, "short side before the crop; null: no resizing", least=1)


@dataclass
class CroppedData(ResizedData):
    name: str = key("folder", "the dataset's name, in records and tables")
    crop: int = key(256, "side of the square training crop, pixels", least=1)
    crop_mode: str = key("random", "where the crop is taken", ("random", "center", "resized"))


@dataclass
class EvaluationData(ResizedData):
    """The keys of `data` that `evaluate` reads; the protocol determines the crop."""

    url: str | None = reads(None, "the sharded set: a folder or s3:// URL")


@dataclass
class DataConfig(EvaluationData, CroppedData):
    """The keys of `data` that training reads."""

    train: str = key("train", "split that training reads")
    validate: str = key("val", "split for validation during training; never test")
    flip: bool = key(True, "mirror half of the crops")


@dataclass
class ShardingConfig(CroppedData):
    """The keys of `data` that `shard` reads; images that training could not crop are rejected."""

    layout: str = key("folder", "the publisher's layout, set by data=")
    holdout: float = key(0.05, "share of train held out if there is no val", least=0.0, most=1.0)
    shard_mb: int = key(64, "size of a shard, MB", least=1, most=1024)
    min_side: int = key(0, "images with a shorter side are rejected, pixels", least=0)
    store_short: int | None = key(None, "short side of stored images; null: as published", least=1)
    quality: int = key(95, "JPEG quality where `shard` re-encodes", least=1, most=100)


@dataclass
class EvaluationMasks:
    """The keys of `masks` that `evaluate` reads."""

    url: str | None = reads(None, "a mask set (see `masks`)")


@dataclass
class MasksConfig(EvaluationMasks):
    """The keys of `masks` that training reads."""

    kind: str = key("irregular", "kind of holes", KINDS)
    low: float = key(0.01, "smallest hole ratio of training masks", least=0.0, most=1.0)
    high: float = key(0.6, "largest hole ratio of training masks", least=0.0, most=1.0)
    border: float = key(0.5, "share of masks whose holes keep off the border", least=0.0, most=1.0)


@dataclass
class Phase:
    until: int | None = key(None, "images_seen at which the phase ends; null: never", least=1)
    lr: float = key(3e-4, "generator's learning rate", least=0.0)
    d_lr: float | None = key(None, "discriminator's learning rate; null: as lr", least=0.0)


@dataclass
class ObjectiveConfig:
    l1: float = key(0.0, "weight of the L1 loss, logged as g/l1", least=0.0)
    l1_hole: float = key(0.0, "weight of L1 inside the hole", least=0.0)
    l2: float = key(0.0, "weight of the L2 loss, logged as g/l2", least=0.0)
    perceptual: float = key(0.0, "weight of the perceptual loss, logged as g/perceptual", least=0.0)
    style: float = key(0.0, "weight of the style loss, logged as g/style", least=0.0)
    tv: float = key(0.0, "weight of total variation, logged as g/tv", least=0.0)
    adv: float = key(0.0, "weight of the adversarial loss; 0 builds no discriminator", least=0.0)
    features: str = key("internal", "perceptual and style features", ("internal", "vgg16"))
    loss_on: str = key("raw", "image that the pixel losses compare", ("raw", "composite"))
    feature_images: str = key("raw", "images given to VGG16", ("raw", "raw+composite"))
    vgg_normalize: bool = key(True, "ImageNet normalization before VGG16")
    gan: str = key("vanilla", "adversarial loss", ("vanilla", "lsgan"))
    d_pretrained: bool = key(True, "start the discriminator from ImageNet weights")
    optimizer: str = key("adam", "optimizer; Adam in both papers", ("adam", "adamw"))
    betas: list[float] = key([0.9, 0.999], "Adam's decay rates", least=0.0, below=1.0)
    phases: list[Phase] = key([], "learning rates by images_seen")


@dataclass
class ParallelConfig:
    strategy: str = key("ddp", "parallel strategy", ("single", "ddp", "zero1", "zero2", "zero3"))
    sync_batchnorm: bool = key(True, "compute batch statistics over all processes")
    channels_last: bool = key(True, "keep the generator in channels-last memory format")
    compile: bool = key(False, "torch.compile the networks in place")
    hang_timeout: int = key(
        300,
        "seconds without progress before a rank counts as hung; 10 times that for first steps",
        least=1,
        most=86_400,
    )


@dataclass
class ProtocolConfig:
    name: str = key("msanet", "name of the evaluation protocol")
    buckets: list[str] = key([], "hole-ratio buckets, as the mask set names them")
    ssim: str = key("gauss11_rgb", "SSIM convention", tuple(SSIM_WINDOWS))
    size: int = key(256, "side of the evaluated crop, pixels", least=8)


# --- plain sections -----------------------------------------------------------------------------


@dataclass
class HoleConfig:
    """How `predict` and `demo` change the hole of a mask."""

    invert: bool = key(False, "fill the black part of the mask")
    grow: int = key(0, "width by which the hole grows, pixels", least=0)
    feather: int = key(
        0, "outer part of that width, where the fill blends into the image, pixels", least=0
    )


@dataclass
class MaskConfig(HoleConfig):
    file: str = may_read(
        MISSING, "image (white: hole), folder, mask set, rectangle x,y,w,h, or alpha; short: mask="
    )


@dataclass
class CheckpointConfig:
    every_images: int = key(20_000, "images between checkpoints", least=0)
    keep: int = key(3, "number of newest checkpoints kept, in addition to the best", least=1)


@dataclass
class LogConfig:
    every: int | None = key(None, "steps per line of steps.jsonl; null: CPU 1, GPU 20", least=1)


@dataclass
class ValidateConfig:
    every_images: int = key(20_000, "images between validations; 0: only at the end", least=0)
    pairs: int = key(64, "fixed image-mask pairs", least=1)
    size: int = key(256, "side of the validated crop, pixels", least=8)
    samples: int = key(6, "images logged at each validation", least=0)


@dataclass
class RecordConfig:
    """The keys of `tracking` that `evaluate` reads: it records in the run's own experiment."""

    enabled: bool = key(True, "log the result to MLflow")


@dataclass
class ReportConfig(RecordConfig):
    """The keys of `tracking` that `compare` reads."""

    enabled: bool = key(True, "log the report to MLflow, if out= is given")
    experiment: str | None = key(None, "MLflow experiment of the report; null: $USER/compare")


@dataclass
class TrackingConfig(ReportConfig):
    """The keys of `tracking` that training reads."""

    enabled: bool = key(True, "record the run in MLflow")
    experiment: str | None = key(None, "MLflow experiment; null: $USER/<recipe>, or $USER/train")
    required: bool = key(False, "fail if the tracking server does not answer at the start")
    drain: bool = key(True, "send while training; false: only store, `sync` sends")


def from_set(buckets: list[str]) -> list[str]:
    """Return the buckets of masks that are read from a set; the others are drawn."""
    return [bucket for bucket in buckets if bucket not in DRAWN]


# Keys in the config.yaml of older runs that training never read.
SHARDING = ("layout", "holdout", "shard_mb", "min_side", "store_short", "quality")
RETIRED = ("objective.name", *(f"data.{name}" for name in SHARDING))
# Former names of keys, which files of older runs and commands may still use; a hash of keys takes
# the former name, so that it is the one of older runs.
RENAMED = {"objective.vgg_normalise": "objective.vgg_normalize", "pictures": "images"}
FORMER = {new: old for old, new in RENAMED.items()}


# --- learning rates ------------------------------------------------------------------------------


def phase_at(phases: Sequence[Phase], images_seen: int, scale: float = 1.0) -> Phase:
    """Return the phase of the step that starts at `images_seen`, its rates times `scale`."""
    phase = next((p for p in phases if p.until is None or images_seen < p.until), phases[-1])
    own = None if phase.d_lr is None else phase.d_lr * scale
    return Phase(phase.until, phase.lr * scale, own)


def check_phases(phases: Sequence[Phase]) -> None:
    """Raise ValueError unless the ends increase and only the last is null."""
    ends = [p.until for p in phases]
    if not phases:
        raise ValueError("objective.phases is empty: give at least [{until: null, lr: 3.0e-4}]")
    closed = [e for e in ends if e is not None]
    if None in ends[:-1] or closed != sorted(set(closed)):
        raise ValueError(
            f"objective.phases end at {ends}: ends must increase, null only at the last"
        )
