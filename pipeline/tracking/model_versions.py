"""Look up versions of registered models; without torch, for the launcher does so too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.config.values import registered
from pipeline.tracking import errors
from pipeline.tracking.client import connect, search, sqlite_path


def find_version(client: Any, uri: str) -> Any:
    """Return the version that `models:/NAME@ALIAS`, `/NAME/VERSION` or `/NAME` (newest) names.

    Raises ValueError that lists the existing names, aliases or newest versions.
    """
    name, alias, number = registered(uri)
    from mlflow.exceptions import MlflowException

    try:
        if alias:
            return client.get_model_version_by_alias(name, alias)
        if number not in (None, "latest"):
            return client.get_model_version(name, number)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
    order, where = ["version_number DESC"], errors.display_uri(client.tracking_uri)
    newest = client.search_model_versions(f"name = '{name}'", max_results=20, order_by=order)
    if not newest:
        known = ", ".join(m.name for m in client.search_registered_models(max_results=20))
        below = errors.databases_below(sqlite_path(client.tracking_uri))
        raise ValueError(
            f"no registered model {name!r} at {where}; there are: {known or 'none'}{below}"
        )
    if alias:
        known = ", ".join(client.get_registered_model(name).aliases)
        known = known or "none: promote a version first"
        raise ValueError(f"{name} has no alias {alias!r} at {where}; it has {known}")
    if number in (None, "latest"):
        return newest[0]
    known = ", ".join(str(version.version) for version in reversed(newest))
    raise ValueError(f"{name} has no version {number} at {where}; it has {known}")


def versions(client: Any, name: str, weights: str = "") -> list[Any]:
    """Return all versions of a registered model, oldest first; [] if there is no such model.

    weights: only those of a generator file with this sha256.
    """
    only = f" and tags.`lacuna.weights_sha256` = '{weights}'" if weights else ""
    every = search(client.search_model_versions, f"name = '{name}'{only}")
    return sorted(every, key=lambda version: int(version.version))


def download(uri: str, model_id: str, inside: str, folder: Path) -> None:
    """Download `inside` (a file or folder, "" is all) of a logged model into `folder`."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    location = connect(uri).get_logged_model(model_id).artifact_location
    repository = get_artifact_repository(location, tracking_uri=uri)
    folder.mkdir(parents=True, exist_ok=True)
    repository.download_artifacts(inside, str(folder))
