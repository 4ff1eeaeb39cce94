"""Look up versions of registered models; without torch, for the launcher does so too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.config.values import registered
from pipeline.tracking import errors
from pipeline.tracking.client import connect, search


def find_version(client: Any, uri: str) -> Any:
    """Return the version that `models:/NAME@ALIAS`, `/NAME/VERSION` or `/NAME` (newest) names.

    Raises ValueError that lists the existing names, aliases or versions.
    """
    name, alias, number = registered(uri)
    every, where = versions(client, name), errors.display_uri(client.tracking_uri)
    if not every:
        known = ", ".join(m.name for m in client.search_registered_models(max_results=20))
        raise ValueError(f"no registered model {name!r} at {where}; there are: {known or 'none'}")
    if alias:
        aliases = client.get_registered_model(name).aliases
        if alias not in aliases:
            known = ", ".join(aliases) or "none: promote a version first"
            raise ValueError(f"{name} has no alias {alias!r} at {where}; it has {known}")
        number = aliases[alias]
    if number in (None, "latest"):
        return every[-1]
    numbered = {str(version.version): version for version in every}
    if str(number) not in numbered:
        raise ValueError(f"{name} has no version {number} at {where}; it has {', '.join(numbered)}")
    return numbered[str(number)]


def versions(client: Any, name: str) -> list[Any]:
    """Return all versions of a registered model, oldest first; [] if there is no such model."""
    every = search(client.search_model_versions, f"name = '{name}'")
    return sorted(every, key=lambda version: int(version.version))


def download(uri: str, model_id: str, inside: str, folder: Path) -> None:
    """Download `inside` (a file or folder, "" is all) of a logged model into `folder`."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    location = connect(uri).get_logged_model(model_id).artifact_location
    repository = get_artifact_repository(location, tracking_uri=uri)
    folder.mkdir(parents=True, exist_ok=True)
    repository.download_artifacts(inside, str(folder))
