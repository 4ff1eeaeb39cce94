"""What a job's environment is given by `submit`: the places it reads, and which code it is."""

from __future__ import annotations

import os

from jobs import snapshot
from jobs.spec import Cluster
from pipeline.common.secrets import refuse_secret
from shards import store

# Not secret, and as true in the job as here.
FORWARDED = ("AWS_CA_BUNDLE", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3",
             "AWS_PROFILE", "AWS_REGION", "FSSPEC_S3_ENDPOINT_URL", "MLFLOW_S3_ENDPOINT_URL",
             "MLFLOW_TRACKING_URI", "XDG_CACHE_HOME")  # fmt: skip
INSIDE = ("XDG_CACHE_HOME",)  # a container has its own
HERE = (*INSIDE, "AWS_CA_BUNDLE", "AWS_PROFILE")  # files of this machine, which no pod has


def forwarded(cluster: Cluster) -> dict[str, str]:
    boxed = INSIDE if cluster.container != "none" else ()
    left = HERE if cluster.scheduler == "kubernetes" else boxed
    names = [name for name in FORWARDED if name not in left]
    found = {name: os.environ[name] for name in names if os.environ.get(name)}
    for name, value in found.items():
        refuse_secret(name, value)
    return found


def origin(
    cluster: Cluster, taken: snapshot.Snapshot | None, folder: str, code: str | None
) -> dict[str, str]:
    """What the run's record says of its code: git would find a checkout around the snapshot."""
    told = {"LACUNA_IMAGE": cluster.image} if cluster.image else {}
    if taken:
        told["LACUNA_COMMIT"] = taken.commit
    if code and cluster.scheduler != "kubernetes":  # there `unpack` chooses the place
        told["LACUNA_CODE"] = code
    if taken and taken.diff:
        told["LACUNA_DIFF"] = store.join(folder, "code", f"{taken.name}.diff")
    return told
