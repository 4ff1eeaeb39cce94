"""`runs`: list runs, show their disk usage, close dead ones, prune checkpoints."""

import difflib
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.common.console import table
from pipeline.config.schema import RunsConfig
from pipeline.config.values import checkpoints_to_keep
from pipeline.runs.folder import folders
from pipeline.runs.run_json import read_run_json
from pipeline.tracking import errors
from pipeline.tracking.client import connect, run_link, search, tracking_uri, ui_command
from pipeline.tracking.close import close, dead, silence
from shards import store
from shards.upkeep import parse_age

SILENT = 900.0  # seconds without an event after which a running run is shown as silent


def main(config: RunsConfig) -> dict[str, Any]:
    """Do `config.action`: list, du, prune or close."""
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
        rows = prune(replace(config, delete=False))["would_delete"]
        would = "delete" if config.delete else "list, and with delete=true delete,"
        return f"would {would} {len(rows)} checkpoints: {' '.join(r['checkpoint'] for r in rows)}"
    if config.action != "close":
        return "changes nothing"
    uri = tracking_uri(config.root)
    client = connect(uri, make=False)
    with errors.explained(uri):
        over = [f"{run.info.run_name} ({reason})" for run, _, reason in dead(client, config)]
    return f"would close {len(over)} runs: {', '.join(over)}"


def listed(client: Any, uri: str, config: RunsConfig) -> list[dict[str, Any]]:
    """Return the newest runs that match `filter`, or the best by the metric `best`."""
    experiments = {e.experiment_id: e.name for e in search(client.search_experiments)}
    order = ["attributes.start_time DESC"]
    text = config.filter or ""
    if config.best:
        from pipeline.evaluation.metrics import direction

        _check_logged(client, list(experiments), config.best)
        sign = "ASC" if direction(config.best) < 0 else "DESC"
        order = [f"metrics.`{config.best}` {sign}", *order]
        text = " and ".join(filter(None, [text, f"metrics.`{config.best}` > -1e300"]))
    try:
        runs = client.search_runs(list(experiments), text, max_results=config.limit, order_by=order)
    except Exception as error:  # MLflow's: only `tracking` imports its classes
        code = getattr(error, "error_code", None)
        if not config.filter or code != "INVALID_PARAMETER_VALUE":
            raise
        raise ValueError(
            f"filter={config.filter} is not a valid MLflow filter "
            f"({str(error).split(': ', 1)[-1]}): expected, for example, "
            "filter=\"metrics.`val/psnr` > 24 and params.batch = '16'\""
        ) from None
    return [_row(run, experiments, uri, config.best) for run in runs]


def usage(root: str) -> list[dict[str, Any]]:
    """Return the megabytes of each run below `root` by kind of file, largest run first."""
    parts = ("checkpoints", "samples", "spool", "evaluation", "logs")
    rows: list[dict[str, Any]] = []
    for run in folders(root):
        sizes = {f"{part}_mb": round(_bytes(run / part) / 1e6, 1) for part in parts}
        rows.append({"run": str(run), **sizes, "total_mb": round(_bytes(run) / 1e6, 1)})
    return sorted(rows, key=lambda row: -row["total_mb"])


def prune(config: RunsConfig) -> dict[str, Any]:
    """Delete the checkpoints of runs older than `older_than`, except `keep`.

    Checkpoints that an evaluation or the registry uses are kept, and all checkpoints of a run
    where one to be kept is corrupt. Without `delete=true` they are only listed.
    """
    from pipeline.runs import checkpoints

    age, keep = parse_age(config.older_than or "30d"), checkpoints_to_keep(config.keep)
    deleted: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    for run in folders(config.root):
        every = checkpoints.list_checkpoints(str(run))
        if not every or time.time() - _newest(run / "checkpoints") < age:
            continue
        kept_images = {checkpoints.find(str(run), which).images_seen for which in keep}
        used = set(read_run_json(str(run)).get("pinned", []))
        kept = [each for each in every if each.images_seen in kept_images]
        others = [each for each in every if each.images_seen not in kept_images]
        corrupt = [each.name for each in kept if others and not checkpoints.is_whole(each)]
        for each in others:
            row = {"checkpoint": each.url, "mb": round(_bytes(store.local(each.url)) / 1e6, 1)}
            if each.images_seen in used:
                row["reason"] = "an evaluation or the registry uses it"
            elif corrupt:
                row["reason"] = f"{corrupt[0]}, which would be kept, is corrupt"
            elif config.delete:
                checkpoints.remove(each.url)
            (refused if "reason" in row else deleted).append(row)
    return {"deleted" if config.delete else "would_delete": deleted, "refused": refused}


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


def _check_logged(client: Any, experiments: list[str], metric: str) -> None:
    """Raise ValueError with similar names if no run has logged the metric."""
    if client.search_runs(experiments, f"metrics.`{metric}` > -1e300", max_results=1):
        return
    known: set[str] = set()
    for run in client.search_runs(experiments, max_results=200):
        known |= set(run.data.metrics)
    near = difflib.get_close_matches(metric, sorted(known), 3, 0.4)
    hint = f"did you mean {', '.join(near)}?" if near else "`runs` lists the runs"
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
            lines.append("to delete them: delete=true")
        return "\n".join(lines)
    rows = result["runs"]
    if not rows:
        return "no runs"
    last = [c for c in ("total_mb", "link") if c in rows[0]]  # the link contains the run's id
    columns = [c for c in rows[0] if c not in (*last, "run_id")] + last
    lines = table([columns, *([_cell(row[c]) for c in columns] for row in rows)])
    if result.get("uri", "").startswith("sqlite"):
        lines.append(f"to follow the links: {ui_command(result['uri'])}")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return "-" if value is None else str(value)
