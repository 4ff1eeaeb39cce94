"""`runs`: which there are, what they reached, what they hold on disk; closing and pruning them."""

import difflib
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.config.schema import RunsConfig
from pipeline.runs.folder import folders
from pipeline.runs.run_json import read_run_json
from pipeline.tracking import errors
from pipeline.tracking.client import connect, run_link, tracking_uri, ui_command
from pipeline.tracking.close import close, dead, silence
from pipeline.tracking.delivery import lower_is_better
from shards import store
from shards.upkeep import seconds

SILENT = 900.0  # seconds without an event after which a running run is called silent


def main(config: RunsConfig) -> dict[str, Any]:
    if config.action == "du":
        return {"runs": usage(config.root)}
    if config.action == "prune":
        return prune(config)
    uri = tracking_uri(config.root)
    client = connect(uri, make=False)
    with errors.explained(uri):
        if config.action == "close":
            return {"closed": close(client, config)}
        return {"uri": errors.display_uri(uri), "runs": listed(client, uri, config)}


def dry_run(config: RunsConfig) -> str:
    if config.action == "prune":
        doomed = prune(replace(config, delete=False))["would_delete"]
        would = "delete" if config.delete else "list, and with delete=true delete,"
        return f"would {would} {len(doomed)} checkpoints: " + " ".join(
            d["checkpoint"] for d in doomed
        )
    if config.action != "close":
        return "changes nothing"
    uri = tracking_uri(config.root)
    client = connect(uri, make=False)
    with errors.explained(uri):
        found = [f"{each.run.info.run_name} ({each.reason})" for each in dead(client, config)]
    return f"would close {len(found)} runs: {', '.join(found)}"


def listed(client: Any, uri: str, config: RunsConfig) -> list[dict[str, Any]]:
    """The newest runs that match `filter`, or the best by the metric `best`."""
    experiments = {e.experiment_id: e.name for e in client.search_experiments(max_results=1000)}
    order = ["attributes.start_time DESC"]
    text = config.filter or ""
    if config.best:
        _logged(client, list(experiments), config.best)
        direction = "ASC" if lower_is_better(config.best) else "DESC"
        order = [f"metrics.`{config.best}` {direction}", *order]
        text = " and ".join(filter(None, [text, f"metrics.`{config.best}` > -1e300"]))
    from mlflow.exceptions import MlflowException

    try:
        found = client.search_runs(
            list(experiments), text, max_results=config.limit, order_by=order
        )
    except MlflowException as error:
        if not config.filter or error.error_code != "INVALID_PARAMETER_VALUE":
            raise
        raise ValueError(
            f"filter={config.filter} is not MLflow's language ({str(error).split(': ', 1)[-1]}): "
            "write for example filter=\"metrics.`val/psnr` > 24 and params.batch = '16'\""
        ) from None
    return [_row(run, experiments, uri, config.best) for run in found]


def usage(root: str) -> list[dict[str, Any]]:
    """Megabytes of each run below `root`, by what they are, largest first."""
    rows = []
    for run in folders(root):
        row: dict[str, Any] = {"run": str(run)}
        for part in ("checkpoints", "samples", "spool", "evaluation", "logs"):
            row[f"{part}_mb"] = round(_bytes(run / part) / 1e6, 1)
        rows.append({**row, "total_mb": round(_bytes(run) / 1e6, 1)})
    return sorted(rows, key=lambda row: -row["total_mb"])


def prune(config: RunsConfig) -> dict[str, Any]:
    """Removes checkpoints of runs that are older than `older_than`, except `keep`.

    Never one that an evaluation or the registry names, never of a run that still sends or whose
    checkpoints that stay cannot be read back whole. Without `delete=true` only says which.
    """
    from pipeline.runs import checkpoints

    age = seconds(config.older_than or "30d")
    keep = {word.strip() for word in config.keep.split(",") if word.strip()}
    if not keep <= {"best", "last"} or not keep:
        raise ValueError(f"keep={config.keep} is not allowed: best, last or best,last")
    doomed, refused = [], []
    for run in folders(config.root):
        every = checkpoints.list_checkpoints(str(run))
        if not every or time.time() - _newest(run / "checkpoints") < age:
            continue
        spared = {checkpoints.find(str(run), which).images_seen for which in keep}
        pinned = set(read_run_json(str(run)).get("pinned", []))
        kept = [each for each in every if each.images_seen in spared]
        torn = [each for each in kept if len(every) > len(kept) and not checkpoints.is_whole(each)]
        for each in every:
            if each.images_seen in spared:
                continue
            row = {"checkpoint": each.url, "mb": round(_bytes(store.local(each.url)) / 1e6, 1)}
            if each.images_seen in pinned:
                refused.append(row | {"reason": "an evaluation or the registry names it"})
                continue
            if torn:
                reason = f"{torn[0].name}, which would stay, is torn or corrupted"
                refused.append(row | {"reason": reason})
                continue
            doomed.append(row)
            if config.delete:
                checkpoints.remove(each.url)
    return {"deleted" if config.delete else "would_delete": doomed, "refused": refused}


# --- step by step ---------------------------------------------------------------------------------


def _row(run: Any, experiments: dict[str, str], uri: str, best: str | None) -> dict[str, Any]:
    info, metrics, tags = run.info, run.data.metrics, run.data.tags
    state = info.status.lower()
    if info.status == "SCHEDULED" and tags.get("job.state") == "requeued":
        state = "requeued"
    elif info.status == "RUNNING" and silence(run) > SILENT:
        state = f"silent {silence(run) / 3600:.1f} h"
    row = {
        "name": info.run_name,
        "experiment": experiments[info.experiment_id],
        "state": state,
        "images_seen": int(float(tags.get("lacuna.images_seen", 0))),
        "psnr": metrics.get("best/psnr"),
        "age_h": round((time.time() - info.start_time / 1000) / 3600, 1),
        "run_id": info.run_id,
        "link": run_link(uri, info.experiment_id, info.run_id),
    }
    return {**row, best: metrics[best]} if best else row


def _logged(client: Any, experiments: list[str], metric: str) -> None:
    """ValueError, with the nearest names, where no run has logged the metric."""
    if client.search_runs(experiments, f"metrics.`{metric}` > -1e300", max_results=1):
        return
    known: set[str] = set()
    for run in client.search_runs(experiments, max_results=200):
        known |= set(run.data.metrics)
    near = difflib.get_close_matches(metric, sorted(known), 3, 0.4)
    hint = f"did you mean {', '.join(near)}?" if near else "`runs` shows what there is"
    where = errors.display_uri(client.tracking_uri)
    raise ValueError(f"no run at {where} has logged the metric {metric!r}; {hint}")


def _newest(folder: Path) -> float:
    return max((path.stat().st_mtime for path in folder.rglob("*")), default=time.time())


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def show(result: dict[str, Any]) -> str:
    if "closed" in result:
        ends = [f"{each['name']}  {each['status']}  {each['reason']}" for each in result["closed"]]
        return "\n".join(ends) or "no dead runs"
    if "refused" in result:
        kind = "deleted" if "deleted" in result else "would_delete"
        lines = [f"{row['checkpoint']}  {row['mb']} MB" for row in result[kind]]
        total = sum(row["mb"] for row in result[kind])
        lines.append(f"{kind.replace('_', ' ')} {len(result[kind])} checkpoints, {total:.1f} MB")
        lines += [f"kept {row['checkpoint']}: {row['reason']}" for row in result["refused"]]
        if kind == "would_delete" and result[kind]:
            lines.append("delete=true does it")
        return "\n".join(lines)
    rows = result["runs"]
    if not rows:
        return "no runs"
    last = [c for c in ("total_mb", "link") if c in rows[0]]  # the link ends with the run's id
    columns = [c for c in rows[0] if c not in (*last, "run_id")] + last
    table = [columns, *([_cell(row[c]) for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths)).rstrip() for line in table]
    if result.get("uri", "").startswith("sqlite"):
        lines.append(f"to follow the links: {ui_command(result['uri'])}")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return "-" if value is None else str(value)
