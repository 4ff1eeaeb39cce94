"""The closed schema: every key of every verb, its type, default, choices and meaning.

A key that is not here is refused (`compose`). Nothing heavy is imported, so that `--help` and
`--dry-run` answer at once on a login node. What groups hold is in `groups`.
"""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from jobs.spec import Cluster
from pipeline.config.groups import (
    CheckpointConfig,
    DataConfig,
    LogConfig,
    MasksConfig,
    ModelConfig,
    ObjectiveConfig,
    ParallelConfig,
    ProtocolConfig,
    TrackingConfig,
    ValidateConfig,
    key,
    section,
)


@dataclass
class CommandConfig:
    """What every verb takes."""


@dataclass
class QuickstartConfig(CommandConfig):
    out: str = key("runs/quickstart", "the folder everything goes into")


@dataclass
class DoctorConfig(CommandConfig):
    url: str | None = key(None, "a bucket or folder to try put, get and delete in")


@dataclass
class ShardConfig(CommandConfig):
    source: str | None = key(None, "folder, tar or zip as published")
    out: str | None = key(None, "folder or s3:// URL of the sharded set")
    data: DataConfig = section(DataConfig)
    workers: int = key(1, "processes", least=1)
    task: str | None = key(None, "I/N: this task's share of the shards, I from 0")
    max_reject_rate: float = key(
        0.01, "share of rejected images above which the run ends", least=0.0, most=1.0
    )
    seed: int = key(0, "of the permutation over shards", least=0)
    action: str = key("write", "set by `shard verify|info|gc`", ("write", "verify", "info", "gc"))
    url: str | None = key(None, "the set that verify, info and gc look at")
    every_byte: bool = key(False, "verify: read and hash every byte, not only sizes")
    older_than: str = key("24h", "gc: only what is older than this")
    delete: bool = key(False, "gc: delete; otherwise only list")


@dataclass
class MakeMasksConfig(CommandConfig):
    out: str = key(MISSING, "folder or s3:// URL of the mask set")
    size: int = key(256, "side, pixels", least=8)
    per_bucket: int = key(2000, "masks in each bucket", least=1)
    seed: int = key(0, "of the generator", least=0)
    border: float = key(0.5, "share of masks whose holes keep off the border", least=0.0, most=1.0)
    fixed: bool = key(True, "add the bucket of random 25 % squares")
    source: str | None = key(None, "folder or zip of NVIDIA's masks to import instead")
    polarity: str = key("auto", "of imported masks", ("auto", "hole_white", "hole_black"))


CACHE, RANDOM = "cache", "random"  # of `train weights=`


@dataclass
class TrainConfig(CommandConfig):
    experiment: str | None = key(None, "a recipe under conf/experiment")
    run: str | None = key(None, "the run's folder or URL; null: <root>/<experiment>-<hash>")
    root: str = key("runs", "where runs without a name of their own go")
    init: str | None = key(None, "weights to start from: a run, a checkpoint or models:/…")
    weights: str = key(
        CACHE,
        "VGG16's and the discriminator's ImageNet weights: cache (see `fetch`), a folder or URL of "
        "such files, or random: none",
    )
    smoke: bool = key(False, "two steps of each phase, validate, save, restore, export, leave none")
    seed: int = key(0, "of weights, order, crops and masks", least=0)
    batch: int = key(16, "global batch: images a step over all processes", least=1)
    max_images: int = key(1_000_000, "length of training, images seen", least=1)
    processes: str = key("auto", "processes on this machine; auto: one per GPU, else 1")
    threads: str = key("auto", "CPU threads of each process; auto: cores / processes")
    loader_threads: int = key(2, "decode threads of each process", least=1)
    precision: str = key("auto", "autocast", ("auto", "fp32", "bf16", "fp16"))
    accumulate: int = key(1, "micro-batches a step", least=1)
    clip: float | None = key(None, "largest gradient norm; null: no clipping", least=1e-09)
    ema: float = key(
        0.0, "decay of averaged weights, per step; 0: none (the papers)", least=0.0, below=1.0
    )
    max_skipped: int = key(10, "non-finite steps in a row before the run ends", least=1)
    model: ModelConfig = section(ModelConfig)
    data: DataConfig = section(DataConfig)
    masks: MasksConfig = section(MasksConfig)
    objective: ObjectiveConfig = section(ObjectiveConfig)
    parallel: ParallelConfig = section(ParallelConfig)
    cluster: Cluster = section(Cluster)
    checkpoint: CheckpointConfig = section(CheckpointConfig)
    log: LogConfig = section(LogConfig)
    validate: ValidateConfig = section(ValidateConfig)
    tracking: TrackingConfig = section(TrackingConfig)


@dataclass
class EvaluateConfig(CommandConfig):
    checkpoint: str | None = key(None, "a run or one of its checkpoints")
    model: str | None = key(None, "registered model, archive, or mean_colour, telea")
    predictions: str | None = key(None, "folder of KEY.png to score instead of a model")
    export: str | None = key(None, "folder to write the pairs into: KEY.png, KEY_mask.png")
    data: DataConfig = section(DataConfig)
    masks: MasksConfig = section(MasksConfig)
    protocol: ProtocolConfig = section(ProtocolConfig)
    split: str = key("val", "split of the images")
    weights: str = key("auto", "auto: ema where the run has it", ("auto", "raw", "ema"))
    batch: int = key(8, "pairs at a time", least=1)
    limit: int | None = key(None, "pairs of each bucket; null: all", least=1)
    out: str | None = key(None, "Parquet of per-image scores; null: in the run's folder")
    processes: str = key("auto", "processes on this machine; auto: one per GPU, else 1")
    pictures: int = key(12, "pairs whose pictures are kept for reports", least=0)
    features: str | None = key(None, "folder for pictures of MSA-Net's inside (figures 3, 5, 7, 9)")
    name: str | None = key(None, "what the result is called in tables")
    tracking: TrackingConfig = section(TrackingConfig)


@dataclass
class RegisterConfig(CommandConfig):
    run: str = key(MISSING, "the run's folder or URL")
    checkpoint: str = key("best", "best, last, or images_seen of one")
    name: str | None = key(None, "registered model; null: inpaint-<model>")
    weights: str = key("auto", "auto: ema where the run has it", ("auto", "raw", "ema"))


@dataclass
class PromoteConfig(CommandConfig):
    model: str = key(MISSING, "registered model, or NAME/VERSION")
    run: str | None = key(None, "the run whose newest version is promoted")
    into: str | None = key(None, "registered model that is promoted into; null: the same")
    pairs: str | None = key(None, "Parquet of the evaluation whose pairs are pinned; null: own")
    repin: bool = key(False, "pin the pairs anew and score the champion on them")
    fresh: bool = key(False, "evaluate the archive here, whatever evaluations there are")
    tolerance: float = key(0.1, "PSNR that any bucket may lose to the champion, dB")
    bound: float = key(0.02, "PSNR that the mean over buckets may lose, dB")
    floor: float = key(12.0, "PSNR that every bucket must reach, dB")
    verify: bool = key(False, "only check the record and the files of past promotions")
    root: str = key("runs", "the folder of runs, where no tracking server is set")


@dataclass
class RollbackConfig(CommandConfig):
    model: str = key(MISSING, "registered model")
    version: int | None = key(None, "version to go back to; null: the champion before")
    root: str = key("runs", "the folder of runs, where no tracking server is set")


@dataclass
class PredictConfig(CommandConfig):
    model: str = key(MISSING, "registered model (models:/NAME@champion), checkpoint or archive")
    image: str = key(MISSING, "picture, folder of pictures, or sharded set")
    mask: str = key(MISSING, "picture (white: hole), folder, mask set, rectangle x,y,w,h, or alpha")
    out: str = key(MISSING, "picture or folder to write")
    split: str = key("test", "split of a sharded set")
    strip: bool = key(False, "write original, mask and result side by side")
    tile: int = key(512, "side of the tiles of larger pictures, pixels", least=64)
    overlap: int = key(64, "overlap of tiles, pixels", least=0)


@dataclass
class CompareConfig(CommandConfig):
    table: str | None = key(None, "a printed table: 1 to 6, musical/1 to musical/3")
    runs: list[str] = key([], "runs, run ids or Parquet files; empty: all that was evaluated")
    protocol: str | None = key(None, "protocol compared on; null: that of most evaluations")
    against: str | None = key(None, "row the others are set against; null: the best of ours")
    out: str | None = key(None, "folder for compare.md, compare.csv and compare.html")
    root: str = key("runs", "the folder of runs")
    tracking: TrackingConfig = section(TrackingConfig)


@dataclass
class DemoConfig(CommandConfig):
    model: str = key(MISSING, "registered model, checkpoint or archive")
    against: str | None = key(None, "a second one, side by side")
    host: str = key("127.0.0.1", "address to listen on; 0.0.0.0: everybody may use it")
    port: int = key(7860, "port; 0: a free one")


@dataclass
class SyncConfig(CommandConfig):
    dir: str = key(MISSING, "a run's folder, or a folder of runs")
    watch: bool = key(False, "go on until stopped")


@dataclass
class RunsConfig(CommandConfig):
    action: str = key("list", "set by `runs list|close|du|prune`", ("list", "close", "du", "prune"))
    root: str = key("runs", "the folder of runs")
    filter: str | None = key(None, "MLflow filter, e.g. metrics.`val/psnr` > 24")
    best: str | None = key(None, "metric to sort by, best first")
    limit: int = key(50, "rows", least=1)
    older_than: str | None = key(
        None, "close: silent for (24h), if nothing else tells; prune: untouched for (30d)"
    )
    keep: str = key("best,last", "prune: checkpoints that stay")
    delete: bool = key(False, "prune: delete; otherwise only list")


@dataclass
class BenchConfig(CommandConfig):
    what: str = key(
        MISSING,
        "what is measured, as ratios in one run",
        ("attention", "checkpoint", "loader", "metrics", "predict", "shard", "tracking", "train"),
    )


@dataclass
class FetchConfig(CommandConfig):
    names: list[str] = key([], "weights; none: all that are known")
    source: str | None = key(None, "a file, folder or URL instead of the publisher's")
    sha256: str | None = key(None, "of the file at source=")


@dataclass
class SubmitConfig(CommandConfig):
    cluster: Cluster = section(Cluster)
    root: str = key("runs", "where runs and jobs without a name of their own go")
    check: bool = key(False, "ask the scheduler whether it would take the job; submit nothing")


@dataclass
class StatusConfig(CommandConfig):
    id: str | None = key(None, "a job's or run's id, folder or URL; null: all under root")
    root: str = key("runs", "the folder of runs")


@dataclass
class LogsConfig(CommandConfig):
    id: str = key(MISSING, "a job's or run's id, folder or URL")
    root: str = key("runs", "the folder of runs")
    follow: bool = key(False, "go on until the job ends; -f for short")


@dataclass
class CancelConfig(CommandConfig):
    id: str = key(MISSING, "a job's or run's id, folder or URL")
    root: str = key("runs", "the folder of runs")
