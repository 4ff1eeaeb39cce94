"""The project's image holds what its commands and the documented tracking server need."""

import importlib.metadata
import os
import re
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Dockerfile").read_text()


def installed_in_the_image():
    """Names in the locks that the image installs."""
    (parts,) = re.findall(r"for part in ([a-z ]+); do pip install", TEXT)
    locks = [(ROOT / "requirements" / f"{part}.lock").read_text() for part in parts.split()]
    return {
        canonicalize_name(name) for text in locks for name in re.findall(r"(?m)^([\w.-]+)==", text)
    }


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


def test_docker_gets_only_what_is_copied_and_it_exists():
    """Credentials, runs and the virtual environment stay outside; an uncopied folder would too."""
    copied = {name for line in re.findall(r"^COPY (.+) \S+$", TEXT, re.M) for name in line.split()}
    assert [name for name in copied if not (ROOT / name).exists()] == []
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    sent = {rule[1:] for rule in rules if rule.startswith("!")}
    assert rules[1] == "*" and sent == {name.partition("/")[0] for name in copied}


def test_a_change_of_code_installs_nothing_again():
    source = TEXT.index("COPY models")
    assert TEXT.rindex("pip install") < source < TEXT.index("ARG COMMIT")


def referred(value):
    """(Secret, key) of every reference to one."""
    if isinstance(value, dict):
        if found := value.get("secretKeyRef"):
            yield found["name"], found["key"]
        value = list(value.values())
    for each in value if isinstance(value, list) else ():
        yield from referred(each)


@pytest.mark.parametrize("name", ["server/server.yaml", "serve/deployment.yaml"])
def test_the_page_makes_every_secret_of_its_manifest(name):
    manifest = ROOT / "jobs" / "deploy" / name
    needed_keys = set(referred([*yaml.safe_load_all(manifest.read_text())]))
    page = (manifest.parent / "README.md").read_text().replace("\\\n", " ")
    made = {
        (secret, key)
        for secret, rest in re.findall(r"kubectl create secret generic (\S+) (.*)", page)
        for key in re.findall(r"--from-literal=([\w-]+)=", rest)
    }
    assert made == needed_keys and needed_keys


def test_the_model_server_is_built_with_the_tested_versions_on_the_cpu_build():
    text = (ROOT / "jobs/deploy/serve/Dockerfile").read_text()
    text_of_pins = (ROOT / "constraints.txt").read_text().lower()
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", text_of_pins, re.M))
    asked = re.findall(r'"([\w-]+)==\$\{(\w+)\}"', text)
    assert len(asked) == 6  # torch twice: its own index holds nothing else
    for package, argument in asked:
        assert re.search(rf"^ARG {argument}=(.+)$", text, re.M)[1] == pins[package.lower()]
    assert "TORCH_INDEX=https://download.pytorch.org/whl/cpu\n" in text
