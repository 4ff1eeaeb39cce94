"""The project's image holds what its commands and the documented tracking server need."""

import importlib.metadata
import os
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Dockerfile").read_text()


def needed(requirements):
    """Names of all packages that pip installs for these requirements."""
    names, queue = set(), [Requirement(text) for text in requirements]
    seen = set()
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        names.add(name)
        for extra in {"", *requirement.extras}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                inner = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:
                continue  # not installed here, such as deepspeed
            rows = [Requirement(text) for text in inner]
            queue += [r for r in rows if not r.marker or r.marker.evaluate({"extra": extra})]
    return names


def installed_in_the_image():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = re.search(r'-e "\.\[(.+)\]"', TEXT)[1].split(",")
    optional = project["optional-dependencies"]
    return needed(project["dependencies"] + [r for extra in extras for r in optional[extra]])


AUTH = [
    canonicalize_name(Requirement(text).name)
    for text in importlib.metadata.requires("mlflow")
    if 'extra == "auth"' in text
]


# Row 64
@pytest.mark.parametrize("package", [*AUTH, "psycopg", "psycopg-binary", "boto3", "sqlalchemy"])
def test_the_image_has_what_the_tracking_server_imports(package):
    """Accounts, `postgresql://` (SQLAlchemy's default driver since 2.1) and a bucket."""
    assert package in installed_in_the_image()


# Row 64
def test_the_server_starts_by_a_file_of_the_image():
    (deployment, _) = yaml.safe_load_all((ROOT / "jobs/deploy/server/server.yaml").read_text())
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    (command,) = container["command"]
    assert re.search(rf"^COPY {command.partition('/')[0]} ", TEXT, re.M)
    assert os.access(ROOT / command, os.X_OK)
