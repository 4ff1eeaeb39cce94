"""`cancel ID`: ask a job to save and leave, for good."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from jobs import scheduler
from jobs.spec import SubmitError
from pipeline.config.schema import CancelConfig
from pipeline.runs import job_record
from pipeline.runs.run_json import read_run_json


def main(config: CancelConfig) -> dict[str, Any]:
    """Cancels it at the scheduler and marks its MLflow run KILLED."""
    record = job_record.find(config.id, config.root)
    found = record.status()
    if not found.state.live:
        raise SubmitError(f"{record.id} does not run any more: it is {found.line()}")
    job_record.write(replace(record, cancelled=True))  # first: what it stops asks for it
    try:
        scheduler.cancel(record.number, record.where, record.run)
    except SubmitError:
        job_record.write(record)
        raise
    for run in record.trained:
        _mark(run)
    return {"id": record.id, "number": record.number, "was": found.state.value}


def dry_run(config: CancelConfig) -> str:
    record = job_record.find(config.id, config.root)
    found = record.status()
    if not found.state.live:
        return f"{record.id} does not run any more: it is {found.line()}"
    return f"would ask {record.id} ({found.line()}) to save and leave"


def _mark(run: str) -> None:
    mlflow_run = read_run_json(run).get("mlflow_run_id")
    if not mlflow_run:
        return
    from pipeline.tracking import errors
    from pipeline.tracking.client import connect, uri_for

    uri = uri_for(run)
    try:
        client = connect(uri)
        with errors.explained(uri):
            client.set_terminated(mlflow_run, "KILLED")
    except errors.ServerError as error:
        print(f"its MLflow run was not marked: {error}", file=sys.stderr)


def show(result: dict[str, Any]) -> str:
    return f"{result['id']} was {result['was']} and is asked to save and leave"
