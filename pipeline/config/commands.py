"""The commands: name, configuration, the module that runs each."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from pipeline.config import schema
from pipeline.config.schema import (
    BenchConfig,
    CompareConfig,
    DemoConfig,
    DoctorConfig,
    EvaluateConfig,
    FetchConfig,
    MakeMasksConfig,
    PredictConfig,
    PromoteConfig,
    QuickstartConfig,
    RegisterConfig,
    RollbackConfig,
    RunsConfig,
    ShardConfig,
    SyncConfig,
    TrainConfig,
)


@dataclass(frozen=True)
class Command:
    """One verb: `module.main(config) -> dict` does it; the dict is what --json prints.

    A module whose verb changes something has `dry_run(config) -> str`, which says what.
    raw: `main(words, dry_run)` takes the words of the command line as they are.
    """

    module: str
    schema: type
    help: str
    positional: str | None = None
    actions: tuple[str, ...] = ()
    groups: dict[str, str | None] = field(default_factory=dict)
    raw: bool = False

    def main(self, configuration: Any) -> dict[str, Any]:
        return import_module(self.module).main(configuration)


COMMANDS: dict[str, Command] = {
    "quickstart": Command(
        "pipeline.quickstart.steps",
        QuickstartConfig,
        "the whole path on photographs that ship with scikit-image",
    ),
    "doctor": Command(
        "pipeline.doctor",
        DoctorConfig,
        "what this machine can do, and the mend for what it cannot",
    ),
    "fetch": Command(
        "pipeline.training.weights",
        FetchConfig,
        "pretrained weights into the cache, checked: vgg16, densenet121",
        positional="names",
    ),
    "shard": Command(
        "pipeline.data.shard",
        ShardConfig,
        "a dataset into WebDataset tars with index and manifest",
        positional="url",
        actions=("verify", "info", "gc"),
        groups={"data": "folder"},
    ),
    "masks": Command(
        "pipeline.data.masks",
        MakeMasksConfig,
        "a set of evaluation masks, six buckets and fixed",
    ),
    "train": Command(
        "pipeline.training.launcher",
        TrainConfig,
        "one training run; the same command again resumes it",
        groups={
            "model": "msanet",
            "data": "folder",
            "masks": "irregular",
            "objective": "msanet",
            "parallel": "ddp",
            "cluster": "local",
            "experiment": None,
        },
    ),
    "evaluate": Command(
        "pipeline.evaluation.evaluate",
        EvaluateConfig,
        "PSNR, SSIM and L1 on the composite, by hole ratio",
        groups={"data": "folder", "masks": "irregular", "protocol": "msanet"},
    ),
    "compare": Command(
        "pipeline.comparison.compare",
        CompareConfig,
        "runs side by side with the papers' rows: table, Markdown, CSV, HTML",
    ),
    "runs": Command(
        "pipeline.tracking.runs",
        RunsConfig,
        "runs as MLflow knows them",
        actions=("list", "close", "du", "prune"),
    ),
    "register": Command(
        "pipeline.registry.register",
        RegisterConfig,
        "a run's generator as a registered model",
    ),
    "promote": Command(
        "pipeline.registry.promote",
        PromoteConfig,
        "a registered model to champion, if the gate lets it",
        positional="model",
    ),
    "rollback": Command(
        "pipeline.registry.promote",
        RollbackConfig,
        "the champion before",
        positional="model",
    ),
    "predict": Command(
        "pipeline.inference.predict",
        PredictConfig,
        "inpaint a picture or a folder of any size",
    ),
    "demo": Command(
        "pipeline.inference.demo",
        DemoConfig,
        "a page to paint over an object and see it removed",
    ),
    "sync": Command(
        "pipeline.tracking.sync",
        SyncConfig,
        "send tracking events that could not be sent",
        positional="dir",
    ),
    "submit": Command(
        "pipeline.submission.submit",
        schema.SubmitConfig,
        "VERB [key=value ...] [then VERB ...] as jobs on SLURM, Kubernetes or this machine",
        groups={"cluster": "local"},
        raw=True,
    ),
    "status": Command(
        "pipeline.submission.status",
        schema.StatusConfig,
        "how submitted jobs are, and why",
        "id",
    ),
    "logs": Command("pipeline.submission.logs", schema.LogsConfig, "what a job said", "id"),
    "cancel": Command(
        "pipeline.submission.cancel", schema.CancelConfig, "ask a job to save and leave", "id"
    ),
    "bench": Command(
        "pipeline.bench", BenchConfig, "what this machine does, as ratios", positional="what"
    ),
}


def positional(spec: Command, words: list[str]) -> list[str]:
    """`shard verify URL` and `promote NAME` as key=value words."""
    words = list(words)
    if spec.actions and words and words[0] in spec.actions:
        words[0] = f"action={words[0]}"
        start = 1
    else:
        start = 0
    bare = start
    while spec.positional and bare < len(words) and "=" not in words[bare].split("/")[0]:
        bare += 1
    if bare > start and spec.positional != "names":
        if bare - start > 1:
            raise ValueError(f"{' '.join(words[start:bare])}: one {spec.positional} at a time")
        words[start] = f"{spec.positional}={words[start]}"
    elif bare > start:
        words[start:bare] = [f"{spec.positional}=[{','.join(words[start:bare])}]"]
    return words
