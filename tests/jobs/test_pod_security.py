"""Pods are admitted where the `restricted` standard is enforced, and the shipped Role is enough."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from jobs import scheduler
from tests.jobs.cases import CASES
from tests.support.pod_security import cases, violations

ROOT = Path(__file__).resolve().parents[2]
UPSTREAM = cases()
SHIPPED = [
    ROOT / "jobs" / "deploy" / name for name in ("server/server.yaml", "serve/deployment.yaml")
]


def test_the_checker_agrees_with_every_fixture_of_upstream():
    assert len(UPSTREAM) == 95
    wrong = [name for name, pod in UPSTREAM.items()
             if bool(violations(pod)) != name.startswith("fail ")]  # fmt: skip
    assert wrong == []


def templates():
    """Every pod template that is shipped, or that `submit` renders without a site's patch."""
    objects = {path.name: [*yaml.safe_load_all(path.read_text())] for path in SHIPPED}
    for name in [name for name in CASES if name.endswith(".yaml")]:
        stages = [stage._replace(cluster=replace(stage.cluster, patch={})) for stage in CASES[name]]
        objects[name] = [*yaml.safe_load_all(scheduler.render(stages).text)]
    found = {}
    for name, made in objects.items():
        for each in made:
            parts = each["spec"].get("replicatedJobs") or [{"name": each["kind"], "template": each}]
            found |= {f"{name} {part['name']}": part["template"]["spec"]["template"]
                      for part in parts if "template" in part["template"]["spec"]}  # fmt: skip
    return found


TEMPLATES = templates()


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_pod_is_admitted_and_cannot_fill_its_node(name):
    spec = TEMPLATES[name]["spec"]
    assert violations(TEMPLATES[name]) == []
    assert spec["automountServiceAccountToken"] is False
    for volume in spec["volumes"]:
        assert "emptyDir" not in volume or volume["emptyDir"]["sizeLimit"]
    for container in spec["containers"]:
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["resources"]["limits"]["ephemeral-storage"]


def fields(value, path=()):
    if isinstance(value, dict):
        for key, each in value.items():
            yield (*path, key)
            yield from fields(each, (*path, key))


@pytest.mark.parametrize("name", TEMPLATES)
def test_without_any_one_field_a_pod_is_not_admitted(name):
    spec = TEMPLATES[name]["spec"]
    places = [("spec", "securityContext", *p) for p in fields(spec["securityContext"])
              if p[0] in ("runAsNonRoot", "seccompProfile")]  # fmt: skip
    places += [("spec", "containers", 0, "securityContext", *p)
               for p in fields(spec["containers"][0]["securityContext"])
               if p[0] != "readOnlyRootFilesystem"]  # fmt: skip
    assert len(places) == 6
    for *above, last in places:
        without = copy.deepcopy(TEMPLATES[name])
        place = without
        for key in above:
            place = place[key]
        del place[last]
        assert violations(without), [*above, last]
