"""From the words of `submit` to jobs: verbs, clusters, configurations, points, ids, folders.

Nothing is written here and no scheduler is asked: --dry-run ends with this file.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from jobs import snapshot
from jobs.spec import SECRET_NAME, Cluster, Job, SubmitError, check_least, private_file
from pipeline.cli import positional
from pipeline.config.compose import ConfigError, Resolved, compose
from pipeline.config.jobconfig import SubmitConfig
from pipeline.config.verbs import VERBS
from pipeline.runs.identity import folder_of
from pipeline.submission import environment as jobenv
from pipeline.submission import job as jobplaces
from pipeline.submission import jobchain
from pipeline.training import pretrained
from shards import store

ALONE = ("submit", "status", "logs", "cancel")
ROOT = Path(__file__).resolve().parents[2]
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
            return self.runs[0].rstrip("/").rpartition("/")[2]
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
        if verb not in VERBS or verb in ALONE:
            allowed = ", ".join(v for v in VERBS if v not in ALONE)
            raise ConfigError(f"submit {verb}: no verb that can be submitted (allowed: {allowed})")
        mine = [w for w in rest if re.match(r"(cluster[.=]|root=|check=)", w)]
        settings = compose("submit", [*carried, *mine])
        alone = ("cluster.tasks=", "cluster.throttle=", "cluster.name=")
        carried += [w for w in mine if not w.startswith(alone)]
        _refuse_foreign(settings)
        check_least(settings.config.cluster)
        fitted = replace(settings.config, cluster=_fitting(verb, settings.config.cluster, mine))
        others = positional(VERBS[verb], [w for w in rest if w not in mine])
        others = jobchain.told(verb, others, known)
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
        jobchain.learn(verb, points[0].config, parts[-1].runs, known)
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
    told = {point.origins.get("processes") for point in part.points}
    if "command line" in told and part.cluster.scheduler != "local":
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
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "lacuna"
    path = cluster.secrets_file or str(home / "secrets.env")
    if cluster.secrets_file or os.path.exists(path):
        return replace(settings, cluster=replace(cluster, secrets_file=private_file(path)))
    here = [n for n in os.environ if re.match(r"(AWS|MLFLOW)_", n) and SECRET_NAME.search(n)]
    if here and cluster.scheduler == "slurm":
        say(f"{', '.join(sorted(here))} will not be set in the job: write NAME=value lines into "
             f"{path}, chmod 600")  # fmt: skip
    return settings


def job_of(part: Part, dry_run: bool) -> tuple[Job, Cluster]:
    """What the scheduler is told. Touches nothing."""
    cluster, taken, code, sha256 = part.cluster, None, None, ""
    kubernetes = cluster.scheduler == "kubernetes"
    if not kubernetes and not store.is_local(cluster.folder or ""):
        raise ConfigError(
            f"cluster.folder={cluster.folder} is no disk: scripts and logs lie on one"
        )
    folder = part.folder if kubernetes else os.path.abspath(store.local(part.folder))
    places = jobplaces.places(part.verb, [p.config for p in part.points], part.runs)
    if kubernetes:
        jobplaces.refuse_local(places, "run" if part.trains else "root", part.folder, cluster)
        jobplaces.refuse_hidden_record(part.verb, part.points[0].config, cluster)
    elif cluster.container != "none" and cluster.code == "image":
        jobplaces.refuse_relative(places)
    jobplaces.refuse_incomplete(part.verb, part.points[0].config, cluster.tasks)
    if cluster.image and cluster.code == "snapshot" and jobplaces.is_tag(cluster.image):
        say(f"cluster.image={cluster.image} is a tag, which may be another environment tomorrow: "
            "NAME@sha256:DIGEST is one for ever")  # fmt: skip
    if cluster.code == "snapshot":
        taken = _taken(part, dry_run)
        code = store.join(folder, "code", taken.name + ".tar.gz" * kubernetes)
        if kubernetes:
            sha256 = hashlib.sha256(snapshot.archive(taken)).hexdigest()
        else:
            snapshot.importable(code, _place_of(part))
    job = Job(
        id=part.id, verb=part.verb, arguments=(), run=part.runs[0], folder=folder, cwd=os.getcwd(),
        code=code, code_sha256=sha256, commit=taken.name if taken else None, reads=places.reads,
        env={**jobenv.forwarded(cluster), **jobenv.origin(cluster, taken, folder, code)},
        writes=places.writes)  # fmt: skip
    if part.is_run:
        job = replace(job, arguments=(f"run={part.runs[0]}",))
    elif len(part.points) > 1:
        job = replace(job, run=folder, elements=tuple((f"run={run}",) for run in part.runs))
    else:
        job = replace(job, arguments=(f"config={store.join(folder, 'config.yaml')}",))
    if tasks := cluster.tasks:
        job = replace(job, elements=tuple((f"task={i}/{tasks}",) for i in range(tasks)))
    if cluster.nodes > 1 and part.verb not in SEVERAL:
        raise ConfigError(
            f"cluster.nodes={cluster.nodes}: {part.verb} runs on one machine; leave it out, or say "
            "it after the verb that takes several"
        )
    return job, cluster


def _taken(part: Part, dry_run: bool) -> snapshot.Snapshot:
    try:
        return snapshot.take(ROOT, part.cluster.allow_dirty)
    except SubmitError as error:
        if not dry_run or "uncommitted" not in str(error):
            raise
        say(f"to be mended before it is submitted: {error}")
        return snapshot.take(ROOT, allow_dirty=True)


def _place_of(part: Part) -> str:
    """The key and value that say where its folder is."""
    if part.cluster.folder:
        return f"cluster.folder={part.cluster.folder}"
    return f"run={part.runs[0]}" if part.is_run else f"root={part.settings.root}"


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
