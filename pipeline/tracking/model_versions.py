"""Versions of registered models by name, looked up without torch: the launcher does so too."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pipeline.tracking import errors
from pipeline.tracking.client import connect

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def find_version(client: Any, uri: str) -> Any:
    """The registered version that `models:/NAME@ALIAS`, `/NAME/VERSION` or `/NAME` (newest) names.

    Raises ValueError that lists what there is.
    """
    parsed = re.fullmatch(r"models:/+([^/@]+)(?:@([^/]+)|/(\d+|latest))?", uri)
    if parsed is None:
        raise ValueError(f"{uri} names no model: models:/NAME@champion or models:/NAME/VERSION")
    name, alias, number = parsed.groups()
    checked_name(name)
    every = versions(client, name)
    if not every:
        known = ", ".join(m.name for m in client.search_registered_models(max_results=20))
        where = errors.display_uri(client.tracking_uri)
        raise ValueError(f"no registered model {name!r} at {where}; there are: {known or 'none'}")
    if alias:
        aliases = client.get_registered_model(name).aliases
        if alias not in aliases:
            known = ", ".join(aliases) or "none: promote a version first"
            where = errors.display_uri(client.tracking_uri)
            raise ValueError(f"{name} has no alias {alias!r} at {where}; it has {known}")
        number = aliases[alias]
    if number in (None, "latest"):
        return every[-1]
    for version in every:
        if int(version.version) == int(number):
            return version
    known = ", ".join(str(v.version) for v in every)
    where = errors.display_uri(client.tracking_uri)
    raise ValueError(f"{name} has no version {number} at {where}; it has {known}")


def versions(client: Any, name: str) -> list[Any]:
    """All versions of a registered model, oldest first; empty if there is no such model."""
    found, token = [], None
    while True:
        page = client.search_model_versions(f"name = '{name}'", max_results=200, page_token=token)
        found += page
        token = page.token
        if not token:
            return sorted(found, key=lambda version: int(version.version))


def checked_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is no name for a registered model: letters, digits, '.', '_' and '-', "
            "such as inpaint-msanet"
        )
    return name


def download(uri: str, model_id: str, inside: str, folder: Path) -> None:
    """Copies `inside` (a file or folder; "" is all) of a logged model below `folder`."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    location = connect(uri).get_logged_model(model_id).artifact_location
    repository = get_artifact_repository(location, tracking_uri=uri)
    folder.mkdir(parents=True, exist_ok=True)
    repository.download_artifacts(inside, str(folder))
