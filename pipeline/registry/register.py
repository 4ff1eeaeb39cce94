"""`register`: a run's generator as a version of a registered model; and loading one back.

A version is a LoggedModel: `serving.py` (a pyfunc, models from code) around `inpainter.pt2`, a
`torch.export` archive made on the CPU in fp32. We load the archive, never code from a registry.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

from pipeline.common.environment import user
from pipeline.config.schema import RegisterConfig
from pipeline.evaluation import results
from pipeline.inference.sources import WEIGHTS
from pipeline.registry import package
from pipeline.registry.package import tree_digest
from pipeline.runs.run_json import read_run_json
from pipeline.tracking import errors
from pipeline.tracking.client import connect, experiment_id, model_link, uri_for
from pipeline.tracking.model_versions import checked_name, versions
from shards import store


def main(config: RegisterConfig) -> dict[str, Any]:
    return register(config.run, config.checkpoint, config.name, config.weights)


def dry_run(config: RegisterConfig) -> str:
    from pipeline.runs.checkpoints import find

    found = find(config.run, config.checkpoint)
    name = checked_name(config.name or f"inpaint-{found.state['model']['name']}")
    where = errors.display_uri(uri_for(config.run))
    return f"would export {store.display(found.url)} and register it as {name} at {where}"


def register(
    run: str,
    checkpoint: str = "best",
    name: str | None = None,
    weights: str = "auto",
    root: str | None = None,
) -> dict[str, Any]:
    """Exports a checkpoint's generator and registers it; the same weights are registered once.

    Returns model_uri, name, version, sha256 (of the archive), model_id, images_seen, link.
    Raises ValueError for a run without that checkpoint, a bad name, a model of another network.
    """
    from pipeline.runs.checkpoints import load_generator, pin

    generator, info = load_generator(run, checkpoint, weights)
    network = info["model"]["name"]
    name = checked_name(name or f"inpaint-{network}")
    recorded = read_run_json(info["run"])
    uri = uri_for(info["run"], root)
    client = connect(uri)
    with errors.explained(uri):
        _own_model(client, name, network)
        digest = info["files"][WEIGHTS[info["weights"]]]["sha256"]
        found = _registered(client, name, digest)
        if found is None:
            with tempfile.TemporaryDirectory() as folder:
                facts = _facts(info, recorded, name, network, digest)
                package.write(generator, facts, _measured(info["run"], digest), Path(folder))
                found = _publish(client, uri, recorded, facts, Path(folder))
    pin(info["run"], info["images_seen"])
    return {
        "model_uri": f"models:/{name}/{found.version}",
        "name": name,
        "version": int(found.version),
        "sha256": found.tags["lacuna.sha256"],
        "model_id": found.tags["lacuna.model_id"],
        "images_seen": info["images_seen"],
        "link": model_link(uri, name, found.version),
    }


def run_name(run: str) -> str:
    """How a version names the run it came from: an absolute path, or a URL without secrets."""
    return os.path.abspath(store.local(run)) if store.is_local(run) else store.display(run)


# --- register, step by step -----------------------------------------------------------------------


def _own_model(client: Any, name: str, network: str) -> None:
    """Creates the registered model, or checks that the one there holds the same network."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, tags={"lacuna.network": network})
        return
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    holds = client.get_registered_model(name).tags.get("lacuna.network")
    if holds not in (network, "any"):
        raise ValueError(
            f"registered model {name} holds {holds or 'something that is not ours'}, the run is "
            f"{network}: leave name= out, or give a new one"
        )


def _registered(client: Any, name: str, digest: str) -> Any | None:
    for version in versions(client, name):
        if version.tags.get("lacuna.weights_sha256") == digest:
            return version
    return None


def _facts(
    info: dict[str, Any], recorded: dict[str, Any], name: str, network: str, digest: str
) -> dict[str, str]:
    """What is known of a version; its `lacuna.*` tags, and the card's text."""
    facts = {
        "name": name,
        "network": network,
        "run": run_name(info["run"]),
        "run_id": recorded.get("mlflow_run_id"),
        "images_seen": info["images_seen"],
        "weights": info["weights"],
        "weights_sha256": digest,
        "dataset": info.get("dataset"),
        "commit": recorded.get("commit"),
        "registered_by": user(),
    }
    return {k: str(v) for k, v in facts.items() if v is not None}


def _measured(run: str, digest: str) -> dict[str, Any] | None:
    """The run's largest evaluation of these weights, for the card; None before the first."""
    found = results.of_weights(run, digest)
    if not found:
        return None
    table, facts = max(found, key=lambda each: each[0].num_rows)
    return {**facts, **results.summarize(table, facts["ssim"])}


def _publish(
    client: Any, uri: str, recorded: dict[str, Any], facts: dict[str, str], folder: Path
) -> Any:
    """The LoggedModel and the registered version; returns the version."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    run_id = recorded.get("mlflow_run_id")
    experiment = recorded.get("mlflow_experiment_id") or experiment_id(
        client, uri, f"{user()}/registered"
    )
    logged = client.create_logged_model(
        experiment,
        name=f"{facts['network']}-{facts['images_seen']}",
        source_run_id=run_id,
        model_type="inpainting",
        params={"images_seen": facts["images_seen"], "weights": facts["weights"]},
    )
    made = Model.load(str(folder / "model"))
    made.model_id, made.run_id = logged.model_id, run_id
    made.save(str(folder / "model" / "MLmodel"))
    client.log_model_artifacts(logged.model_id, str(folder / "model"))
    client.finalize_logged_model(logged.model_id, "READY")
    if run_id:
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, int(facts["images_seen"]))])
    tags = {**facts, "model_id": logged.model_id, "tree_sha256": tree_digest(folder / "model")}
    return client.create_model_version(
        facts["name"],
        source=f"models:/{logged.model_id}",
        run_id=run_id,
        tags={f"lacuna.{key}": value for key, value in tags.items()},
        description=(folder / "README.md").read_text(),
        model_id=logged.model_id,
    )
