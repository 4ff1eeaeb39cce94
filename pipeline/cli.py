"""`python -m pipeline COMMAND [key=value ...]`: read arguments, run the command, print its result.

Exit status: 0 done, 1 failed or a verification found differences, 2 the user's input (78 inside a
job, so that it is not retried), 75 stopped on request with everything saved.
"""

from __future__ import annotations

import argparse
import errno
import importlib.util
import json
import os
import platform
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import Field, asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from omegaconf import MISSING

import pipeline
from pipeline.common.console import say
from pipeline.common.environment import CHECKOUT, commit, ensure_account
from pipeline.common.errors import ConfigError, one_line
from pipeline.config.commands import COMMANDS, Command, positional
from pipeline.config.following import following
from pipeline.config.methods import CHOICES
from pipeline.config.resolve import entries, near, plain
from pipeline.launch.output import record_error, with_job_log
from pipeline.launch.topology import check_worker
from pipeline.launch.workers import LASTING
from shards.objects import Unavailable

OPTIONS = {
    "--json": "print the result as one JSON object on the last line of stdout",
    "--dry-run": "show what would be done",
    "--help": "show this help and exit (-h)",
}
SHORT = {
    ("submit", "--check"): "check=true",
    ("logs", "-f"): "follow=true",
    ("sync", "--watch"): "watch=true",
}
EPILOG = "Every argument is key=value; `COMMAND --help` lists the keys. See also README.md."
# What a disk refuses until a person acts.
LASTING_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM,
                  errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)  # fmt: skip
LONGEST = 1000  # characters of an error message
# Errors of a collective whose cause is another rank's, which has the traceback.
LEFT = re.compile("(closed|reset) by peer|remote process exited")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    known, args = _parse(argv)
    spec = COMMANDS[known.command]
    if known.help:
        _write(_command_help(known.command, spec))
        return 0
    return with_job_log(lambda: _guarded(known, args, spec))


def _guarded(known: argparse.Namespace, args: list[str], spec: Command) -> int:
    """Run the command; every error is one line, with a traceback only where it helps."""
    try:
        ensure_account()
        _check_layout()
        return _run(known, args, spec)
    except ValueError as error:
        _report(f"pipeline {known.command}: {one_line(error)}")
        # In a job or a worker an outage may be retried, and a wrong configuration not.
        if not {"PET_NNODES", "RANK"} & os.environ.keys():
            return 2
        return _failed(error) if isinstance(error, Unavailable) else os.EX_CONFIG
    except Exception as error:
        plain = isinstance(error, (OSError, MemoryError, FloatingPointError))
        if not plain and not LEFT.search(str(error)):
            traceback.print_exc()
        alone = "RANK" in os.environ and not isinstance(error, FloatingPointError)
        place = f"rank {os.environ['RANK']} on {platform.node()}: " if alone else ""
        _report(f"pipeline {known.command}: {place}{one_line(error)}")
        return _failed(error)
    except KeyboardInterrupt:
        say(f"pipeline {known.command}: interrupted")
        return 130


def _failed(error: Exception) -> int:
    """Return a failure's exit status: a worker's says whether the next would fail in the same way.

    Training is deterministic: what has diverged would diverge again.
    """
    number = getattr(error.__cause__ or error, "errno", None)
    lasting = isinstance(error, FloatingPointError) or number in LASTING_ERRORS
    return LASTING if lasting and "RANK" in os.environ else 1


def _report(line: str) -> None:
    if len(line) > LONGEST:  # such as a compiler's whole output, which the log holds
        line = f"{line[:LONGEST]} …"
    if not record_error(line):
        say(line)


def _run(known: argparse.Namespace, args: list[str], spec: Command) -> int:
    from pipeline.config.compose import compose

    args = [SHORT.get((known.command, arg), arg) for arg in args]
    for arg in args:
        if arg.startswith("-"):
            options = ", ".join(_options(known.command))
            raise ConfigError(f"unknown option {arg} (allowed: {options})")
    if spec.raw:
        module = import_module(spec.module)
        return _print(module.main(args, known.dry_run), known.json, module)
    args = positional(spec, sorted(args, key=lambda arg: arg in SHORT.values()))
    resolved = compose(known.command, args)
    try:
        spec.check(resolved.config)
    except ValueError as error:
        if record := getattr(import_module(spec.module), "refused", None):
            record(resolved.config, one_line(error))
        raise
    if spec.workers:
        check_worker(os.environ)
    module = import_module(spec.module)
    if known.dry_run:
        if not known.json:
            _write(f"{resolved.described()}\n")
        would = module.dry_run(resolved.config) if hasattr(module, "dry_run") else "changes nothing"
        plan = {"config": asdict(resolved.config), "origins": resolved.origins, "would": would}
        return _print(plan if known.json else would, known.json, None)
    result = module.main(resolved.config)
    if spec.workers and "RANK" in os.environ:
        return 0  # the launcher prints the result, once for all workers
    status = _print(result, known.json, module)
    if not known.json and (line := following(known.command, resolved.config, result or {})):
        _write(line)
    return status


def _print(result: Any, as_json: bool, module: Any) -> int:
    if result is None:
        return 0
    if as_json:
        _write(json.dumps(result, sort_keys=True, allow_nan=False))
    elif isinstance(result, str):
        _write(result)
    elif hasattr(module, "show"):
        _write(module.show(result))
    else:
        _write("\n".join(f"{name}: {value}" for name, value in result.items()))
    return 1 if isinstance(result, dict) and result.get("differences") else 0


def _write(text: str) -> None:
    """Print to stdout. A reader that left, or a terminal that was closed, is not an error."""
    try:
        print(text, flush=True)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _check_layout() -> None:
    """Check that the code is the job's snapshot, and that nothing shadows our packages."""
    code = os.environ.get("LACUNA_CODE")
    if code and Path(code).resolve() != CHECKOUT:
        raise ValueError(
            f"package 'pipeline' is imported from {CHECKOUT} instead of the job's snapshot, "
            f"LACUNA_CODE={code}: keep PYTHONPATH as the job's script sets it, and give "
            "cluster.python without -E or -I"
        )
    if not (CHECKOUT / "conf").is_dir():
        raise ValueError(
            f"{CHECKOUT} holds no conf/: run from a checkout, installed by `make install`; an "
            "installation of the packages alone lacks the recipes"
        )
    for package in ("models", "shards", "jobs"):
        module = importlib.util.find_spec(package)
        place = Path(module.origin).resolve().parent if module and module.origin else None
        if place != CHECKOUT / package:
            raise ValueError(
                f"package {package!r} is imported from {place or 'nowhere'} instead of "
                f"{CHECKOUT / package}: run from the checkout, or unset PYTHONPATH"
            )


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Separate options from the command's arguments; SystemExit after help or without a command."""
    width = max(map(len, COMMANDS)) + 2
    lines = "\n".join(f"  {name:<{width}}{spec.help}" for name, spec in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m pipeline",
        usage="python -m pipeline COMMAND [key=value ...] [--json] [--dry-run] [--help]",
        description=f"Train image-inpainting generators, from shards to a registered model.\n\n"
        f"commands:\n{lines}",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("command", nargs="?", metavar="COMMAND", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help=OPTIONS["--json"])
    parser.add_argument("--dry-run", action="store_true", help=OPTIONS["--dry-run"])
    parser.add_argument("--help", "-h", action="store_true", help="show this help, or a command's")
    parser.add_argument("--version", action="store_true", help="show the version and its commit")
    known, args = parser.parse_known_args(argv)
    if known.version:
        _write(f"lacuna {pipeline.__version__}, commit {commit() or 'unknown'}")
        raise SystemExit(0)
    if known.command is None:
        if known.help:
            _write(parser.format_help().rstrip())
            raise SystemExit(0)
        parser.print_help(sys.stderr)
        raise SystemExit(2)
    if known.command not in COMMANDS:
        hint = near(known.command, list(COMMANDS))
        print(f"pipeline: unknown command {known.command!r}{hint}", file=sys.stderr)
        raise SystemExit(2)
    return known, args


def _command_help(name: str, spec: Command) -> str:
    position = f" [{'|'.join(spec.actions)}]" if spec.actions else ""
    position += f" [{spec.positional.upper()}]" if spec.positional else ""
    options = _options(name)
    usage = " ".join(f"[{option}]" for option in options)
    lines = [f"python -m pipeline {name}{position} [key=value ...] {usage}", "", spec.help]
    lines += ["", "options:", *(f"  {option:<28} {text}" for option, text in options.items())]
    if spec.groups:
        from pipeline.config import compose

        lines += ["", "groups (group=option):"]
        for group, default in spec.groups.items():
            lines.append(f"  {group:<12}{', '.join(compose.options(group))}  [{default or 'none'}]")
    start = "load a fully resolved config.yaml, ignoring groups and site defaults [null]"
    lines += ["", "keys:", f"  {'config':<28} {start}", *_keys(spec.schema)]
    return "\n".join(lines)


def _options(command: str) -> dict[str, str]:
    """Return the options of a command and their meaning."""
    short = {option: arg for (name, option), arg in SHORT.items() if name == command}
    return {**{option: f"the same as {arg}" for option, arg in short.items()}, **OPTIONS}


def _keys(kind: type) -> Iterator[str]:
    """Yield one line of help for each key of a schema."""
    everything = list(entries(kind()))
    listed = {name for name, _, _ in everything}
    for entry in everything:
        yield _key(*entry)
        label, (section, _, _) = entry[0].removesuffix(".name"), entry[0].partition(".")
        takers: dict[str, list[str]] = {}  # a key that several have in the same way is listed once
        for name, option in CHOICES.get(entry[0], {}).items():
            for each in entries(option(), f"{section}."):
                if each[0] not in listed:
                    takers.setdefault(_key(*each), []).append(name)
        yield from (f"{line} ({label}={', '.join(names)})" for line, names in takers.items())


def _key(name: str, default: Any, field: Field[Any]) -> str:
    shown = "required" if default == MISSING else plain(default)
    choices = field.metadata.get("choices") or ()
    allowed = f" ({'|'.join(map(str, choices))})" if choices else ""
    return f"  {name:<28} {field.metadata.get('help', '')}{allowed} [{shown}]"
