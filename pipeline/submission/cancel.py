"""Cancel a job: `cancel ID` asks it to save and exit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jobs import scheduler
from jobs.spec import SubmitError
from pipeline.common.console import say
from pipeline.config.schema import CancelConfig
from pipeline.runs import job_record
from pipeline.runs.run_json import read_run_json


def main(config: CancelConfig) -> dict[str, Any]:
    """Cancel the job at the scheduler and mark its MLflow runs KILLED."""
    record = job_record.find(config.id, config.root)
    status = record.status()
    if not status.state.live:
        raise SubmitError(f"{record.id} is not running (state: {status.line()})")
    job_record.write(replace(record, cancelled=True))  # first: the stopped job reads it
    try:
        scheduler.cancel(record.number, record.where, record.run)
    except SubmitError:
        job_record.write(record)
        raise
    for run in record.trained:
        _mark(run)
    return {"id": record.id, "number": record.number, "was": status.state.value}


def dry_run(config: CancelConfig) -> str:
    record = job_record.find(config.id, config.root)
    status = record.status()
    if not status.state.live:
        return f"{record.id} is not running (state: {status.line()})"
    return f"would ask {record.id} ({status.line()}) to save and exit"


def _mark(run: str) -> None:
    """Set the status of the run's MLflow run to KILLED."""
    mlflow_run = read_run_json(run).get("mlflow_run_id")
    if not mlflow_run:
        return
    from pipeline.tracking import errors
    from pipeline.tracking.client import connect, uri_for

    uri = uri_for(run)
    try:
        client = connect(uri, make=False)
        with errors.explained(uri):
            client.set_terminated(mlflow_run, "KILLED")
    except errors.ServerError as error:
        say(f"the MLflow run of {run} was not marked KILLED: {error}")


def show(result: dict[str, Any]) -> str:
    return f"asked {result['id']} to save and exit (state before: {result['was']})"
