"""The closed schema: every key of every command, with type, default, choices and help text.

Keys of groups are in `groups`. Nothing heavy is imported, so that `--help` and `--dry-run` answer
at once on a login node.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from jobs.spec import Cluster
from pipeline.config import groups
from pipeline.config.groups import (
    MAX_SEED,
    key,
    may_read,
    reads,
    writes,
    writes_file,
)


@dataclass
class QuickstartConfig:
    out: str = writes("runs/quickstart", "folder of all results")


@dataclass
class DoctorConfig:
    url: str | None = writes(None, "bucket or folder to test put, get and delete in")


@dataclass
class ShardConfig:
    source: str | None = reads(
        None, "the dataset as published: local folder, tar or zip; data=wds: also a URL"
    )
    out: str | None = writes(None, "folder or s3:// URL of the sharded set")
    data: groups.ShardingConfig = field(default_factory=groups.ShardingConfig)
    workers: int = key(1, "number of processes", least=1)
    task: str | None = key(None, "I/N: this task's share of the shards, I from 0")
    max_reject_rate: float = key(0.01, "largest share of rejected images", least=0.0, most=1.0)
    seed: int = key(0, "seed of the permutation over shards", least=0, most=MAX_SEED)
    action: str = key("write", "set by `shard verify|info|gc`", ("write", "verify", "info", "gc"))
    url: str | None = reads(None, "the set that verify, info and gc read")
    every_byte: bool = key(False, "verify: read and hash every byte, not only sizes")
    older_than: str = key("24h", "gc: only what is older than this")
    delete: bool = key(False, "gc: delete; otherwise only list")


@dataclass
class MakeMasksConfig:
    out: str = writes(MISSING, "folder or s3:// URL of the mask set")
    size: int = key(256, "side, pixels", least=8)
    kind: str = key("irregular", "holes: by ratio, or a paper's", ("irregular", "lama", "mat"))
    per_bucket: int = key(2000, "masks in each bucket", least=1)
    seed: int = key(0, "seed of the mask generator", least=0, most=MAX_SEED)
    border: float = key(0.5, "share of masks whose holes keep off the border", least=0.0, most=1.0)
    fixed: bool | None = key(None, "add random 25 % squares; null: only if masks are drawn")
    source: str | None = reads(
        None, "local folder or zip of masks to import instead, yours or NVIDIA's"
    )
    polarity: str = key("auto", "polarity of imported masks", ("auto", "hole_white", "hole_black"))


CACHE, RANDOM = "cache", "random"  # values of `train weights=`
TRAINING_WEIGHTS = (
    "vgg16",
    "vgg19",
    "densenet121",
)  # published weights: of objectives, and of metrics
WEIGHTS = (
    *TRAINING_WEIGHTS,
    *("alexnet", "lpips_vgg", "lpips_alex", "dists", "stlpips", "inception"),
)
TABLES = (*map(str, range(1, 7)), *(f"musical/{n}" for n in (1, 2, 3)))


@dataclass
class TrainConfig:
    experiment: str | None = key(None, "a recipe under conf/experiment")
    run: str | None = reads(None, "the run's folder or URL; null: <root>/<experiment>-<hash>")
    root: str = key("runs", "folder of runs without run=")
    init: str | None = reads(None, "weights to start from: a run, a checkpoint or models:/…")
    weights: str = may_read(
        CACHE, "pretrained weights: cache (see `fetch`), a folder or URL of such files, or random"
    )
    smoke: bool = key(
        False, "smoke test: two steps per phase, validate, save, restore, export; leaves no output"
    )
    seed: int = key(0, "seed of weights, order, crops and masks", least=0, most=MAX_SEED)
    batch: int = key(16, "global batch size: images per step over all processes", least=1)
    max_images: int = key(1_000_000, "total training length, in images", least=1)
    processes: str = key("auto", "processes on this machine; auto: one per GPU, else 1")
    threads: str = key("auto", "CPU threads of each process; auto: cores / processes")
    loader_threads: int = key(2, "decode threads of each process", least=1)
    precision: str = key("auto", "precision of autocast", ("auto", "fp32", "bf16", "fp16"))
    accumulate: int = key(1, "micro-batches per optimizer step", least=1)
    lr_scale: float = key(1.0, "factor of every learning rate of objective.phases", least=0.0)
    clip: float | None = key(None, "max gradient norm; null: no clipping", least=1e-09)
    ema: float = key(0.0, "decay of averaged weights per step; 0: none", least=0.0, below=1.0)
    profile: int = key(0, "steps to trace, into the run's folder profile/ and MLflow", least=0)
    max_skipped: int = key(10, "consecutive non-finite steps before the run stops", least=1)
    model: groups.ModelConfig = field(default_factory=groups.ModelConfig)
    data: groups.DataConfig = field(default_factory=groups.DataConfig)
    masks: groups.MasksConfig = field(default_factory=groups.MasksConfig)
    objective: groups.ObjectiveConfig = field(default_factory=groups.ObjectiveConfig)
    methods: groups.MethodsConfig = field(default_factory=groups.MethodsConfig)
    parallel: groups.ParallelConfig = field(default_factory=groups.ParallelConfig)
    cluster: Cluster = field(default_factory=Cluster)
    checkpoint: groups.CheckpointConfig = field(default_factory=groups.CheckpointConfig)
    log: groups.LogConfig = field(default_factory=groups.LogConfig)
    validate: groups.ValidateConfig = field(default_factory=groups.ValidateConfig)
    tracking: groups.TrackingConfig = field(default_factory=groups.TrackingConfig)


@dataclass
class EvaluateConfig:
    checkpoint: str | None = reads(None, "a run or one of its checkpoints")
    model: str | None = may_read(None, "registered model, archive, or mean_color, harmonic, telea")
    predictions: str | None = reads(None, "folder of KEY.png to score instead of a model")
    verify: str | None = reads(None, "Parquet of an evaluation to repeat and compare")
    export: str | None = writes(None, "folder to write the pairs into, as layout= names them")
    layout: str = key("pairs", "whose names export= writes", ("pairs", "lama", "mat"))
    data: groups.EvaluationData = field(default_factory=groups.EvaluationData)
    masks: groups.EvaluationMasks = field(default_factory=groups.EvaluationMasks)
    protocol: groups.ProtocolConfig = field(default_factory=groups.ProtocolConfig)
    split: str = key("val", "split of the images")
    weights: str = key("auto", "auto: ema if the run has it", ("auto", "raw", "ema"))
    batch: int = key(8, "pairs per batch", least=1)
    limit: int | None = key(None, "pairs per bucket; null: all", least=1)
    out: str | None = writes_file(None, "Parquet of per-image scores; null: in the run's folder")
    processes: str = key("auto", "processes on this machine; auto: one per GPU, else 1")
    metrics: list[str] = key(
        [], "metrics besides PSNR, SSIM and L1: lpips_vgg, … (docs/metrics.md)"
    )
    images: int = key(12, "pairs whose images are kept for reports", least=0)
    features: str | None = writes(None, "folder for MSA-Net's feature maps (figures 3, 5, 7, 9)")
    name: str | None = key(None, "name of the result in tables")
    tracking: groups.RecordConfig = field(default_factory=groups.RecordConfig)
    methods: groups.MethodsConfig = field(default_factory=groups.MethodsConfig)


@dataclass
class RegisterConfig:
    run: str = reads(MISSING, "the run's folder or URL")
    checkpoint: str = key("best", "best, last, or images_seen of one")
    name: str | None = key(None, "registered model; null: inpaint-<model>")
    weights: str = key("auto", "auto: ema where the run has it", ("auto", "raw", "ema"))
    methods: groups.MethodsConfig = field(default_factory=groups.MethodsConfig)


@dataclass
class PromoteConfig:
    model: str = key(MISSING, "registered model, or NAME/VERSION")
    run: str | None = may_read(None, "run whose newest version is promoted")
    into: str | None = key(None, "registered model to promote into; null: the same")
    pairs: str | None = reads(None, "Parquet with the reference pairs; null: the model's own")
    repin: bool = key(False, "choose new reference pairs and score the champion on them")
    fresh: bool = key(False, "evaluate the archive again even if it was evaluated before")
    tolerance: float = key(
        0.1, "largest PSNR loss of any bucket against the champion, dB", least=-100.0, most=100.0
    )
    bound: float = key(
        0.02, "largest PSNR loss of the mean over buckets, dB", least=-100.0, most=100.0
    )
    floor: float = key(12.0, "lowest PSNR allowed in any bucket, dB", least=0.0, most=100.0)
    verify: bool = key(False, "only verify the history and the files of past promotions")
    root: str = key("runs", "folder of runs, if no tracking server is set")


@dataclass
class RollbackConfig:
    model: str = key(MISSING, "registered model")
    version: int | None = key(None, "version to restore; null: the previous champion", least=1)
    root: str = key("runs", "folder of runs, if no tracking server is set")


@dataclass
class PredictConfig:
    model: str = may_read(
        MISSING, "registered model (models:/NAME@champion), checkpoint or archive"
    )
    image: str = reads(MISSING, "image, folder of images, or sharded set")
    mask: groups.MaskConfig = field(default_factory=groups.MaskConfig)
    out: str = writes_file(MISSING, "image (.png, .jpg, .webp) or folder to write")
    recursive: bool = key(False, "also fill sub-folders of image=; out= keeps their layout")
    split: str = key("test", "split of a sharded set")
    strip: bool = key(False, "write original, mask and result side by side")
    tile: int = key(512, "side of the tiles of larger images, pixels", least=64)
    overlap: int = key(64, "overlap of tiles, pixels", least=1)
    methods: groups.MethodsConfig = field(default_factory=groups.MethodsConfig)


@dataclass
class ExportConfig:
    model: str = may_read(MISSING, "registered model, checkpoint or archive")
    out: str = writes_file(MISSING, "ONNX file to write")
    methods: groups.MethodsConfig = field(default_factory=groups.MethodsConfig)


@dataclass
class CompareConfig:
    table: str | None = key(None, "a published table", TABLES)
    runs: list[str] = may_read([], "runs, run ids or Parquet files; empty: all evaluations")
    protocol: str | None = key(None, "protocol to compare; null: that of most evaluations")
    against: str | None = key(None, "reference row; null: the best of your runs")
    out: str | None = writes(None, "folder for compare.md, compare.csv and compare.html")
    root: str = key("runs", "the folder of runs")
    tracking: groups.ReportConfig = field(default_factory=groups.ReportConfig)


@dataclass
class DemoConfig:
    model: str = may_read(MISSING, "registered model, checkpoint or archive")
    against: str | None = may_read(None, "a second model, shown side by side")
    mask: groups.HoleConfig = field(default_factory=groups.HoleConfig)
    host: str = key("127.0.0.1", "address to listen on; 0.0.0.0: reachable from other machines")
    port: int = key(7860, "port; 0: a free one", least=0, most=65535)
    methods: groups.MethodsConfig = field(default_factory=groups.MethodsConfig)


@dataclass
class SyncConfig:
    dir: str = reads(MISSING, "a run's folder, or a folder of runs")
    watch: bool = key(False, "keep sending until stopped")


@dataclass
class RunsConfig:
    action: str = key("list", "set by `runs list|close|du|prune`", ("list", "close", "du", "prune"))
    root: str = key("runs", "the folder of runs")
    filter: str | None = key(None, "MLflow filter, e.g. metrics.`val/psnr` > 24")
    best: str | None = key(None, "metric to sort by, best first")
    limit: int = key(50, "most runs listed", least=1)
    older_than: str | None = key(None, "close: inactivity of unknown jobs (24h); prune: age (30d)")
    keep: str = key("best,last", "prune: checkpoints to keep")
    delete: bool = key(False, "prune: delete; otherwise only list")


@dataclass
class BenchConfig:
    what: str = key(
        MISSING,
        "benchmark to run",
        (
            *("attention", "checkpoint", "faults", "loader", "metrics", "predict", "shard"),
            *("tracking", "train"),
        ),
    )


@dataclass
class FetchConfig:
    names: list[str] = key([], "weights to download; empty: those that training needs", WEIGHTS)
    source: str | None = reads(None, "a file, folder or URL instead of the publisher's")
    sha256: str | None = key(None, "SHA-256 of the file at source=")


IMPORTED = ("edgeconnect", "gmcnn", "lama", "mmagic/pconv", "showcase")


@dataclass
class ImportConfig:
    method: str = key(MISSING, "whose network", IMPORTED)
    file: str = reads(MISSING, "the published file; of EdgeConnect the folder of both generators")
    out: str = writes(MISSING, "folder or URL of the run to write")


@dataclass
class SubmitConfig:
    cluster: Cluster = field(default_factory=Cluster)
    root: str = key("runs", "folder of runs and jobs without run=")
    check: bool = key(False, "ask the scheduler whether it would accept the job; submit nothing")


@dataclass
class StatusConfig:
    id: str | None = key(None, "a job's or run's id, folder or URL; null: all under root")
    root: str = key("runs", "the folder of runs")


@dataclass
class CancelConfig:
    id: str = key(MISSING, "a job's or run's id, folder or URL")
    root: str = key("runs", "the folder of runs")


@dataclass
class LogsConfig(CancelConfig):
    follow: bool = key(False, "keep printing until the job ends (-f)")
