"""Effects that must survive a crash go through `shards.files` and `shards.objects`, and only there.

Whatever else changes a file is named here with its reason.
"""

import ast

import pytest

from tests.test_layering import shown, sources, tree

EFFECTS = {"replace", "rename", "link", "symlink", "fsync", "remove", "unlink", "truncate",
           "ftruncate", "removedirs"}  # fmt: skip
OF_PATHS = {"write_text", "write_bytes", "rename", "unlink", "symlink_to", "hardlink_to"}
OF_SHUTIL = {"move", "copy", "copy2", "copyfile", "copytree", "rmtree"}
DURABLE = {"shards/files.py", "shards/objects.py"}
SCRATCH = "a temporary folder, gone at the end"
NOT_JOBS = "jobs/ imports no storage: written anew by each submission"
ALLOWED = {
    "shards/file_lock.py locked": "a lock: its bytes do not matter",
    "pipeline/common/locks.py hold": "a lock: its bytes do not matter",
    "jobs/local.py submit": NOT_JOBS,
    "jobs/slurm.py submit": NOT_JOBS,
    "jobs/slurm.py keep_notes": "a state that the job's own script replaces",
    "jobs/snapshot.py unpack": "the code of a commit, renamed into place",
    "jobs/git.py temporary_repository": SCRATCH,
    "pipeline/cli.py _write": "the null device",
    "pipeline/launch/output.py record_error": "Kubernetes' own file, and a scratch file",
    "pipeline/launch/output.py _publish": SCRATCH,
    "pipeline/launch/workers.py run_workers": SCRATCH,
    "pipeline/evaluation/verify.py verify": SCRATCH,
    "pipeline/registry/register.py _add_sheet": SCRATCH,
    "pipeline/registry/package.py write": SCRATCH,
    "pipeline/registry/package.py write_card": SCRATCH,
}


def effects(path):
    """(function, line) of each statement of a file that changes a file on a disk."""
    for outer in ast.walk(tree(path)):
        if isinstance(outer, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for node in ast.walk(outer):
                if isinstance(node, ast.Call) and changes(node):
                    yield outer.name, node.lineno


def changes(call):
    function, words = call.func, [ast.unparse(a) for a in call.args]
    if isinstance(function, ast.Name):
        return function.id == "open" and mode(call, 1)
    if not isinstance(function, ast.Attribute):
        return False
    name, owner = function.attr, ast.unparse(function.value)
    if owner == "os":
        return (
            name in EFFECTS
            or name == "open"
            and any("O_WRONLY" in w or "O_RDWR" in w for w in words)
        )
    if owner == "shutil":
        return name in OF_SHUTIL
    if owner in ("store", "files"):
        return False
    return (
        name in OF_PATHS
        or name == "open"
        and mode(call, 0)
        or name == "replace"
        and len(words) == 1
        and not call.keywords
    )


def mode(call, place):
    """Whether a file is opened for writing."""
    given = [k.value for k in call.keywords if k.arg == "mode"] or call.args[place : place + 1]
    text = given[0].value if given and isinstance(given[0], ast.Constant) else "r"
    return isinstance(text, str) and bool(set("wax+") & set(text)) and len(text) <= 3


def found():
    for path in sources("models", "shards", "jobs", "pipeline"):
        name = shown(path)
        if name not in DURABLE and not name.startswith(("pipeline/bench/", "jobs/deploy/")):
            yield from ((f"{name} {function}", line) for function, line in effects(path))


def test_no_other_file_changes_files_on_a_disk():
    wrong = [f"{where} line {line}" for where, line in found() if where not in ALLOWED]
    assert not wrong, "\n".join(wrong)
    assert set(ALLOWED) == {where for where, _ in found()}, "exceptions that are none any more"


@pytest.mark.parametrize("line", [
    "os.replace(a, b)", "open(path, 'wb')", "path.open('a')", "path.write_text(x)", "os.fsync(f)",
    "path.unlink()", "shutil.rmtree(a)", "os.open(p, os.O_WRONLY)", "whole.replace(path)",
])  # fmt: skip
def test_what_changes_a_file_is_recognized(line):
    assert changes(ast.parse(line).body[0].value)


@pytest.mark.parametrize("line", ["open(path)", "text.replace('a', 'b')", "replace(r, number=1)"])
def test_what_changes_no_file_is_not(line):
    assert not changes(ast.parse(line).body[0].value)
