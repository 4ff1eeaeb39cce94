"""Parse the arguments of `submit` into parts: command, cluster, configurations, ID and folder.

Writes nothing and calls no scheduler.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from jobs.spec import SECRET_NAME, Cluster, private_file
from pipeline.common.console import say
from pipeline.common.environment import config_dir
from pipeline.common.errors import ConfigError
from pipeline.config import checks
from pipeline.config.commands import AS_JOBS, COMMANDS, positional
from pipeline.config.compose import compose
from pipeline.config.habits import instead_on_cluster
from pipeline.config.resolve import Resolved, near
from pipeline.config.schema import SubmitConfig
from pipeline.launch.topology import check_precision, submitted_processes, visible_gpus
from pipeline.runs.checkpoints import split_address
from pipeline.runs.identity import FIXED_AT_START, MAY_CHANGE, folder_of
from pipeline.submission.chain import Chain
from pipeline.submission.fitting import fitted
from pipeline.training import pretrained
from shards import store


@dataclass(frozen=True)
class Part:
    """One command of the line; several configurations (`points`) are a sweep."""

    verb: str
    settings: SubmitConfig
    points: tuple[Resolved, ...]

    @property
    def cluster(self) -> Cluster:
        return self.settings.cluster

    @property
    def trains(self) -> bool:
        """Whether its points are training runs; a smoke test leaves no run."""
        return self.verb == "train" and not self.points[0].config.smoke

    @property
    def is_run(self) -> bool:
        """Whether it is a single training run, which names the job."""
        return self.trains and len(self.points) == 1

    @cached_property
    def runs(self) -> tuple[str, ...]:
        """The folder or URL of each run; for other commands what they write, or else read."""
        if self.trains:
            return tuple(folder_of(point.config).url for point in self.points)
        if self.verb == "train":
            return (self.folder,)
        config = self.points[0].config
        given = (getattr(config, name, None) for name in ("out", "run", "checkpoint", "url"))
        place = next((value for value in given if isinstance(value, str)), None)
        return (split_address(place)[0] if place else self.folder,)

    @cached_property
    def id(self) -> str:
        """The run's folder name, or the command and a hash of its configurations."""
        if self.is_run:
            return store.name(self.runs[0])
        text = "\n".join(point.yaml() for point in self.points)
        kind = "sweep" if len(self.points) > 1 else self.verb
        kind = "smoke" if self.verb == "train" and not self.trains else kind
        return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    @cached_property
    def folder(self) -> str:
        """Folder of script, code, configuration and logs: the run's, if that is on a disk."""
        pods = self.cluster.scheduler == "kubernetes"
        if self.is_run and not self.cluster.folder and (pods or store.is_local(self.runs[0])):
            return self.runs[0]
        root = self.cluster.folder or self.settings.root
        if not pods and not store.is_local(root):
            root = "runs"  # scripts and logs must be on a disk
        return store.join(root, self.id)

    @cached_property
    def places(self) -> set[str]:
        """The job's folder and the runs that it trains."""
        return {self.folder, *(self.runs if self.trains else ())}


def parse(args: Sequence[str]) -> list[Part]:
    """Parse the commands between `then`. Cluster keys also apply to the following commands,
    and a command inherits the outputs of earlier ones."""
    parts: list[Part] = []
    carried: list[str] = []
    chain = Chain()
    for is_then, group in itertools.groupby(args, lambda w: w == "then"):
        if is_then:
            continue
        verb, *rest = group
        if verb not in AS_JOBS:
            raise ConfigError(f"{verb}: not a command for a job{near(verb, AS_JOBS)}")
        # --- the cluster
        own = [w for w in rest if re.match(r"(cluster[.=]|root=|check=)", w)]
        words = [*carried, *own]
        settings = compose("submit", words)
        node = [w for w in words if not w.startswith("cluster.gpus_per_node=")]
        whole = compose("submit", node).config.cluster
        only_here = ("cluster.tasks=", "cluster.throttle=", "cluster.name=")
        carried += [w for w in own if not w.startswith(only_here)]
        _refuse_foreign(settings)
        # --- the configurations
        others = positional(COMMANDS[verb], [w for w in rest if w not in own])
        others = chain.inherited(verb, others)
        if verb == "train":
            others += [w for w in carried if w.startswith("root=")][-1:]
        _refuse_habits(others, settings.config.cluster)
        points = [compose(verb, point) for point in _points(verb, others)]
        cluster = fitted(verb, settings, whole, points[0].config, own)
        for point in points:
            COMMANDS[verb].check(_element(verb, point.config, cluster.tasks))
        if verb == "train":
            points = [_placed(point, cluster) for point in points]
            if len(points) > 1 and any(point.config.smoke for point in points):
                raise ConfigError("smoke=true with a sweep: give one value per key")
        fitting = _with_secrets(replace(settings.config, cluster=cluster))
        parts.append(Part(verb, fitting, tuple(points)))
        _refuse_same(parts[-1])
        _refuse_ignored(parts[-1])
        chain.add(verb, points[0].config, others, parts[-1].runs)
    if not parts:
        raise ConfigError("no command given: submit COMMAND [key=value ...] cluster=slurm")
    return parts


def _element(verb: str, config: Any, tasks: int | None) -> Any:
    """Return what an element of the job runs; refuse what it would finish without doing."""
    divides = verb == "shard" and config.action == "write"
    if tasks and not divides:
        raise ConfigError(f"cluster.tasks={tasks}: only `shard` is divided into tasks")
    if divides and config.source is None:
        raise ConfigError("source= is missing: give the data set as published")
    if tasks and config.task is not None:
        raise ConfigError(f"task={config.task} is set for each element by cluster.tasks={tasks}")
    return replace(config, task=f"0/{tasks}") if tasks else config


def _refuse_habits(args: Sequence[str], cluster: Cluster) -> None:
    """Refuse other trainers' keys for GPUs: a job's are the cluster's."""
    for name, _, value in (arg.partition("=") for arg in args):
        if cluster.scheduler != "local" and (
            hint := instead_on_cluster(name, value, cluster.gpus_per_node)
        ):
            raise ConfigError(f"unknown key {name}{hint}")


def _refuse_same(part: Part) -> None:
    """Refuse points that share a folder: two trainings would write one run."""
    places = [os.path.abspath(r) if store.is_local(r) else r.rstrip("/") for r in part.runs]
    for place, run in zip(places, part.runs):
        if places.count(place) > 1:
            raise ConfigError(
                f"{places.count(place)} configurations of the sweep have the same run "
                f"{store.display(run)}: leave run= out and give each value once; these keys do "
                f"not distinguish runs: {', '.join((*MAY_CHANGE, *FIXED_AT_START))}"
            )


def _points(verb: str, args: list[str]) -> list[list[str]]:
    """Expand `seed=0,1 experiment=a,b` to every combination, each a run."""
    if verb != "train":
        return [args]
    choices = []
    for arg in args:
        name, _, text = arg.partition("=")
        bare = not text.startswith(("[", "{", "'", '"'))
        choices.append([f"{name}={t}" for t in text.split(",")] if bare and "," in text else [arg])
    return [list(point) for point in itertools.product(*choices)]


def _placed(point: Resolved, cluster: Cluster) -> Resolved:
    """Set cluster and weights in a run's configuration; check what depends on its processes."""
    config = pretrained.located(replace(point.config, cluster=cluster))
    here = cluster.scheduler == "local"
    named = "" if here else f"cluster.nodes={cluster.nodes} x {cluster.processes}"
    checks.workers(config, submitted_processes(config), named)
    check_precision(config.precision, visible_gpus if here else lambda: cluster.gpus_per_node)
    return replace(point, config=config)


def _refuse_ignored(part: Part) -> None:
    """Refuse processes= for a scheduler, whose jobs use cluster.processes_per_node=."""
    origins = {point.origins.get("processes") for point in part.points}
    if "command line" in origins and part.cluster.scheduler != "local":
        raise ConfigError(
            f"processes={part.points[0].config.processes} applies to this machine only: set "
            f"cluster.processes_per_node= (now {part.cluster.processes}) for a cluster"
        )


def _refuse_foreign(settings: Resolved) -> None:
    """Refuse keys of another scheduler."""
    cluster = settings.config.cluster
    for f in fields(Cluster):
        only, origin = f.metadata["only"], settings.origins.get(f"cluster.{f.name}")
        if origin == "command line" and only and cluster.scheduler not in only:
            raise ConfigError(
                f"cluster.{f.name} does not apply to {cluster.scheduler}, only to "
                f"{', '.join(only)}: leave it out"
            )


def _with_secrets(settings: SubmitConfig) -> SubmitConfig:
    """Set the user's secrets file if it exists; else warn of secrets that the job will lack."""
    cluster = settings.cluster
    if cluster.scheduler == "kubernetes":
        return settings
    path = cluster.secrets_file or str(config_dir() / "secrets.env")
    if cluster.secrets_file or os.path.exists(path):
        return replace(settings, cluster=replace(cluster, secrets_file=private_file(path)))
    here = [n for n in os.environ if re.match(r"(AWS|MLFLOW)_", n) and SECRET_NAME.search(n)]
    if here and cluster.scheduler == "slurm":
        say(f"{', '.join(sorted(here))} will not be set in the job: write NAME=value lines to "
             f"{path} and run chmod 600 on it")  # fmt: skip
    return settings
