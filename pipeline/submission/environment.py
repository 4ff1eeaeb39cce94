"""Choose the environment variables that `submit` gives to a job: endpoints and provenance."""

from __future__ import annotations

import os

from jobs import snapshot
from jobs.spec import Cluster
from pipeline.common.secrets import refuse_secret
from shards import store

# How the submitter reaches storage, without secrets.
FORWARDED = ("AWS_CA_BUNDLE", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3",
             "AWS_PROFILE", "AWS_REGION", "FSSPEC_S3_ANON", "FSSPEC_S3_ENDPOINT_URL",
             "FSSPEC_S3_REQUESTER_PAYS", "MLFLOW_S3_ENDPOINT_URL", "MLFLOW_TRACKING_URI",
             "XDG_CACHE_HOME")  # fmt: skip
NOT_IN_CONTAINERS = ("XDG_CACHE_HOME",)
# Files of this machine.
NOT_IN_PODS = (*NOT_IN_CONTAINERS, "AWS_CA_BUNDLE", "AWS_PROFILE")


def forwarded(cluster: Cluster) -> dict[str, str]:
    """Return the submitter's endpoints. Raises ConfigError for a value with a secret."""
    in_container = NOT_IN_CONTAINERS if cluster.container != "none" else ()
    excluded = NOT_IN_PODS if cluster.scheduler == "kubernetes" else in_container
    values = {n: os.environ[n] for n in FORWARDED if n not in excluded and os.environ.get(n)}
    for name, value in values.items():
        refuse_secret(name, value)
    return values


def origin(
    cluster: Cluster, taken: snapshot.Snapshot | None, folder: str, code: str | None
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
