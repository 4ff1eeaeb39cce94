"""From the words of `submit` to jobs: verbs, clusters, configurations, points, ids, folders.

Nothing is written here and no scheduler is asked: --dry-run ends with this file.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from jobs.spec import SECRET_NAME, Cluster, check_least, private_file
from pipeline.common.console import say
from pipeline.common.environment import config_dir
from pipeline.common.errors import ConfigError
from pipeline.config.commands import COMMANDS, positional
from pipeline.config.compose import compose
from pipeline.config.resolve import Resolved
from pipeline.config.schema import SubmitConfig
from pipeline.runs.identity import folder_of
from pipeline.training import pretrained
from shards import store

KNOWN = {"train": {"data.url": "set"}, "evaluate": {"data.url": "set", "checkpoint": "run"},
         "register": {"run": "run"}, "promote": {"run": "run"}}  # fmt: skip


ALONE = ("submit", "status", "logs", "cancel")
SEVERAL = ("train", "doctor")  # verbs that take several machines
ON_GPUS = (*SEVERAL, "evaluate", "predict", "demo", "bench", "quickstart")


@dataclass(frozen=True)
class Part:
    """One verb of the command line; several configurations (`points`) are a sweep's elements."""

    verb: str
    settings: SubmitConfig
    points: tuple[Resolved, ...]

    @property
    def cluster(self) -> Cluster:
        return self.settings.cluster

    @property
    def trains(self) -> bool:
        """Its points are runs that last; a smoke test leaves none."""
        return self.verb == "train" and not self.points[0].config.smoke

    @property
    def is_run(self) -> bool:
        """One training run, which names the job; no sweep."""
        return self.trains and len(self.points) == 1

    @property
    def runs(self) -> list[str]:
        """Where the results of each point go; for verbs other than `train` what they are about."""
        if self.trains:
            return [folder_of(point.config).url for point in self.points]
        if self.verb == "train":
            return [self.folder]
        config = self.points[0].config
        given = (getattr(config, name, None) for name in ("out", "run", "checkpoint", "url"))
        return [next((value for value in given if isinstance(value, str)), None) or self.folder]

    @property
    def id(self) -> str:
        """A training run's id is its folder's name; everything else is named by what it does."""
        if self.is_run:
            return store.name(self.runs[0])
        text = "\n".join(point.yaml() for point in self.points)
        kind = "sweep" if len(self.points) > 1 else self.verb
        kind = "smoke" if self.verb == "train" and not self.trains else kind
        return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    @property
    def folder(self) -> str:
        """Where script, code, configuration and logs lie: with the run, if it is on a disk."""
        pods = self.cluster.scheduler == "kubernetes"
        if self.is_run and not self.cluster.folder and (pods or store.is_local(self.runs[0])):
            return self.runs[0]
        root = self.cluster.folder or self.settings.root
        if not pods and not store.is_local(root):
            root = "runs"  # scripts and logs lie on a disk
        return store.join(root, self.id)


def parse(words: Sequence[str]) -> list[Part]:
    """The verbs between `then`, each with its cluster; what one says of the cluster holds for those
    after it, and a chain's later verbs know what the earlier ones make."""
    parts: list[Part] = []
    carried: list[str] = []
    known: dict[str, str] = {}
    for is_then, group in itertools.groupby(words, lambda w: w == "then"):
        if is_then:
            continue
        verb, *rest = group
        if verb not in COMMANDS or verb in ALONE:
            allowed = ", ".join(v for v in COMMANDS if v not in ALONE)
            raise ConfigError(f"submit {verb}: no verb that can be submitted (allowed: {allowed})")
        mine = [w for w in rest if re.match(r"(cluster[.=]|root=|check=)", w)]
        settings = compose("submit", [*carried, *mine])
        alone = ("cluster.tasks=", "cluster.throttle=", "cluster.name=")
        carried += [w for w in mine if not w.startswith(alone)]
        _refuse_foreign(settings)
        check_least(settings.config.cluster)
        fitted = replace(settings.config, cluster=_fitting(verb, settings.config.cluster, mine))
        others = positional(COMMANDS[verb], [w for w in rest if w not in mine])
        others = inherited(verb, others, known)
        if verb == "train":
            others += [w for w in carried if w.startswith("root=")][-1:]
        points = [compose(verb, point) for point in _points(verb, others)]
        if verb == "train":
            points = [_placed(point, fitted.cluster) for point in points]
            if len(points) > 1 and any(point.config.smoke for point in points):
                raise ConfigError("smoke=true of several points: try one of them")
        parts.append(Part(verb, _with_secrets(fitted), tuple(points)))
        _refuse_same(parts[-1])
        _refuse_ignored(parts[-1])
        note_outputs(verb, points[0].config, parts[-1].runs, known)
    if not parts:
        raise ConfigError("submit what? submit VERB [key=value ...] cluster=slurm")
    return parts


def _refuse_same(part: Part) -> None:
    """Two points in one folder would be two trainings of one run."""
    places = [os.path.abspath(r) if store.is_local(r) else r.rstrip("/") for r in part.runs]
    for place, run in zip(places, part.runs):
        if places.count(place) > 1:
            raise ConfigError(
                f"{places.count(place)} points of the sweep are the run {store.display(run)}: "
                "leave run= out, and name no value twice; what names a run is not max_images, "
                "processes, accumulate, checkpoint.*, tracking.* or cluster.*"
            )


def _fitting(verb: str, cluster: Cluster, said: Sequence[str]) -> Cluster:
    """Of what a site, or an earlier stage, says: as many machines and GPUs as the verb can use.

    What is said of this very verb stands: a partition may take none but jobs with a GPU.
    """
    own = {word.partition("=")[0] for word in said}
    if verb not in SEVERAL and "cluster.nodes" not in own:
        cluster = replace(cluster, nodes=1)
    if verb not in ON_GPUS and "cluster.gpus_per_node" not in own:
        cluster = replace(cluster, gpus_per_node=0)
    if verb not in ON_GPUS and "cluster.sbatch" not in own:
        kept = {k: v for k, v in cluster.sbatch.items() if not _asks_gpus(k, str(v))}
        cluster = replace(cluster, sbatch=kept)
    return cluster


def _asks_gpus(option: str, value: str) -> bool:
    return "gpu" in option or bool(re.match("gres|tres", option)) and "gpu" in value


def _points(verb: str, words: list[str]) -> list[list[str]]:
    """`seed=0,1 experiment=a,b`: every combination, each a run of its own."""
    if verb != "train":
        return [words]
    choices = []
    for word in words:
        name, _, text = word.partition("=")
        bare = not text.startswith(("[", "{", "'", '"'))
        choices.append([f"{name}={t}" for t in text.split(",")] if bare and "," in text else [word])
    return [list(point) for point in itertools.product(*choices)]


def _placed(point: Resolved, cluster: Cluster) -> Resolved:
    """A training run's configuration with the cluster that it will run on."""
    total = cluster.nodes * cluster.processes * point.config.accumulate
    if point.config.batch % total:
        raise ConfigError(
            f"batch={point.config.batch} is not divisible by cluster.nodes={cluster.nodes} x "
            f"{cluster.processes} processes x accumulate={point.config.accumulate}: choose a "
            f"multiple of {total}"
        )
    return replace(point, config=pretrained.located(replace(point.config, cluster=cluster)))


def _refuse_ignored(part: Part) -> None:
    """A count for this machine, where the scheduler's jobs have another."""
    inherited = {point.origins.get("processes") for point in part.points}
    if "command line" in inherited and part.cluster.scheduler != "local":
        raise ConfigError(
            f"processes={part.points[0].config.processes} is for this machine: on a cluster give "
            f"cluster.processes_per_node= (it is {part.cluster.processes})"
        )


def _refuse_foreign(settings: Resolved) -> None:
    cluster = settings.config.cluster
    for f in fields(Cluster):
        only, origin = f.metadata["only"], settings.origins.get(f"cluster.{f.name}")
        if origin == "command line" and only and cluster.scheduler not in only:
            raise ConfigError(
                f"cluster.{f.name} means nothing to {cluster.scheduler}, only to {', '.join(only)}"
            )


def _with_secrets(settings: SubmitConfig) -> SubmitConfig:
    """Names the user's file of secrets where there is one, and says which secrets stay behind."""
    cluster = settings.cluster
    if cluster.scheduler == "kubernetes":
        return settings
    home = config_dir()
    path = cluster.secrets_file or str(home / "secrets.env")
    if cluster.secrets_file or os.path.exists(path):
        return replace(settings, cluster=replace(cluster, secrets_file=private_file(path)))
    here = [n for n in os.environ if re.match(r"(AWS|MLFLOW)_", n) and SECRET_NAME.search(n)]
    if here and cluster.scheduler == "slurm":
        say(f"{', '.join(sorted(here))} will not be set in the job: write NAME=value lines into "
             f"{path}, chmod 600")  # fmt: skip
    return settings


def inherited(verb: str, words: list[str], known: dict[str, str]) -> list[str]:
    """The words of a verb, and those that follow from what earlier verbs make."""
    given = {word.partition("=")[0] for word in words}
    if verb == "evaluate" and given & {"model", "predictions", "export"}:
        given.add("checkpoint")
    wanted = {k: v for k, v in KNOWN.get(verb, {}).items() if v in known and k not in given}
    for name, what in wanted.items():
        if not known[what]:
            raise ConfigError(f"{verb} follows a sweep of several runs: say by {name}= which")
    return [*words, *(f"{name}={known[what]}" for name, what in wanted.items())]


def note_outputs(verb: str, config: Any, runs: Sequence[str], known: dict[str, str]) -> None:
    """Adds what the verb makes; of several runs none is the one that is meant."""
    if verb == "shard":
        known["set"] = str(config.out)
    elif verb == "train":
        known["run"] = runs[0] if len(runs) == 1 else ""
        known["set"] = str(config.data.url)
