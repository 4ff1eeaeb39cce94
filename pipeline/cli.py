"""`python -m pipeline VERB [key=value ...]`: read words, call the verb, print its result.

Exit status: 0 done, 1 failed, 2 the user's input (78 inside a job, so that it is not retried),
75 stopped on request with everything saved.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from pipeline.common.environment import CHECKOUT
from pipeline.config.commands import COMMANDS, Command, positional
from pipeline.config.groups import MODELS
from pipeline.launch.output import record_error, with_job_log
from shards.objects import Unavailable

OPTIONS = {
    "--json": "the result as one JSON object on the last line of stdout",
    "--dry-run": "say what would be done",
    "--help": "this; -h for short",
}
SHORT = {
    ("submit", "--check"): "check=true",
    ("logs", "-f"): "follow=true",
    ("sync", "--watch"): "watch=true",
}
EPILOG = "Every argument is key=value; `VERB --help` lists the keys. README.md has the path."
LONGEST = 1000  # of a line that says what went wrong
LEFT = re.compile("(closed|reset) by peer|remote process exited")  # another rank has the cause


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    known, words = _parse(argv)
    spec = COMMANDS[known.verb]
    if known.help:
        print(_verb_help(known.verb, spec))
        return 0
    return with_job_log(lambda: _guarded(known, words, spec))


def _guarded(known: argparse.Namespace, words: list[str], spec: Command) -> int:
    try:
        _check_layout()
        return _run(known, words, spec)
    except ValueError as error:
        _complain(f"pipeline {known.verb}: {' '.join(str(error).split())}")
        if not inside_job():
            return 2
        return 1 if isinstance(error, Unavailable) else 78
    except Exception as error:
        enough = isinstance(error, (OSError, MemoryError, FloatingPointError))
        if not enough and not LEFT.search(str(error)):
            traceback.print_exc()
        alone = "RANK" in os.environ and not isinstance(error, FloatingPointError)
        place = f"rank {os.environ['RANK']} on {platform.node()}: " if alone else ""
        told = " ".join(str(error).split()) or type(error).__name__
        _complain(f"pipeline {known.verb}: {place}{told}")
        return 1
    except KeyboardInterrupt:
        print(f"pipeline {known.verb}: interrupted", file=sys.stderr)
        return 130


def _complain(line: str) -> None:
    if len(line) > LONGEST:  # a compiler's whole output, say; the log has it
        line = f"{line[:LONGEST]} …"
    if not record_error(line):
        print(line, file=sys.stderr)


def _run(known: argparse.Namespace, words: list[str], spec: Command) -> int:
    from pipeline.common.errors import ConfigError
    from pipeline.config.compose import compose

    words = [SHORT.get((known.verb, word), word) for word in words]
    for word in words:
        if word.startswith("-"):
            raise ConfigError(f"{word} is no option; they are {', '.join(_options(known.verb))}")
    if spec.raw:
        module = import_module(spec.module)
        return _print(module.main(words, known.dry_run), known.json, module)
    words = positional(spec, sorted(words, key=lambda word: word in SHORT.values()))
    resolved = compose(known.verb, words)
    module = import_module(spec.module)
    if known.dry_run:
        if not known.json:
            print(resolved.described(), end="\n\n", flush=True)
        would = module.dry_run(resolved.config) if hasattr(module, "dry_run") else "changes nothing"
        told = {"config": asdict(resolved.config), "origins": resolved.origins, "would": would}
        return _print(told if known.json else would, known.json, None)
    return _print(spec.main(resolved.config), known.json, module)


def _print(result: Any, as_json: bool, module: Any) -> int:
    if result is None or "RANK" in os.environ:
        return 0
    if as_json:
        print(json.dumps(result, sort_keys=True, allow_nan=False), flush=True)
    elif isinstance(result, str):
        print(result)
    elif hasattr(module, "show"):
        print(module.show(result))
    else:
        for name, value in result.items():
            print(f"{name}: {value}")
    return 0


def inside_job() -> bool:
    """True in a job or a worker: a configuration error must not be retried there, an outage may."""
    return "PET_NNODES" in os.environ or "RANK" in os.environ


def _check_layout() -> None:
    code = os.environ.get("LACUNA_CODE")
    if code and Path(code).resolve() != CHECKOUT:
        raise ValueError(
            f"package 'pipeline' is taken from {CHECKOUT} instead of the job's snapshot, "
            f"LACUNA_CODE={code}: keep PYTHONPATH as the job's script sets it, and give "
            "cluster.python without -E or -I"
        )
    for package in ("models", "shards", "jobs"):
        found = importlib.util.find_spec(package)
        place = Path(found.origin).resolve().parent if found and found.origin else None
        if place != CHECKOUT / package:
            raise ValueError(
                f"package {package!r} is taken from {place or 'nowhere'} instead of "
                f"{CHECKOUT / package}: run from the checkout, or unset PYTHONPATH"
            )


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options and the verb's words; SystemExit after help, or without a verb that there is."""
    width = max(map(len, COMMANDS)) + 2
    table = "\n".join(f"  {name:<{width}}{spec.help}" for name, spec in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m pipeline",
        usage="python -m pipeline VERB [key=value ...] [--json] [--dry-run] [--help]",
        description=f"Train image-inpainting generators, from shards to a registered model.\n\n"
        f"verbs:\n{table}",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("verb", nargs="?", metavar="VERB", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help=OPTIONS["--json"])
    parser.add_argument("--dry-run", action="store_true", help=OPTIONS["--dry-run"])
    parser.add_argument("--help", "-h", action="store_true", help="this, or the keys of a verb")
    known, words = parser.parse_known_args(argv)
    if known.verb is None:
        parser.print_help(sys.stdout if known.help else sys.stderr)
        raise SystemExit(0 if known.help else 2)
    if known.verb not in COMMANDS:
        close = get_close_matches(known.verb, COMMANDS, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        print(f"pipeline: no verb {known.verb!r}{hint} ({', '.join(COMMANDS)})", file=sys.stderr)
        raise SystemExit(2)
    return known, words


def _verb_help(name: str, spec: Command) -> str:
    position = f" [{'|'.join(spec.actions)}]" if spec.actions else ""
    position += f" [{spec.positional.upper()}]" if spec.positional else ""
    options = _options(name)
    usage = " ".join(f"[{option}]" for option in options)
    lines = [f"python -m pipeline {name}{position} [key=value ...] {usage}", "", spec.help]
    lines += ["", "options:", *(f"  {option:<28} {told}" for option, told in options.items())]
    if spec.groups:
        from pipeline.config import compose

        lines += ["", "groups (group=option):"]
        for group, default in spec.groups.items():
            lines.append(f"  {group:<12}{', '.join(compose.options(group))}  [{default or 'none'}]")
    start = f"  {'config':<28} start from this resolved config.yaml, of no group or site [null]"
    lines += ["", "keys:", start, *_keys(spec.schema)]
    return "\n".join(lines)


def _options(verb: str) -> dict[str, str]:
    """What the verb takes beside key=value, and its meaning."""
    short = {option: word for (name, option), word in SHORT.items() if name == verb}
    return {**{option: f"the same as {word}" for option, word in short.items()}, **OPTIONS}


def _keys(kind: type, prefix: str = "") -> list[str]:
    lines = []
    for f in fields(kind):
        default = f.default_factory() if callable(f.default_factory) else f.default
        if is_dataclass(default):
            lines += _keys(type(default), f"{prefix}{f.name}.")
            for name, model in MODELS.items() if f.name == "model" else ():
                own = _keys(model, "model.")[1:]  # all have the name
                lines += [f"{line} (model={name})" for line in own]
        else:
            shown = "null" if default is None else "required" if default == "???" else default
            choices = f.metadata.get("choices") or ()
            allowed = f" ({'|'.join(map(str, choices))})" if choices else ""
            lines.append(f"  {prefix + f.name:<28} {f.metadata.get('help', '')}{allowed} [{shown}]")
    return lines
