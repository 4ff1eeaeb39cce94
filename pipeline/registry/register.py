"""`register`: publish a run's generator as a version of a registered model.

A version is a LoggedModel: `pyfunc.py` (models from code) around `inpainter.pt2`, a `torch.export`
archive made on the CPU in fp32. Lacuna itself loads the archive, never code from a registry.
"""

import json
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.common.console import say
from pipeline.common.environment import user
from pipeline.config.schema import RegisterConfig
from pipeline.evaluation import results
from pipeline.inference.sources import own_tags, prefixed
from pipeline.registry import package, reference_pairs
from pipeline.registry.package import tree_digest
from pipeline.runs.folder import saved_config, sheet_name
from pipeline.runs.run_json import place_of, read_run_json
from pipeline.tracking import errors
from pipeline.tracking.client import connect, experiment_id, model_link, recorded_run, uri_for
from pipeline.tracking.model_versions import versions
from shards import store


def dry_run(config: RegisterConfig) -> str:
    from pipeline.runs.checkpoints import find

    checkpoint = find(config.run, config.checkpoint)
    name = config.name or f"inpaint-{checkpoint.state['model']['name']}"
    server = errors.display_uri(uri_for(config.run))
    return f"would export {store.display(checkpoint.url)} and register it as {name} at {server}"


def main(config: RegisterConfig) -> dict[str, Any]:
    """Export a checkpoint's generator and register it, unless the same weights are registered.

    Returns model_uri, name, version, sha256 (of the archive), model_id, images_seen, link, and as
    `next` the evaluation that a promotion needs first.
    Raises ValueError for a missing checkpoint, an invalid name, or a model of another network.
    """
    from pipeline.runs.checkpoints import load_generator, pin

    generator, info = load_generator(config.run, config.checkpoint, config.weights, "run=")
    network = info["model"]["name"]
    name = config.name or f"inpaint-{network}"
    uri = uri_for(info["run"])
    client = connect(uri, run=info["run"])
    with errors.explained(uri):
        recorded = _recorded(client, uri, info["run"])
        ensure_model(client, name, network)
        digest = info["sha256"]
        version = next(iter(versions(client, name, digest)), None)
        if version is None:
            with tempfile.TemporaryDirectory() as folder:
                facts = _facts(info, recorded, name, network, digest)
                package.write(generator, facts, Path(folder))
                _add_sheet(info, Path(folder))
                measured = _measured(info["run"], digest)
                version = _publish(client, uri, recorded, facts, measured, Path(folder))
        tags = own_tags(version)
        todo = reference_pairs.missing_evaluation(client, name, tags)
    pin(info["run"], info["images_seen"])
    return {
        "model_uri": f"models:/{name}/{version.version}",
        "name": name,
        "version": int(version.version),
        "sha256": tags["sha256"],
        "model_id": tags["model_id"],
        "images_seen": info["images_seen"],
        "link": model_link(uri, name, version.version),
        **({"next": todo} if todo else {}),
    }


def create_version(client: Any, name: str, tags: dict[str, str], card: str) -> Any:
    """Create a version from the logged model that its tags name; return it.

    card: its description.
    """
    return client.create_model_version(
        name,
        source=f"models:/{tags['lacuna.model_id']}",
        run_id=tags.get("lacuna.run_id"),
        tags=tags,
        description=card,
        model_id=tags["lacuna.model_id"],
    )


def run_name(run: str) -> str:
    """Return the run as a version's tags name it: an absolute path, or a URL without secrets."""
    return place_of(run) if store.is_local(run) else store.display(run)


def ensure_model(
    client: Any, name: str, network: str, created_for: str | None = None, key: str = "name"
) -> None:
    """Create the registered model, or check that an existing one accepts this network.

    created_for: what a new model accepts, `network` by default; `any` accepts every network. `key`
    is the option that an error tells the user to change.
    """
    from mlflow.exceptions import MlflowException

    try:
        about = "Fills holes in images. The page of each version has its model card."
        tags = {"lacuna.network": created_for or network}
        client.create_registered_model(name, tags, about)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        accepts = client.get_registered_model(name).tags.get("lacuna.network")
        if accepts not in (network, "any"):
            is_for = f"is for {accepts}" if accepts else "was not created by `register`"
            raise ValueError(
                f"registered model {name} {is_for}: choose another {key}= for {network}"
            ) from None


# --- steps of register ----------------------------------------------------------------------------


def _recorded(client: Any, uri: str, run: str) -> dict[str, Any]:
    """Return run.json, with the ids of an MLflow run only if this server has it.

    Nothing was created yet: a server without logged models is refused here.
    """
    client.search_logged_models(["0"], max_results=1)
    recorded = read_run_json(run)
    if not (run_id := recorded.get("mlflow_run_id")):
        return recorded
    try:
        experiment = recorded_run(client, run_id).info.experiment_id
        return {**recorded, "mlflow_experiment_id": experiment}
    except errors.RunDeleted:
        origin = f"{run_id} at {recorded.get('mlflow_uri')}"
        say(f"MLflow run {origin} is not at {errors.display_uri(uri)}: registering without it")
        return {**recorded, "mlflow_run_id": None, "mlflow_experiment_id": None, "tracked": origin}


def _facts(
    info: dict[str, Any], recorded: dict[str, Any], name: str, network: str, digest: str
) -> dict[str, str]:
    """Return the facts about a version, for its `lacuna.*` tags and its model card."""
    config = saved_config(info["run"])
    facts = {
        "name": name,
        "network": network,
        "model": json.dumps(info["model"], sort_keys=True),
        "run": run_name(info["run"]),
        "run_id": recorded.get("mlflow_run_id"),
        "images_seen": info["images_seen"],
        "weights": info["weights"],
        "recipe": config and config.experiment,
        "data": config and f"{config.data.name}, split {config.data.train}",
        "weights_sha256": digest,
        "dataset": info.get("dataset"),
        "license": info.get("imported", {}).get("license"),
        "tracked": recorded.get("tracked"),
        "commit": recorded.get("commit"),
        "registered_by": user(),
    }
    return {k: str(v) for k, v in facts.items() if v is not None}


def _add_sheet(info: dict[str, Any], folder: Path) -> None:
    """Add the contact sheet of the checkpoint's validation, if any, to the model's files."""
    with suppress(FileNotFoundError):
        sheet = store.read(store.join(info["run"], sheet_name(info["images_seen"])))
        (folder / "model" / package.SHEET).write_bytes(sheet)


def _measured(run: str, digest: str) -> dict[str, Any] | None:
    """Return the run's largest evaluation of these weights, for the model card, or None."""
    evaluations = results.of_weights(run, digest)
    if not evaluations:
        return None
    table, facts = max(evaluations, key=lambda each: each[0].num_rows)
    return {**facts, **results.summarize(table, facts)}


def _publish(
    client: Any,
    uri: str,
    recorded: dict[str, Any],
    facts: dict[str, str],
    measured: dict[str, Any] | None,
    folder: Path,
) -> Any:
    """Upload the LoggedModel and create the registered version; return the version.

    measured: the evaluation that the model card shows.
    """
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
    model = Model.load(str(folder / "model"))
    model.model_id, model.run_id = logged.model_id, run_id
    model.save(str(folder / "model" / "MLmodel"))
    card = package.write_card(facts, measured, logged.model_id, folder / "model")
    client.log_model_artifacts(logged.model_id, str(folder / "model"))
    client.finalize_logged_model(logged.model_id, "READY")
    if run_id:
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, int(facts["images_seen"]))])
    facts |= {"model_id": logged.model_id, "tree_sha256": tree_digest(folder / "model")}
    return create_version(client, facts["name"], prefixed(facts), card)
