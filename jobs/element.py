"""Run a command with the arguments of this pod's element: `python -m jobs.element JSON COMMAND…`.

JSON lists the arguments of each element; JOB_COMPLETION_INDEX is this pod's index. The command
replaces this process, so that signals reach it.
"""

import json
import os
import sys


def chosen(argv: list[str], index: int) -> list[str]:
    """Return the command line of element `index`."""
    elements = json.loads(argv[0])
    if not 0 <= index < len(elements):
        raise SystemExit(os.EX_CONFIG)
    return [*argv[1:], *elements[index]]


if __name__ == "__main__":
    command = chosen(sys.argv[1:], int(os.environ["JOB_COMPLETION_INDEX"]))
    os.execvp(command[0], command)
