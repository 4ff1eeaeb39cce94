"""`promote` and `rollback`: which version of a registered model is the champion, and why.

A promotion compares per-image scores on pinned pairs (`gate`), copies the version's files into an
experiment of the production model's own, checks every hash, and appends to the history
(`history`). What was refused is recorded at the run and at the version that were refused.
"""

import datetime
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.common.environment import user
from pipeline.config.schema import PromoteConfig, RollbackConfig
from pipeline.evaluation import metrics, results
from pipeline.registry import gate, history, package, reference_pairs, register
from pipeline.registry.history import ALIAS, number
from pipeline.tracking import errors, model_versions
from pipeline.tracking.client import connect, experiment_id, tracking_uri, uri_for
from pipeline.tracking.sender import say
from shards import store

COPIED: tuple[str, ...] = (
    "name",
    "network",
    "run",
    "run_id",
    "images_seen",
    "weights",
    "weights_sha256",
)
COPIED += ("dataset", "commit", "sha256", "registered_by")


class Refused(ValueError):
    """The gate said no; one line with every reason."""


def main(config: PromoteConfig | RollbackConfig) -> dict[str, Any]:
    if isinstance(config, RollbackConfig):
        return rollback(config.model, config.version, config.root)
    if config.verify:
        return history.verify(config.into or config.model.partition("/")[0], config.root)
    return promote(config)


def dry_run(config: PromoteConfig | RollbackConfig) -> str:
    """What the gate would be asked; nothing is evaluated."""
    run = getattr(config, "run", None)
    uri = uri_for(run if run and store.exists(run) else None, config.root)
    client = connect(uri, make=False)
    with errors.explained(uri):
        if isinstance(config, RollbackConfig):
            past = history.fold(model_versions.versions(client, config.model))
            target = history.target(config.model, past, config.version)
            now = past.line[-1].version
            return f"would make {config.model}/{target.version} champion again, in place of {now}"
        if config.verify:
            return "changes nothing: verify=true only reads"
        found = _candidate(client, config)
        name = config.into or found.name
        before = history.fold(model_versions.versions(client, name)).champion
        against = (
            f"champion {name}/{before.version}" if before else "the absolute floors (no champion)"
        )
        return (
            f"would hold {found.name}/{found.version} against {against}, and promote it if better"
        )


def promote(config: PromoteConfig) -> dict[str, Any]:
    """Makes a registered version the champion of `into` (its own model by default).

    Returns model_uri, name, version, champion_before, figures, rollout. Raises Refused with the
    reasons; ValueError for a model, run or evaluation that is not there.
    """
    run = config.run if config.run and store.exists(config.run) else None
    uri = uri_for(run, config.root if run is None else None)
    client = connect(uri, make=False)
    with errors.explained(uri):
        candidate = _candidate(client, config)
        name = register.checked_name(config.into or candidate.name)
        tags = _own(candidate)
        _production(client, name, tags["network"], apart=name != candidate.name)
        before = history.settle(client, name).champion
        if before is not None and _own(before)["sha256"] == tags["sha256"] and not config.repin:
            return _told(name, before, before.tags["gate.baseline"], "champion already")
        pairs = reference_pairs.read(client, name)
        if pairs is None or config.repin:
            pairs = reference_pairs.from_evaluation(tags, config.pairs)
        ours = reference_pairs.scores(uri, candidate, pairs, config.fresh)
        theirs = before and reference_pairs.champion_scores(uri, before, pairs, config.repin)
        rules = gate.Rules(config.tolerance, config.bound, floor_psnr=config.floor)
        reasons, figures = gate.decide(ours, theirs, pairs["buckets"], pairs["ssim"], rules)
        if reasons:
            _record_refusal(client, candidate, reasons)
            raise Refused(f"{candidate.name}/{candidate.version} stays out: {'; '.join(reasons)}")
        if before is None or config.repin:
            reference_pairs.write(client, name, pairs)
        source, tree = _copy(client, uri, candidate, name, ours, pairs)
        record = _record(tags, source[0], tree, figures, pairs, candidate)
        made = history.append(client, name, source, record, before)
        _must_count(client, name, made, before)
    return _told(name, made, before.version if before else 0, "promoted", figures)


def rollback(name: str, version: int | None = None, root: str = "runs") -> dict[str, Any]:
    """Makes an earlier champion the champion again, as a new version; the record stays.

    With `version`, also the way out after a promoted version was deleted.
    """
    uri = tracking_uri(root)
    client = connect(uri, make=False)
    with errors.explained(uri):
        model_versions.find_version(client, f"models:/{name}")
        every = model_versions.versions(client, name)
        past = history.fold(every)
        if version and history.deleted(client.get_registered_model(name), every):
            target = history.promoted(name, every, version)
            history.repair(client, name, every, past.champion or target)
        else:
            past = history.settle(client, name)
            target = history.target(name, past, version)
        tags = {k: v for k, v in target.tags.items() if not k.startswith("gate.")}
        for key in ("gate.figures", "gate.pairs_digest"):
            tags[key] = target.tags[key]
        tags |= {**_who(), "gate.kind": "rollback", "gate.content": history.content(target)}
        source = (target.tags["lacuna.model_id"], target.run_id or None, target.description)
        made = history.append(client, name, source, tags, past.champion)
        _must_count(client, name, made, past.champion)
    return _told(name, made, number(past.line), f"rolled back to {target.version}")


# --- step by step ---------------------------------------------------------------------------------


def _candidate(client: Any, config: PromoteConfig) -> Any:
    """The registered version that is meant: NAME/VERSION, the run's newest, else the newest."""
    name, _, number = config.model.partition("/")
    if number or not config.run:
        found = model_versions.find_version(
            client, f"models:/{name}" + (f"/{number}" if number else "")
        )
        if number:
            return found
    wanted = config.run and register.run_name(config.run)
    for version in reversed(model_versions.versions(client, register.checked_name(name))):
        if "gate.digest" in version.tags or "lacuna.model_id" not in version.tags:
            continue
        if not wanted or version.tags.get("lacuna.run") == wanted or version.run_id == config.run:
            return version
    raise ValueError(
        f"{name} has no version of {config.run or 'any run'} at "
        f"{errors.display_uri(client.tracking_uri)}: python -m pipeline register "
        f"run={config.run or 'RUN'}"
    )


def _own(version: Any) -> dict[str, str]:
    """A version's `lacuna.*` tags without the prefix. ValueError where `register` made none."""
    tags = {k.removeprefix("lacuna."): v for k, v in version.tags.items() if k[:7] == "lacuna."}
    if not {"sha256", "model_id", "tree_sha256", "network"} <= set(tags):
        raise ValueError(f"{version.name}/{version.version} was not made by `register`")
    return tags


def _production(client: Any, name: str, network: str, apart: bool) -> None:
    """The production model exists and takes this network; one made by `into=` takes any."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, tags={"lacuna.network": "any" if apart else network})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        takes = client.get_registered_model(name).tags.get("lacuna.network")
        if takes not in (network, "any"):
            raise ValueError(
                f"{name} holds {takes or 'something that is not ours'}, the challenger is "
                f"{network}: choose another into="
            ) from None


def _copy(
    client: Any, uri: str, candidate: Any, name: str, scores: pa.Table, pairs: dict[str, Any]
) -> tuple[tuple[str, str | None, str], str]:
    """The version's files, with its scores and card, in the production model's own experiment.

    Training runs may then be deleted. Returns (model id, run id, description) and the digest.
    """
    tags = _own(candidate)
    experiment = experiment_id(client, uri, f"registry/{name}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "model")
        model_versions.download(uri, tags["model_id"], "", folder)
        if package.tree_digest(folder) != tags["tree_sha256"]:
            raise ValueError(
                f"the files of {candidate.name}/{candidate.version} are not those that were "
                "registered: register the run again under another name="
            )
        summary = {**pairs, **results.summarize(scores, pairs["ssim"])}
        text = package.text(tags, summary)
        (folder / "gate").mkdir()
        (folder / "gate" / "README.md").write_text(text)
        results.save(str(folder / "gate" / "evaluation.parquet"), scores, pairs)
        tree = package.tree_digest(folder)
        made = client.create_logged_model(experiment, name=name, model_type="inpainting")
        client.log_model_artifacts(made.model_id, str(folder))
        client.finalize_logged_model(made.model_id, "READY")
        back = Path(scratch, "back")
        model_versions.download(uri, made.model_id, "", back)
        if package.tree_digest(back) != tree:
            raise ValueError(
                f"what {errors.display_uri(uri)} stored is not what was sent; run it again"
            )
    return (made.model_id, candidate.run_id or None, text), tree


def _record(
    tags: dict[str, str],
    model_id: str,
    tree: str,
    figures: dict[str, Any],
    pairs: dict[str, Any],
    candidate: Any,
) -> dict[str, str]:
    kept = {f"lacuna.{key}": tags[key] for key in COPIED if key in tags}
    kept |= {"lacuna.model_id": model_id, "lacuna.tree_sha256": tree}
    return kept | {
        **_who(),
        "gate.kind": "promote",
        "gate.from": f"models:/{candidate.name}/{candidate.version}",
        "gate.figures": json.dumps(figures, sort_keys=True)[:5000],
        "gate.pairs_digest": pairs["pairs_digest"],
    }


def _who() -> dict[str, str]:
    now = datetime.datetime.now(datetime.UTC)
    return {"gate.user": user(), "gate.time": now.isoformat(timespec="seconds")}


def _record_refusal(client: Any, candidate: Any, reasons: list[str]) -> None:
    from mlflow.exceptions import MlflowException

    text = "; ".join(reasons)[:5000]
    try:
        client.set_model_version_tag(candidate.name, str(candidate.version), "gate.refused", text)
        if candidate.run_id:
            client.set_tag(candidate.run_id, "gate.reasons", text)
    except MlflowException as error:  # another account's run: the refusal stands all the same
        say(f"the refusal could not be recorded: {errors.explain(error, 'MLflow')}")


def _must_count(client: Any, name: str, made: Any, before: Any | None) -> None:
    """Settles; ValueError if another promotion came first."""
    line = history.settle(client, name).line
    if all(str(version.version) != str(made.version) for version in line):
        client.set_model_version_tag(name, str(made.version), "gate.result", "superseded")
        raise ValueError(
            f"champion of {name} moved from {before.version if before else 'none'} to "
            f"{line[-1].version} while this was being evaluated; run it again"
        )


def _told(
    name: str, version: Any, before: Any, what: str, figures: dict[str, Any] | None = None
) -> dict[str, Any]:
    sha256 = version.tags["lacuna.sha256"]
    rollout = (
        f"kubectl set env deployment/{name} LACUNA_MODEL=models:/{name}/{version.version} "
        f"LACUNA_MODEL_VERSION={version.version} LACUNA_SHA256={sha256}"
    )
    return {
        "what": what,
        "model_uri": f"models:/{name}@{ALIAS}",
        "name": name,
        "version": int(version.version),
        "from": version.tags.get("gate.from"),
        "champion_before": int(before) or None,
        "sha256": sha256,
        "figures": figures or json.loads(version.tags["gate.figures"]),
        "rollout": rollout,
    }


def show(result: dict[str, Any]) -> str:
    if "what" not in result:
        return f"{result['name']}: {result['versions']} promotions, record and files are whole"
    lines = [f"{result['name']}/{result['version']} is {ALIAS}: {result['what']}"]
    for bucket, row in result["figures"].items():
        change = ""
        if "psnr_ci" in row:
            low, high = row["psnr_ci"]
            change = f"  {row['psnr_difference']:+.3f} dB [{low:+.3f}, {high:+.3f}]"
        own = [
            f"{row[key]:.{metric.digits}f} {metric.unit}".rstrip() if key in row else ""
            for key, metric in metrics.printed_metrics().items()
            if key in ("psnr", "ssim")
        ]
        lines.append(f"  {bucket:<12}{own[0]:>11} {own[1]:>7}{change}")
    return "\n".join([*lines, f"roll out: {result['rollout']}"])
