"""Promotion through a real registry: the gate decides, and the history records it."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.config.commands import COMMANDS
from pipeline.config.compose import compose
from pipeline.config.schema import RollbackConfig
from pipeline.inference.sources import own_tags
from pipeline.registry import promote, reference_pairs
from pipeline.runs.checkpoints import find
from pipeline.runs.run_json import read_run_json
from pipeline.tracking import model_versions
from tests.support.promotion import (
    NAME,
    candidate,
    champion,
    client,
    do,
    uri,
    verify,
)
from tests.support.trained import finished_run, registered, scored

ROOT = Path(__file__).resolve().parents[3]


def test_a_first_champion_then_a_better_one_then_a_rollback(root):
    first = candidate(root, "first", 20.0, 1)
    result = do(first)
    assert (result["version"], result["from"], result["champion_before"]) == (
        2,
        f"models:/{NAME}/1",
        None,
    )
    assert champion(root).version in (2, "2")

    second = candidate(root, "second", 21.0, 2)
    result = do(second)
    assert (result["version"], result["champion_before"]) == (4, 2)
    assert 0.9 < result["figures"]["mean"]["psnr_difference"] < 1.1
    command, values = result["rollout"].split(" ", 4)[:4], result["rollout"].split(" ")[4:]
    assert {f"LACUNA_MODEL=models:/{NAME}/4", f"LACUNA_SHA256={result['sha256']}"} < set(values)
    # The shipped deployment has this name, and leaves these values to fill in.
    deployment = next(yaml.safe_load_all((ROOT / "jobs/deploy/serve/deployment.yaml").open()))
    assert command == ["kubectl", "set", "env", f"deployment/{deployment['metadata']['name']}"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    open_values = {x["name"] for x in container["env"] if "FILL_IN" in x.get("value", "")}
    assert {value.partition("=")[0] for value in values} == open_values

    back = promote.main(RollbackConfig(model=NAME))
    assert (back["version"], back["champion_before"]) == (5, 4)
    tags = champion(root).tags
    assert tags["lacuna.run"] == first
    assert (tags["gate.kind"], tags["gate.content"]) == ("rollback", "2")
    assert verify() == {"name": NAME, "versions": 3, "faults": []}
    with pytest.raises(ValueError, match="no earlier champion than 5"):
        promote.main(RollbackConfig(model=NAME))


@pytest.mark.parametrize(
    ("license", "refused"), [("CC-BY-NC-4.0", True), ("Apache-2.0", False), ("CC-BY-4.0", False)]
)
def test_weights_whose_license_forbids_commercial_use_are_not_promoted(root, license, refused):
    run = finished_run(root / "theirs", uri=uri(root))
    (path,) = Path(run).glob("checkpoints/*/state.json")
    state = json.loads(path.read_text())
    path.write_text(json.dumps({**state, "imported": {"license": license}}))
    registered(run, uri(root))
    scored(run, 20.0)
    version = model_versions.find_version(client(root), f"models:/{NAME}/1")
    assert version.tags["lacuna.license"] == license
    if not refused:
        assert do(run)["version"] == 2
        return
    with pytest.raises(ValueError, match=f"under {license}, which forbids commercial use"):
        do(run)
    assert len(model_versions.versions(client(root), NAME)) == 1


def test_a_promoted_version_records_user_time_source_baseline_and_scores(root):
    do(candidate(root, "first", 20.0, 1))
    run = candidate(root, "second", 21.0, 2)
    do(run)
    version = champion(root)
    tags = version.tags
    assert tags["gate.baseline"] == "2"
    assert tags["gate.user"] and tags["gate.time"].endswith("+00:00")
    assert tags["gate.from"] == f"models:/{NAME}/3"
    assert tags["lacuna.run"] == run
    assert tags["lacuna.run_id"] == version.run_id == read_run_json(run)["mlflow_run_id"]
    assert json.loads(tags["gate.figures"])["mean"]["psnr_ci"][0] > 0.9
    assert "| (0.1,0.2] |" in version.description, "the card shows the scores"


def test_the_metrics_that_the_protocol_asks_are_recorded_and_never_left_out(root, monkeypatch):
    monkeypatch.setenv("LACUNA_CACHE", str(root / "cache"))
    weights = {"vgg16": "a", "lpips_vgg": "b"}
    asked = {"gate": ["psnr", "lpips_vgg"], "data_url": "set"}
    first = candidate(root, "first", 20.0, 1, **asked)
    with pytest.raises(ValueError, match="lpips_vgg, which .*run `python -m pipeline fetch vgg16"):
        do(first)
    scored(first, 20.0, **asked, metrics=["lpips_vgg"], metric_weights=weights)
    do(first)
    tags = champion(root).tags
    assert json.loads(tags["gate.metrics"]) == ["psnr", "lpips_vgg"]
    assert json.loads(tags["gate.figures"])["(0.1,0.2]"]["lpips_vgg"] == pytest.approx(0.8)

    # The champion's metrics are asked, whatever protocol the challenger was evaluated by.
    second = candidate(root, "second", 21.0, 2, data_url="set")
    with pytest.raises(ValueError, match="gate asks for lpips_vgg"):
        do(second)
    scored(second, 21.0, **asked, metrics=["lpips_vgg"], metric_weights=weights)
    assert do(second)["figures"]["(0.1,0.2]"]["lpips_vgg_difference"] == 0


def test_a_worse_model_is_rejected_and_the_reasons_are_recorded(root):
    do(candidate(root, "first", 21.0, 1))
    run = candidate(root, "second", 20.0, 2)
    with pytest.raises(promote.Rejected, match=r"\(0.1,0.2\]: psnr is worse: -") as caught:
        do(run)
    assert "\n" not in str(caught.value)
    assert champion(root).version in (2, "2")
    refused = client(root).get_model_version(NAME, "3").tags["gate.refused"]
    assert refused in str(caught.value)
    assert (
        client(root).get_run(read_run_json(run)["mlflow_run_id"]).data.tags["gate.reasons"]
        == refused
    )


def test_a_first_champion_must_reach_the_floors(root):
    with pytest.raises(promote.Rejected, match="below the floor of 12"):
        do(candidate(root, "first", 9.0, 1))
    assert do(str(root / "first"), floor=5.0)["version"] == 2


def test_promoting_the_champion_again_changes_nothing(root):
    run = candidate(root, "first", 20.0, 1)
    before = do(run)
    assert do(run) == {**before, "what": "champion already"}
    assert len(model_versions.versions(client(root), NAME)) == 2


def test_scores_of_other_weights_or_other_pairs_do_not_count(root):
    run = candidate(root, "first", None, 1)
    with pytest.raises(ValueError, match="no evaluation of inpaint-msanet .* evaluate checkpoint="):
        do(run)
    scored(run, 30.0, sha256="0" * 64)
    with pytest.raises(ValueError, match="no evaluation of inpaint-msanet"):
        do(run)
    scored(run, 20.0)
    do(run)

    other = candidate(root, "second", 25.0, 2, pairs="e" * 64)
    with pytest.raises(ValueError, match="no scores of .* on the reference pairs dddddddddddd"):
        do(other)


TRAINED = {"data": {"url": "sets/a", "resize_short": 350}, "masks": {"kind": "irregular"},
           "validate": {"size": 96}}  # fmt: skip
SCORED = {"data_url": "sets/b", "masks_url": "sets/m", "limit": 7, "resize_short": 96, "size": 64}
LINES = {
    "as trained, with masks to draw": (
        TRAINED,
        None,
        {"data.url": "sets/a", "data.resize_short": "350", "masks.url": "{run}/masks",
         "protocol.size": "96"},
    ),
    "a center hole": (
        {"data": {"url": "s"}, "masks": {"kind": "center"}},
        None,
        {"data.url": "s", "protocol": "musical"},
    ),
    "masks of the training": (
        {"data": {"url": "s"}, "masks": {"kind": "external", "url": "m"}},
        None,
        {"data.url": "s", "masks.url": "m"},
    ),
    "as another checkpoint was scored": (
        TRAINED,
        SCORED,
        {"data.url": "sets/b", "masks.url": "sets/m", "protocol": "msanet", "split": "test",
         "limit": "7", "data.resize_short": "96", "protocol.size": "64"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LINES)
def test_what_was_never_scored_is_answered_with_a_line_that_can_be_pasted(root, case):
    config, before, expected = LINES[case]
    run = candidate(root, "first run", None, 1)
    Path(run, "config.yaml").write_text(yaml.safe_dump(config))
    if before:
        scored(run, 30.0, sha256="0" * 64, **before)
    with pytest.raises(ValueError) as refused:
        do(run)
    line = re.fullmatch(r"no evaluation of .*?: run (.*), or set pairs= .*", str(refused.value))[1]
    *drawn, evaluated = [shlex.split(part) for part in line.split(" && ")]
    assert evaluated[:4] == ["python", "-m", "pipeline", "evaluate"]
    COMMANDS["evaluate"].check(compose("evaluate", evaluated[4:]).config)
    given = dict(word.split("=", 1) for word in evaluated[4:])
    assert find(given.pop("checkpoint")).images_seen == 1000
    assert given.pop("weights") == "raw"
    assert given == {key: value.format(run=run) for key, value in expected.items()}
    draws = "masks.url" in given and given["masks.url"].startswith(run)
    assert drawn == [["python", "-m", "pipeline", "masks", "size=96", f"out={run}/masks"]] * draws


def test_a_model_with_pinned_pairs_needs_no_evaluation_before_a_promotion(root):
    first = candidate(root, "first", None, 1)
    tags = own_tags(model_versions.find_version(client(root), f"models:/{NAME}/1"))
    assert "evaluate" in reference_pairs.missing_evaluation(client(root), NAME, tags)
    scored(first, 20.0)
    assert reference_pairs.missing_evaluation(client(root), NAME, tags) == ""
    do(first)
    candidate(root, "second", None, 2)
    other = own_tags(model_versions.find_version(client(root), f"models:/{NAME}/3"))
    assert other["run"].endswith("second")
    assert reference_pairs.missing_evaluation(client(root), NAME, other) == ""


def test_the_pinned_pairs_do_not_change_with_later_promotions(root):
    first = candidate(root, "first", 20.0, 1)
    do(first)
    pinned = json.loads(client(root).get_registered_model(NAME).tags["gate.pinned"])
    assert pinned["pairs_digest"] == "d" * 64

    second = candidate(root, "second", 21.0, 2)
    scored(second, 25.0, pairs="e" * 64)
    do(second)
    assert json.loads(client(root).get_registered_model(NAME).tags["gate.pinned"]) == pinned


def test_a_model_created_by_into_accepts_either_network(root):
    run = candidate(root, "first", 20.0, 1)
    result = do(run, into="inpaint")
    assert (result["name"], result["version"]) == ("inpaint", 1)
    assert client(root).get_registered_model("inpaint").tags["lacuna.network"] == "any"
    client(root).create_registered_model("inpaint-musical", tags={"lacuna.network": "musical"})
    with pytest.raises(ValueError, match="is for musical: choose another into= for msanet"):
        do(run, into="inpaint-musical")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"model": "inpaint-other", "run": None},
            "model 'inpaint-other' at sqlite:///.*; there are",
        ),
        ({"model": f"{NAME}/9", "run": None}, "no version 9 at sqlite:///.*mlflow.db; it has 1"),
        (
            {"run": "runs/nowhere"},
            "no version of runs/nowhere at sqlite:///.*: .* register",
        ),
        ({"into": "a/b"}, "invalid name of a registered model"),
    ],
)
def test_a_missing_model_version_or_run_gives_a_one_line_error(root, options, words):
    run = candidate(root, "first", 20.0, 1)
    with pytest.raises(ValueError, match=words) as caught:
        do(**{"run": run, **options})
    assert "\n" not in str(caught.value)


def test_rollback_lists_the_versions_to_choose_from(root):
    candidate(root, "first", 20.0, 1)
    with pytest.raises(ValueError, match="has no champion: promote"):
        promote.main(RollbackConfig(model=NAME))
    do(str(root / "first"))
    with pytest.raises(ValueError, match="version 1 of inpaint-msanet was never champion; .* none"):
        promote.main(RollbackConfig(model=NAME, version=1))


RACER = """
import json, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from pipeline.config.schema import PromoteConfig
from pipeline.registry import promote, register
create = register.create_version
def together(*args):  # all decide against one champion before the first one writes
    Path("ready-{number}").touch()
    while len(list(Path().glob("ready-*"))) < 4:
        time.sleep(0.01)
    return create(*args)
register.create_version = together
try:
    print(json.dumps(promote.main(PromoteConfig(model={name!r}, run={run!r}))["version"]))
except ValueError as error:
    print(json.dumps(str(error)))
"""


@pytest.mark.slow
@pytest.mark.dist
def test_four_promotions_at_once_leave_one_champion_and_one_history(root, tmp_path):
    do(candidate(root, "first", 20.0, 0))
    runs = [candidate(root, f"run{number}", 20.5 + number / 10, number) for number in range(1, 5)]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", RACER.format(root=str(ROOT), number=i, name=NAME, run=run)],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i, run in enumerate(runs)
    ]
    ended = [child.communicate(timeout=300) for child in children]
    assert [child.returncode for child in children] == [0] * 4, ended
    result = [json.loads(out.splitlines()[-1]) for out, _ in ended]

    won = [version for version in result if isinstance(version, int)]
    lost = [line for line in result if isinstance(line, str)]
    assert len(won) == 1 and len(lost) == 3
    assert all(f"changed from 2 to {won[0]}" in line for line in lost)
    assert str(champion(root).version) == str(won[0])
    superseded = [
        v
        for v in model_versions.versions(client(root), NAME)
        if v.tags.get("gate.result") == "superseded"
    ]
    assert len(superseded) == 3
    assert verify()["faults"] == []


@pytest.mark.slow
def test_repin_and_fresh_evaluate_the_archives_themselves(small_set, verb, tmp_path, monkeypatch):
    """The whole path with real images: data set, masks, evaluate, register, promote."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    masks = tmp_path / "masks"
    assert verb("masks", f"out={masks}", "size=64", "per_bucket=2").returncode == 0
    where = [f"data.url={small_set}", f"masks.url={masks}", "protocol.size=64"]
    runs = []
    for seed in (1, 2):
        run = finished_run(tmp_path / f"run{seed}", seed=seed)
        runs.append(run)
        assert (done := verb("register", f"run={run}")).returncode == 0, done.stderr
    done = verb("evaluate", f"checkpoint={runs[0]}", "split=val", *where)
    assert done.returncode == 0, done.stderr

    done = verb("promote", NAME, f"run={runs[0]}", "floor=0", "fresh=true", "--json")
    assert done.returncode == 0, done.stderr
    first = json.loads(done.stdout.splitlines()[-1])
    assert first["version"] == 3

    loose = ["floor=0", "tolerance=100", "bound=100"]
    done = verb("promote", NAME, f"run={runs[1]}", *loose, "--json")
    assert done.returncode in (0, 2), done.stderr
    if done.returncode == 2:
        assert "ssim" in done.stderr, "random networks differ; only the gate may refuse"

    done = verb("evaluate", f"checkpoint={runs[0]}", "split=test", *where, "--json")
    table = json.loads(done.stdout.splitlines()[-1])["parquet"]
    done = verb("promote", f"{NAME}/1", "repin=true", f"pairs={table}", *loose, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["version"] > 3
