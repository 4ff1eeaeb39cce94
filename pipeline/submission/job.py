"""Turn a part of the command line into a job: its folders and URLs, its code, its checks."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jobs import snapshot
from jobs.snapshot import Snapshot
from jobs.spec import Cluster, Job, SubmitError, is_tag
from pipeline.common.console import say
from pipeline.common.environment import CHECKOUT
from pipeline.common.errors import ConfigError
from pipeline.common.secrets import refuse_secret
from pipeline.config.commands import COMMANDS
from pipeline.config.resolve import entries
from pipeline.runs.checkpoints import split_address
from pipeline.submission.plan import Part
from pipeline.tracking.errors import display_uri
from shards import store

# How the submitter reaches storage, without secrets.
FORWARDED = ("AWS_CA_BUNDLE", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3",
             "AWS_PROFILE", "AWS_REGION", "FSSPEC_S3_ANON", "FSSPEC_S3_ENDPOINT_URL",
             "FSSPEC_S3_REQUESTER_PAYS", "MLFLOW_S3_ENDPOINT_URL", "MLFLOW_TRACKING_URI",
             "XDG_CACHE_HOME")  # fmt: skip
NOT_IN_CONTAINERS = ("XDG_CACHE_HOME",)
# Files of this machine.
NOT_IN_PODS = (*NOT_IN_CONTAINERS, "AWS_CA_BUNDLE", "AWS_PROFILE")
Places = dict[tuple[str, str], str]  # key and value that name a place: the kind of the key


def places(verb: str, configs: Sequence[Any], runs: Sequence[str]) -> Places:
    """Return the places of all points of a job; `runs` are its results or its inputs."""
    named: Places = {}
    for name, value, f in (entry for config in configs for entry in entries(config)):
        kind: str = f.metadata.get("path") or ""
        given = value if isinstance(value, list) else [value] if value else []
        for place in given if kind else ():
            named_only = kind == "read or name" and "/" not in place
            if not named_only and not place.startswith("models:"):
                # Of a checkpoint its run: `RUN/checkpoints/best` is no folder.
                named[name, split_address(place)[0]] = kind
    if verb == "train":
        named |= {("run", run): "written" for run in runs}
    return named


def folders(named: Places, *kinds: str) -> tuple[str, ...]:
    """Return the absolute folders on disk of the places of these kinds."""
    paths = []
    for (_, value), kind in named.items():
        if kind in kinds and store.is_local(value):
            path = os.path.abspath(store.local(value))
            file = kind == "written file" and Path(path).suffix
            paths.append(os.path.dirname(path) if file else path)
    return tuple(dict.fromkeys(paths))


def refuse_relative(places: Places) -> None:
    """Refuse relative paths: code of an image runs in the image's working folder."""
    for name, value in places:
        if store.is_local(value) and not store.local(value).is_absolute():
            raise ConfigError(
                f"{name}={value} is relative to another folder inside the image: give an "
                f"absolute path{' (or root=)' if name == 'run' else ''}, or cluster.code=snapshot"
            )


def refuse_local(places: Places, key: str, folder: str, cluster: Cluster) -> None:
    """Refuse folders of this machine: pods see only buckets and mounted claims.

    `submit` also writes to `folder`, so its claim must be mounted here at the same path.
    """
    for name, place in ((key, folder), *places):
        if store.is_local(place) and _claim(place, cluster) is None:
            raise ConfigError(
                f"{name}={place} is a folder of this machine, which pods cannot read: give an "
                "s3:// URL, or a path on one of cluster.volumes"
            )
    mount = _claim(folder, cluster) if store.is_local(folder) else None
    if mount is not None and not os.path.isdir(mount):
        raise ConfigError(
            f"{key}={folder} is on a claim that is not mounted at {mount} on this machine, and "
            "`submit` writes the configuration there: mount the claim, or give an s3:// URL"
        )


def _claim(place: str, cluster: Cluster) -> str | None:
    """Return the mount point of the claim that holds the path."""
    path = os.path.normpath(store.local(place))
    mounts = [os.path.normpath(mount) for mount in cluster.volumes.values()]
    return next((m for m in mounts if path == m or path.startswith(f"{m.rstrip('/')}/")), None)


def refuse_unreachable_tracking(verb: str, config: Any, cluster: Cluster) -> None:
    """Refuse a tracking server that only this machine can reach."""
    wanted = COMMANDS[verb].server and not getattr(config, "smoke", False)
    if not wanted or verb == "train" and not config.tracking.enabled:
        return
    uri = cluster.env.get("MLFLOW_TRACKING_URI") or os.environ.get("MLFLOW_TRACKING_URI", "")
    host = urlsplit(uri).hostname or ""
    here = host == "localhost" or host.startswith("127.")
    file = re.match(r"sqlite:///(.*)", uri)
    if not uri or here or file and _claim(file[1], cluster) is None:
        raise ConfigError(
            f"MLFLOW_TRACKING_URI={display_uri(uri) or '(not set)'} is not reachable from pods: "
            f"set it to https://HOST{', or tracking.enabled=false' if verb == 'train' else ''}"
        )


def warn_of_shared_sqlite(part: Part) -> None:
    """Say how to do without a SQLite file that many nodes would lock on a shared disk."""
    if part.cluster.scheduler != "slurm" or not part.trains:
        return
    tracking = part.points[0].config.tracking
    uri = part.cluster.env.get("MLFLOW_TRACKING_URI") or os.environ.get("MLFLOW_TRACKING_URI", "")
    if tracking.enabled and tracking.drain and (not uri or uri.startswith("sqlite:")):
        say(
            "tracking goes to a SQLite file, whose locks are unreliable on a shared disk: set "
            f"tracking.drain=false and run `python -m pipeline sync {part.settings.root}` here, or "
            "set MLFLOW_TRACKING_URI to a server"
        )


def job_of(part: Part, snapshots: Callable[[bool], Snapshot]) -> tuple[Job, Cluster]:
    """Return the job of a part; writes nothing. `snapshots`: by cluster.allow_dirty."""
    cluster, taken, code, sha256 = part.cluster, None, None, ""
    kubernetes = cluster.scheduler == "kubernetes"
    if not kubernetes and not store.is_local(cluster.folder or ""):
        raise ConfigError(
            f"cluster.folder={cluster.folder} is not local: give a folder for scripts and logs"
        )
    folder = part.folder if kubernetes else os.path.abspath(store.local(part.folder))
    needs = places(part.verb, [p.config for p in part.points], part.runs)
    # --- places that the job's machines cannot access
    if kubernetes:
        refuse_local(needs, "run" if part.trains else "root", part.folder, cluster)
        refuse_unreachable_tracking(part.verb, part.points[0].config, cluster)
    elif cluster.container != "none" and cluster.code == "image":
        refuse_relative(needs)
    warn_of_shared_sqlite(part)
    # --- the code
    if cluster.image and cluster.code == "snapshot" and is_tag(cluster.image):
        say(f"cluster.image={cluster.image} is a tag, which can change: give NAME@sha256:DIGEST "
            "for a reproducible environment")  # fmt: skip
    if cluster.code == "snapshot":
        taken = snapshots(cluster.allow_dirty)
        code = store.join(folder, "code", taken.name + ".tar.gz" * kubernetes)
        if kubernetes:
            sha256 = hashlib.sha256(snapshot.archive(taken)).hexdigest()
        else:
            snapshot.importable(code, _place_of(part))
    if cluster.nodes > 1 and COMMANDS[part.verb].job != "nodes":
        several = ", ".join(name for name, command in COMMANDS.items() if command.job == "nodes")
        raise ConfigError(
            f"cluster.nodes={cluster.nodes}: {part.verb} runs on one node; leave cluster.nodes= "
            f"out, or give it after one of {several}"
        )
    # --- the job, and which configuration each of its elements reads
    run, arguments, elements = part.runs[0], [f"run={part.runs[0]}"], []
    if len(part.points) > 1:
        run, arguments, elements = folder, [], [(f"run={point}",) for point in part.runs]
    elif not part.is_run:
        arguments = [f"config={store.join(folder, 'config.yaml')}"]
    if tasks := cluster.tasks:
        elements = [(f"task={i}/{tasks}",) for i in range(tasks)]
    env = {**forwarded(cluster), **origin(cluster, taken, folder, code)}
    reads = folders(needs, "read", "read or name")
    writes = folders(needs, "written", "written file")
    job = Job(
        id=part.id, verb=part.verb, arguments=tuple(arguments), elements=tuple(elements), run=run,
        folder=folder, cwd=os.getcwd(), code=code, code_sha256=sha256, env=env,
        commit=taken.name if taken else None, reads=reads, writes=writes)  # fmt: skip
    return job, cluster


# --- the environment of the job: endpoints and provenance ----------------------------------------


def forwarded(cluster: Cluster) -> dict[str, str]:
    """Return the submitter's endpoints. Raises ConfigError for a value with a secret."""
    in_container = NOT_IN_CONTAINERS if cluster.container != "none" else ()
    excluded = NOT_IN_PODS if cluster.scheduler == "kubernetes" else in_container
    values = {n: os.environ[n] for n in FORWARDED if n not in excluded and os.environ.get(n)}
    for name, value in values.items():
        refuse_secret(name, value)
    return values


def origin(
    cluster: Cluster, taken: Snapshot | None, folder: str, code: str | None
) -> dict[str, str]:
    """Return the provenance of the code: in the job, git could report another checkout."""
    variables = {"LACUNA_IMAGE": cluster.image} if cluster.image else {}
    if taken:
        variables["LACUNA_COMMIT"] = taken.commit
    if code and cluster.scheduler != "kubernetes":  # in a pod `unpack` chooses the folder
        variables["LACUNA_CODE"] = code
    if taken and taken.diff:
        variables["LACUNA_DIFF"] = store.join(folder, "code", f"{taken.name}.diff")
    return variables


def take_snapshot(allow_dirty: bool, dry_run: bool) -> Snapshot:
    """Take a snapshot of this checkout; a dry run only warns of uncommitted changes."""
    try:
        return snapshot.take(CHECKOUT, allow_dirty)
    except SubmitError as error:
        if not dry_run or "uncommitted" not in str(error):
            raise
        say(f"must be fixed before submission: {error}")
        return snapshot.take(CHECKOUT, True)


def _place_of(part: Part) -> str:
    """Return the key and value that determine the job's folder."""
    if part.cluster.folder:
        return f"cluster.folder={part.cluster.folder}"
    return f"run={part.runs[0]}" if part.is_run else f"root={part.settings.root}"
