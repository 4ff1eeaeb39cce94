"""The schema of the groups under `conf/` and of a run's other sections.

The schema is closed: `pipeline.config.resolve` rejects a key that is neither here nor in `schema`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, ClassVar

from omegaconf import MISSING

DRAWN = ("center", "square", "irregular")  # buckets that need no mask set
KINDS = ("irregular", "center", "square", "external", "none")
OPTIMIZERS = ("adam", "adamw", "adadelta")
RATES = ("constant", "linear", "cosine")
MAX_SEED = 2**63 - 1  # torch takes no more than 64 bits
GATE = ["psnr", "ssim"]  # metrics that `promote` compares unless the protocol names others
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
    metadata = dict(help=help, choices=choices, least=least, most=most, below=below, path=path)
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


# Keys that hold a path or URL: of what is read (or its name), and of a folder or file to write.
reads, may_read = partial(key, path="read"), partial(key, path="read or name")
writes, writes_file = partial(key, path="written"), partial(key, path="written file")


# --- groups: model, objective -------------------------------------------------------------------


@dataclass
class ModelConfig:
    """A generator: its name, and as further keys the options of its class in `models`."""

    features: ClassVar[bool] = False  # whether losses may compare what its layers make of an image

    name: str = key("msanet", "the generator")

    def sides(self) -> tuple[int, int]:
        """Return what divides the sides of images that fit the network, and their least."""
        raise NotImplementedError

    def normalized(self, side: int) -> int:
        """Return the fewest cells of an image of this side that a batch norm averages.

        2 stands for any number that is enough.
        """
        return 2


@dataclass
class Phase:
    until: int | None = key(None, "images_seen at which the phase ends; null: never", least=1)
    lr: float = key(3e-4, "generator's learning rate", least=0.0)
    d_lr: float | None = key(None, "discriminator's learning rate; null: as lr", least=0.0)
    rates: dict[str, float] = key(
        {}, "learning rate of each network that learns, in place of lr and d_lr", least=0.0
    )
    every: dict[str, int] = key({}, "network: it learns on each such batch of the phase", least=1)
    frozen: list[str] = key([], "modules whose norms keep their statistics, as generator.encoder")
    without: list[str] = key([], "weights of the objective that are 0 in this phase")
    warmup: int = key(0, "images over which the rates rise from 0", least=0)
    decay: str = key("constant", "shape of the rates after that, down to 0 at the end", RATES)


@dataclass
class ObjectiveConfig:
    """A method: what each of its networks learns, by weights of losses and a schedule."""

    networks: ClassVar[tuple[str, ...]] = ("generator",)
    generators: ClassVar[tuple[str, ...]] = ()  # the models that fit its losses; empty: any

    method: str = key("msanet", "the method, a file of pipeline/training/methods")
    optimizer: str = key("adam", "optimizer", OPTIMIZERS)
    betas: list[float] = key([0.9, 0.999], "Adam's decay rates", least=0.0, below=1.0)
    phases: list[Phase] = key([], "learning rates by images_seen")

    @property
    def players(self) -> tuple[str, ...]:
        """The networks that learn, each by an optimizer of its own."""
        return self.networks

    def published(self) -> list[str]:
        """List the networks that start from published weights."""
        return []

    def compares_features(self) -> bool:
        """Return whether a loss compares the generator's own features."""
        return False

    def normalized(self, side: int) -> int:
        """Return what `ModelConfig.normalized` does, of the discriminator."""
        return 2

    def discriminator_sides(self) -> tuple[int, int] | None:
        """Return what divides the sides of images that fit the discriminator, and their least."""
        return None

    def penalized(self) -> bool:
        """Return whether a loss holds gradients, which are differentiated once more."""
        return False

    def weights(self) -> dict[str, float]:
        """Return the weights of the losses by name."""
        named = (f.name for f in fields(self) if f.metadata.get("help", "").startswith("weight "))
        return {name: getattr(self, name) for name in named}


# --- groups: data, masks, parallel, protocol ----------------------------------------------------


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
class MethodsConfig:
    path: str | None = key(None, "folder of methods outside the checkout (docs/adding-a-method.md)")


@dataclass
class DataConfig(EvaluationData, CroppedData):
    """The keys of `data` that training reads."""

    train: str = key("train", "split that training reads")
    validate: str = key("val", "split for validation during training; never test")
    flip: bool = key(True, "mirror half of the crops")
    lanes: str = key(
        "auto", "lanes of the order; auto: 192, or what the first start's ranks divide"
    )


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
    sides: list[int] = key(
        [], "side of center holes, or shortest and longest of square ones; []: half", least=1
    )


@dataclass
class ParallelConfig:
    strategy: str = key("ddp", "parallel strategy", ("single", "ddp", "zero1", "zero2", "zero3"))
    sync_batchnorm: bool = key(True, "compute batch statistics over all processes")
    channels_last: bool = key(True, "keep the generator in channels-last memory format")
    compile: bool = key(False, "torch.compile the networks in place")
    restart_in_place: bool = key(False, "after a failure, start workers again inside the job")
    deterministic: bool = key(True, "GPU: repeatable bits, no TF32; false: fastest algorithms")
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
    gate: list[str] = key(GATE, "metrics that `promote` compares; `evaluate` computes them too")
    images: str | None = key(None, "sha256 of the images' sorted names; null: any images")
    stored: int | None = key(None, "smallest short side of a stored image, pixels", least=8)
    drawn: str | None = key(None, "kind of its drawn masks (`masks kind=`); null: any masks")
    seed: int = key(0, "seed of its drawn masks", least=0, most=MAX_SEED)
    version: int = key(1, "version of its drawn masks", least=1)


# --- plain sections -----------------------------------------------------------------------------


@dataclass
class HoleConfig:
    """How `predict` and `demo` change the hole of a mask."""

    invert: bool = key(False, "fill the black part of the mask")
    grow: int = key(0, "width by which the hole grows, pixels", least=0)
    feather: int = key(
        0, "outer part of grow, in which the fill blends into the image, pixels", least=0
    )


@dataclass
class MaskConfig(HoleConfig):
    file: str = may_read(
        MISSING,
        "image (white: hole), folder, mask set, rectangle x,y,w,h, or alpha (also as mask=)",
    )


@dataclass
class CheckpointConfig:
    every_images: int = key(20_000, "images between checkpoints", least=0)
    every_seconds: int = key(0, "seconds between checkpoints, too; 0: only by images", least=0)
    keep: int = key(3, "number of newest checkpoints kept, in addition to the best", least=1)


@dataclass
class LogConfig:
    every: int | None = key(None, "steps per line of steps.jsonl; null: CPU 1, GPU 20", least=1)


@dataclass
class ValidateConfig:
    every_images: int = key(
        20_000, "images between validations, at most 50 a run; 0: only at the end", least=0
    )
    pairs: int = key(500, "fixed image-mask pairs; fewer if the split has fewer", least=1)
    size: int = key(256, "side of the validated crop, pixels", least=8)
    samples: int = key(6, "images logged at each validation", least=0)

    def interval(self, max_images: int) -> int:
        """Return the images between validations: the multiple of `every_images` that gives at most
        50 a run, because the best of hundreds is chosen by their noise. 0: only at the end."""
        return self.every_images * math.ceil(max_images / (50 * max(1, self.every_images)))


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
