"""`promote` and `rollback`: make a version of a registered model its champion.

A promotion compares per-image scores on the reference pairs (`gate`), copies the version's files
into an experiment of the production model, checks every hash, and appends to the history
(`history`). A rejection is recorded in the candidate's run and version.
"""

import datetime
import json
import tempfile
from pathlib import Path
from typing import Any

from pipeline.common.console import say, table
from pipeline.common.environment import user
from pipeline.config.schema import PromoteConfig, RollbackConfig
from pipeline.evaluation import metrics, results
from pipeline.inference.sources import own_tags, prefixed
from pipeline.registry import gate, history, package, reference_pairs, register
from pipeline.registry.history import ALIAS
from pipeline.tracking import errors, model_versions
from pipeline.tracking.client import connect, experiment_id, tracking_uri, uri_for
from shards import store

MEASURED = ("metrics", "metric_weights", "notes", "sets", "code")  # kept with the pairs' facts
DECIDED = ("gate.figures", "gate.pairs_digest", "gate.metrics")


class Rejected(ValueError):
    """The gate rejected the candidate; one line with every reason."""


def main(config: PromoteConfig | RollbackConfig) -> dict[str, Any]:
    if isinstance(config, RollbackConfig):
        return rollback(config)
    if config.verify:
        return history.verify(*_server(config), config.into or config.model.partition("/")[0])
    return promote(config)


def dry_run(config: PromoteConfig | RollbackConfig) -> str:
    """Describe the promotion or rollback without evaluating anything."""
    uri, client = _server(config)
    with errors.explained(uri):
        if isinstance(config, RollbackConfig):
            past = history.fold(model_versions.versions(client, config.model))
            target = history.target(config.model, past, config.version)
            now = past.line[-1].version
            return f"would make {config.model}/{target.version} champion again, replacing {now}"
        if config.verify:
            return "would change nothing: verify=true only reads"
        candidate = _candidate(client, config)
        name = config.into or candidate.name
        before = history.fold(model_versions.versions(client, name)).champion
        against = f"champion {name}/{before.version}" if before else f"floor={config.floor}"
        return (
            f"would compare {candidate.name}/{candidate.version} with {against} and promote it if "
            "it passes the gate"
        )


def promote(config: PromoteConfig) -> dict[str, Any]:
    """Make a registered version the champion of `into` (its own model by default).

    Returns model_uri, name, version, champion_before, figures, rollout. Raises Rejected with the
    reasons; ValueError for a missing model, run or evaluation.
    """
    uri, client = _server(config)
    with errors.explained(uri):
        candidate = _candidate(client, config)
        name = config.into or candidate.name
        tags = own_tags(candidate)
        if "-NC" in tags.get("license", ""):
            raise ValueError(
                f"{candidate.name}/{candidate.version} has weights under {tags['license']}, which "
                f"forbids commercial use: they are not promoted; train the method's own recipe"
            )
        network = tags["network"]
        created_for = network if name == candidate.name else "any"
        register.ensure_model(client, name, network, created_for, key="into")
        before = history.settle(client, name).champion
        if before is not None and own_tags(before)["sha256"] == tags["sha256"] and not config.repin:
            return _result(name, before, "champion already")
        # Both are scored on the same pairs: those pinned by the first promotion.
        pairs = reference_pairs.read(client, name)
        if pairs is None or config.repin:
            pairs = reference_pairs.from_evaluation(tags, config.pairs)
        ours = reference_pairs.scores(uri, candidate, pairs, config.fresh)
        theirs = before and reference_pairs.champion_scores(uri, before, pairs, config.repin)
        rules = gate.Rules(config.tolerance, config.bound, floor_psnr=config.floor)
        reasons, figures = gate.decide(ours, theirs, pairs, rules)
        if reasons:
            _record_rejection(client, candidate, reasons)
            raise Rejected(
                f"promotion of {candidate.name}/{candidate.version} rejected: {'; '.join(reasons)}"
            )
        if before is None or config.repin:
            reference_pairs.write(client, name, pairs)
        facts, card = _copy(client, uri, candidate, name, ours, pairs)
        record = {
            **prefixed(facts),
            **_gate_tags("promote", before),
            "gate.from": f"models:/{candidate.name}/{candidate.version}",
            "gate.figures": json.dumps(figures, sort_keys=True),
            "gate.pairs_digest": pairs["pairs_digest"],
            "gate.metrics": json.dumps(pairs["gate"]),
        }
        # The history is appended to last: the first promotion against this champion wins.
        promoted = register.create_version(client, name, history.sealed(record), card)
        _check_not_superseded(client, name, promoted, before)
    return _result(name, promoted, "promoted")


def rollback(config: RollbackConfig) -> dict[str, Any]:
    """Make an earlier champion the champion again, as a new version; the history is kept.

    With `version`, it also repairs the history after a promoted version was deleted.
    """
    name, version = config.model, config.version
    uri, client = _server(config)
    with errors.explained(uri):
        model_versions.find_version(client, f"models:/{name}")
        every = model_versions.versions(client, name)
        past = history.fold(every)
        gone = history.deleted(client.get_registered_model(name), every)
        if version and gone:
            target = history.promoted(name, every, version)
            history.repair(client, name, every, gone, past.champion or target)
        else:
            past = history.settle(client, name)
            target = history.target(name, past, version)
        record = {
            **prefixed(own_tags(target)),
            **{key: target.tags[key] for key in DECIDED if key in target.tags},
            **_gate_tags("rollback", past.champion),
            "gate.content": history.content(target),
        }
        card = target.description
        restored = register.create_version(client, name, history.sealed(record), card)
        _check_not_superseded(client, name, restored, past.champion)
    return _result(name, restored, f"rolled back to {target.version}")


# --- steps of promote -----------------------------------------------------------------------------


def _server(config: PromoteConfig | RollbackConfig) -> tuple[str, Any]:
    """Return the tracking URI (of the promoted run, if one is named) and a client."""
    run = config.run if isinstance(config, PromoteConfig) else None
    uri = uri_for(run, None) if run and store.exists(run) else tracking_uri(config.root)
    return uri, connect(uri, make=False)


def _candidate(client: Any, config: PromoteConfig) -> Any:
    """Find the version to promote: NAME/VERSION, else the run's newest, else the newest."""
    name, _, number = config.model.partition("/")
    if number:
        return model_versions.find_version(client, f"models:/{name}/{number}")
    if not config.run:  # an unknown model's error lists the registered ones
        model_versions.find_version(client, f"models:/{name}")
    run = config.run and register.run_name(config.run)
    for version in reversed(model_versions.versions(client, name)):
        if history.is_promotion(version) or "lacuna.model_id" not in version.tags:
            continue
        if not run or version.tags.get("lacuna.run") == run or version.run_id == config.run:
            return version
    raise ValueError(
        f"{name} has no version of {config.run or 'any run'} at "
        f"{errors.display_uri(client.tracking_uri)}: run python -m pipeline register "
        f"run={config.run or 'RUN'}"
    )


def _copy(
    client: Any, uri: str, candidate: Any, name: str, scored: gate.Scored, pairs: dict[str, Any]
) -> tuple[dict[str, str], str]:
    """Copy the version's files, scores and card into the production model's experiment.

    The training run may then be deleted. Returns the facts of the copy and its card.
    """
    tags = own_tags(candidate)
    experiment = experiment_id(client, uri, f"registry/{name}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "model")
        model_versions.download(uri, tags["model_id"], "", folder)
        if package.tree_digest(folder) != tags["tree_sha256"]:
            raise ValueError(
                f"the files of {candidate.name}/{candidate.version} changed after registration: "
                "register the run again under another name="
            )
        scores, measured = scored
        kept = pairs | {key: measured[key] for key in MEASURED if key in measured}
        logged = client.create_logged_model(experiment, name=name, model_type="inpainting")
        shown = {**kept, **results.summarize(scores, kept)}
        card = package.write_card(tags, shown, logged.model_id, folder)
        (folder / "gate").mkdir()
        results.save(str(folder / "gate" / "evaluation.parquet"), scores, kept)
        tree = package.tree_digest(folder)
        client.log_model_artifacts(logged.model_id, str(folder))
        client.finalize_logged_model(logged.model_id, "READY")
        stored = Path(scratch, "stored")
        model_versions.download(uri, logged.model_id, "", stored)
        if package.tree_digest(stored) != tree:
            raise ValueError(
                f"{errors.display_uri(uri)} stored bytes that differ from those sent: promote again"
            )
    return {**tags, "model_id": logged.model_id, "tree_sha256": tree}, card


def _gate_tags(kind: str, baseline: Any | None) -> dict[str, str]:
    return {
        "gate.kind": kind,
        "gate.baseline": str(baseline.version if baseline else 0),
        "gate.previous": baseline.tags["gate.digest"] if baseline else "",
        "gate.user": user(),
        "gate.time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _record_rejection(client: Any, candidate: Any, reasons: list[str]) -> None:
    from mlflow.exceptions import MlflowException

    text = "; ".join(reasons)[:5000]
    try:
        client.set_model_version_tag(candidate.name, str(candidate.version), "gate.refused", text)
        if candidate.run_id:
            client.set_tag(candidate.run_id, "gate.reasons", text)
    except MlflowException as error:  # the run may belong to another account
        say(f"the rejection could not be recorded: {errors.explain(error, 'MLflow')}")


def _check_not_superseded(client: Any, name: str, version: Any, before: Any | None) -> None:
    """Update the champion alias; ValueError if another promotion came first."""
    line = history.settle(client, name).line
    if all(str(each.version) != str(version.version) for each in line):
        client.set_model_version_tag(name, str(version.version), "gate.result", "superseded")
        raise ValueError(
            f"the champion of {name} changed from {before.version if before else 'none'} to "
            f"{line[-1].version} during the evaluation: run the command again"
        )


def _result(name: str, version: Any, what: str) -> dict[str, Any]:
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
        "champion_before": int(version.tags["gate.baseline"]) or None,
        "sha256": sha256,
        "figures": json.loads(version.tags["gate.figures"]),
        "rollout": rollout,
    }


def show(result: dict[str, Any]) -> str:
    if "what" not in result:
        return f"{result['name']}: {result['versions']} promotions, history and files are intact"
    keys = sorted({key for row in result["figures"].values() for key in row})
    printed = {m.key: m for m in metrics.printed_metrics(chosen=keys).values() if m.key in keys}
    rows = []
    for bucket, row in result["figures"].items():
        cells = [f"  {bucket}"]
        for key, metric in printed.items():
            cells.append(f"{row[key]:.{metric.digits}f} {metric.unit}" if key in row else "")
        if "psnr_ci" in row:
            low, high = row["psnr_ci"]
            cells.append(f"{row['psnr_difference']:+.3f} dB [{low:+.3f}, {high:+.3f}]")
        rows.append(cells)
    heading = f"{result['name']}/{result['version']} is {ALIAS}: {result['what']}"
    return "\n".join([heading, *table(rows, "<>"), f"roll out: {result['rollout']}"])
