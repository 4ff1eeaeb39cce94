"""`python -m pipeline`. Exits without the interpreter's teardown: native thread pools (OpenCV's,
Arrow's) race with it, and sometimes aborted a command that had done all its work.
"""

import atexit
import os
import sys
from contextlib import suppress

from pipeline.cli import main

if __name__ == "__main__":
    try:
        status = main()
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else int(left.code is not None)
    atexit._run_exitfuncs()
    with suppress(BrokenPipeError):  # the reader of a pipe has left: not an error
        sys.stdout.flush()
    with suppress(OSError):
        sys.stderr.flush()
    os._exit(status)
