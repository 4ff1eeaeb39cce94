"""This process as the only worker of a run, which saves the imports of one of its own."""

import contextlib
import gc
import os
import tempfile
from pathlib import Path

import pytest
import torch.distributed as dist
from accelerate.state import AcceleratorState

from pipeline.cli import main
from pipeline.common.console import say
from pipeline.launch.output import ERROR_FILE
from pipeline.launch.topology import place
from pipeline.launch.workers import LASTING, Ended


@contextlib.contextmanager
def alone(**more):
    """Inside the block this process is rank 0 of 1."""
    (worker,) = place({}, 1).workers
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**worker, **more}.items():
            patch.setenv(name, value)
        try:
            yield
        finally:
            if dist.is_initialized():  # an engine that has failed leaves its group
                gc.collect()
                dist.destroy_process_group()
            AcceleratorState._reset_state(reset_partial_state=True)


def worked(command):
    """What `pipeline.launch.workers.supervise` answers for one worker that runs `command`."""
    with tempfile.TemporaryDirectory() as folder:
        error = Path(folder, "error")
        with alone(**{ERROR_FILE: str(error)}):
            try:
                status = main(command[command.index("pipeline") + 1 :])
            except SystemExit as end:
                status = end.code
        line = error.read_text().strip() if error.exists() else None
    if line:
        say(line)
    status = 1 if status == LASTING else status
    return Ended(status, line if status not in (0, os.EX_TEMPFAIL) else None)
