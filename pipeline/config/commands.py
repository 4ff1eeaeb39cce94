"""The commands: name, configuration, the module that runs each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Literal

from pipeline.config import checks, schema


@dataclass(frozen=True)
class Command:
    """One command: `module.main(config)` runs it and returns a dict, which --json prints.

    A module whose command changes something has `dry_run(config) -> str`, a description of it.
    check: raises ConfigError for a wrong configuration, whether it is to run here or as a job.
    inputs: a module without torch, whose `check_inputs(config, readable)` opens what the command
        reads, as far as `readable(url)` says that it exists already; `submit` calls it.
    positional: the key that an argument without `=` sets.
    actions: possible first arguments, as in `shard verify`.
    groups: names of groups with their default option.
    workers: it may run in several processes, each started with RANK in its environment.
    job: what a job of it can use: several `nodes`, all GPUs of one `node`, one `gpu`, or `cpu`
        cores only; None: it is not run as a job.
    server: it needs an MLflow server.
    raw: `main(args, dry_run)` takes the unparsed arguments.
    """

    module: str
    schema: type
    help: str
    check: Callable[[Any], None] = checks.nothing
    positional: str | None = None
    actions: tuple[str, ...] = ()
    groups: dict[str, str | None] = field(default_factory=dict)
    workers: bool = False
    job: Literal["nodes", "node", "gpu", "cpu"] | None = "cpu"
    server: bool = False
    raw: bool = False
    inputs: str | None = None


COMMANDS: dict[str, Command] = {
    "quickstart": Command(
        "pipeline.quickstart.steps",
        schema.QuickstartConfig,
        "run every step once on photographs from scikit-image, in minutes",
        checks.quickstart,
        job="gpu",
    ),
    "doctor": Command(
        "pipeline.doctor",
        schema.DoctorConfig,
        "check this machine and suggest a fix for each problem",
        workers=True,
        job="nodes",
    ),
    "fetch": Command(
        "pipeline.training.weights",
        schema.FetchConfig,
        "download and verify pretrained weights: vgg16, vgg19, densenet121, and those of metrics",
        checks.fetch,
        positional="names",
    ),
    "import": Command(
        "pipeline.training.imports",
        schema.ImportConfig,
        "read a network that others published into a run: EdgeConnect, GMCNN, LaMa, MMagic's PConv",
        positional="method",
    ),
    "shard": Command(
        "pipeline.data.shard",
        schema.ShardConfig,
        "write a dataset as WebDataset tars with index and manifest",
        checks.shard,
        positional="url",
        actions=("verify", "info", "gc"),
        groups={"data": "folder"},
        inputs="pipeline.data.shard",
    ),
    "masks": Command(
        "pipeline.data.masks",
        schema.MakeMasksConfig,
        "draw masks in six hole-ratio buckets, and squares; or import your own",
        checks.masks,
    ),
    "train": Command(
        "pipeline.training.launcher",
        schema.TrainConfig,
        "train; re-running the same command resumes",
        checks.train,
        groups={
            "model": "msanet",
            "data": "folder",
            "masks": "irregular",
            "objective": "msanet",
            "parallel": "ddp",
            "cluster": "local",
            "experiment": None,
        },
        workers=True,
        inputs="pipeline.training.preflight",
        job="nodes",
        server=True,
    ),
    "evaluate": Command(
        "pipeline.evaluation.evaluate",
        schema.EvaluateConfig,
        "measure PSNR, SSIM and L1 of the composite by hole ratio",
        checks.evaluate,
        groups={"data": "folder", "masks": "irregular", "protocol": "msanet"},
        workers=True,
        inputs="pipeline.evaluation.inputs",
        job="node",
    ),
    "compare": Command(
        "pipeline.comparison.compare",
        schema.CompareConfig,
        "tabulate runs next to published results: text, Markdown, CSV, HTML",
    ),
    "runs": Command(
        "pipeline.comparison.runs",
        schema.RunsConfig,
        "list, close and prune training runs",
        checks.runs,
        actions=("list", "close", "du", "prune"),
    ),
    "register": Command(
        "pipeline.registry.register",
        schema.RegisterConfig,
        "register a run's generator as a model",
        checks.register,
        inputs="pipeline.registry.inputs",
        server=True,
    ),
    "promote": Command(
        "pipeline.registry.promote",
        schema.PromoteConfig,
        "make a registered model champion if it passes the quality gate",
        checks.promote,
        positional="model",
        server=True,
    ),
    "rollback": Command(
        "pipeline.registry.promote",
        schema.RollbackConfig,
        "restore the previous champion",
        checks.rollback,
        positional="model",
        server=True,
    ),
    "predict": Command(
        "pipeline.inference.predict",
        schema.PredictConfig,
        "inpaint an image or a folder, of any size",
        checks.predict,
        job="gpu",
    ),
    "export": Command(
        "pipeline.inference.onnx_file",
        schema.ExportConfig,
        "write a model as ONNX, for images of any size",
        checks.export,
    ),
    "demo": Command(
        "pipeline.inference.demo",
        schema.DemoConfig,
        "serve a page to paint over an object and see it removed",
        checks.demo,
        job="gpu",
    ),
    "sync": Command(
        "pipeline.tracking.sync",
        schema.SyncConfig,
        "send buffered tracking events to the server",
        positional="dir",
    ),
    "submit": Command(
        "pipeline.submission.submit",
        schema.SubmitConfig,
        "run commands as jobs: submit COMMAND [key=value ...] [then COMMAND ...]",
        groups={"cluster": "local"},
        raw=True,
        job=None,
    ),
    "status": Command(
        "pipeline.submission.status",
        schema.StatusConfig,
        "show the state of submitted jobs and the reason",
        positional="id",
        job=None,
    ),
    "logs": Command(
        "pipeline.submission.logs",
        schema.LogsConfig,
        "show a job's log",
        positional="id",
        job=None,
    ),
    "cancel": Command(
        "pipeline.submission.cancel",
        schema.CancelConfig,
        "cancel a job; it saves a checkpoint first",
        positional="id",
        job=None,
    ),
    "bench": Command(
        "pipeline.bench",
        schema.BenchConfig,
        "run benchmarks, reported as ratios",
        positional="what",
        job="gpu",
    ),
}

AS_JOBS = [name for name, command in COMMANDS.items() if command.job]  # commands for `submit`


def positional(spec: Command, args: list[str]) -> list[str]:
    """Rewrite arguments without `=`, as in `shard verify URL` or `promote NAME`, as key=value."""
    args = list(args)
    given = [f"action={args.pop(0)}"] if args and args[0] in spec.actions else []
    plain = list(takewhile(lambda a: "=" not in a.split("/")[0], args)) if spec.positional else []
    if spec.positional == "names" and plain:
        given.append(f"names=[{','.join(plain)}]")
    elif len(plain) > 1:
        raise ValueError(f"{' '.join(plain)}: give one {spec.positional} at a time")
    elif plain:
        given.append(f"{spec.positional}={plain[0]}")
    return [*given, *args[len(plain) :]]
