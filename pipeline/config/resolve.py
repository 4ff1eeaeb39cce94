"""From layers of configuration to typed, checked values with their origins."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import Field, dataclass, fields, is_dataclass
from difflib import get_close_matches
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.common.errors import ConfigError
from pipeline.common.secrets import refuse_secret
from pipeline.config.habits import instead
from pipeline.config.methods import CHOICES, method_of
from shards.store import expanded

SHELL = ("cluster.setup",)  # lines in which the node's shell expands `~`
EXAMPLES = {dict: ", written {name: 'a value'}", list: ", written ['one', 'another']"}


@dataclass(frozen=True)
class Resolved:
    """A command's configuration, and for each dotted key the place that set it."""

    config: Any
    origins: dict[str, str]

    def yaml(self) -> str:
        return to_yaml(self.config)

    def described(self) -> str:
        """Return `key: value  # origin`, one line each, as --dry-run prints it."""
        lines = [
            (f"{k}: {plain(v)}", self.origins.get(k, "default")) for k, v in leaves(self.config)
        ]
        width = min(60, max(len(text) for text, _ in lines))
        return "\n".join(f"{text:<{width}}  # {origin}" for text, origin in lines)


def merge(
    command: str, layers: list[tuple[str, Any, str]], schemas: Mapping[str, type]
) -> Resolved:
    """Override the schema's defaults by `(key, value, origin)`, the last one winning, and check.

    schemas: of all commands, so that a key of another one is named as such.
    """
    schema = schemas[command]
    base = OmegaConf.structured(schema)
    allowed = known_keys(schema)
    # mask=X is mask.file=X.
    full = {k.removesuffix(".file"): k for k in allowed if k.endswith(".file")}
    given: dict[str, tuple[Any, str]] = {}
    for name, value, origin in layers:
        if name.startswith("cluster.commands."):  # one entry, the others stay
            path = name.split(".")[2:]
            name, before = "cluster.commands", given.get("cluster.commands", ({}, ""))[0]
            value = _with_entry(before, path, value)
        given[full.get(name, name)] = (value, origin)
    if "objective.method" in allowed and "objective.method" not in given:
        given["objective.method"] = method_of({k: v for k, (v, _) in given.items()}), ""
    for chooser, kinds in CHOICES.items():
        if chooser in allowed and chooser in given:
            allowed = _choose(base, chooser, kinds, given, allowed)
    for name, (value, origin) in given.items():
        if name not in allowed:
            hint = instead(name, value, {k: v for k, (v, _) in given.items()}, allowed)
            hint = hint or f"{_elsewhere(command, name, schemas)}{near(name, allowed)}"
            raise ConfigError(f"{_from(origin)}unknown key {name}{hint}")
        _set(base, name, value if name in SHELL else _at_home(value), origin)
    with interpolated():
        missing = OmegaConf.missing_keys(base)
        for name in (key for key in allowed if key in missing):
            meaning = next(f.metadata["help"] for n, _, f in entries(schema()) if n == name)
            raise ConfigError(f"{name.removesuffix('.file')}= is missing: {meaning}")
        resolved = OmegaConf.to_object(base)
    origins = {name: origin for name, (_, origin) in given.items()}
    _check(resolved, origins)
    return Resolved(resolved, origins)


def _choose(
    base: DictConfig,
    chooser: str,
    kinds: Mapping[str, type],
    given: dict[str, tuple[Any, str]],
    allowed: list[str],
) -> list[str]:
    """Give a section the schema that its name or method chooses; returns the keys then allowed.

    Keys of the others are dropped where they have their default, as a weight of 0.
    """
    chosen, origin = given[chooser]
    if chosen not in kinds:
        raise ConfigError(f"{_from(origin)}invalid value {chooser}={chosen}{near(chosen, kinds)}")
    section = chooser.partition(".")[0]
    base[section] = OmegaConf.structured(kinds[chosen])
    own = {name for name, _ in leaves(kinds[chosen](), f"{section}.")}
    others = {k: v for kind in kinds.values() for k, v in leaves(kind(), f"{section}.")}
    for name in others.keys() - own:
        if name in given and given[name][0] == others[name]:
            del given[name]
    return [k for k in allowed if k not in others or k in own]


def _with_entry(mapping: Any, path: Sequence[str], value: Any) -> Any:
    """Return the mapping with one entry replaced; `path` holds the names that lead to it."""
    if not path:
        return value
    before = mapping if isinstance(mapping, dict) else {}
    return {**before, path[0]: _with_entry(before.get(path[0]), path[1:], value)}


@contextmanager
def interpolated(origin: str = "") -> Iterator[None]:
    """Raise ConfigError for a `${…}` that refers to nothing."""
    try:
        yield
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"{_from(origin)}{str(error).splitlines()[0]}: ${{NAME}} refers to a config key; "
            "use $NAME for an environment variable"
        ) from None


def _at_home(value: Any) -> Any:
    """Return the value with `~` expanded in a string and in each string of a list."""
    if isinstance(value, list):
        return [_at_home(item) for item in value]
    return expanded(value) if isinstance(value, str) else value


def _set(base: DictConfig, name: str, value: Any, origin: str) -> None:
    parent, _, leaf = name.rpartition(".")
    node = OmegaConf.select(base, parent) if parent else base
    kind = get_type_hints(OmegaConf.get_type(node))[leaf]
    element = (get_args(kind) or (None,))[0]
    try:
        if is_dataclass(element) and isinstance(value, list):
            value = [OmegaConf.merge(OmegaConf.structured(element), item) for item in value]
        node[leaf] = value
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        wanted = str(kind).replace("typing.", "") if get_args(kind) else kind.__name__
        default = None if OmegaConf.is_missing(node, leaf) else node[leaf]
        reason = f"the default is {plain(default)}{EXAMPLES.get(get_origin(kind), '')}"
        if is_dataclass(element):
            reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{_from(origin)}invalid value {name}={value}: expected {wanted}; {reason}"
        ) from None


def _check(node: Any, origins: dict[str, str], prefix: str = "") -> None:
    """Check choices, ranges and secrets of every value."""
    for name, value, f in entries(node, prefix):
        choices = f.metadata.get("choices") or ()
        for each in value if isinstance(value, list) else [value]:
            if choices and each is not None and each not in choices:
                origin = _from(origins.get(name, ""))
                raise ConfigError(f"{origin}invalid value {name}={each}{near(str(each), choices)}")
        refuse_secret(name, value)
        _check_range(name, value, f.metadata)
        for i, item in enumerate(value if isinstance(value, list) else ()):
            if is_dataclass(item):
                _check(item, origins, f"{name}.{i}.")


def _check_range(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
    least, most, below = (metadata.get(bound) for bound in ("least", "most", "below"))
    for number in _numbers(value):
        if not math.isfinite(number):
            raise ConfigError(f"{name}={plain(value)} is not finite: expected a finite number")
        if least is not None and number < least:
            raise ConfigError(f"{name}={plain(value)} is too small: expected at least {least}")
        if most is not None and number > most:
            raise ConfigError(f"{name}={plain(value)} is too large: expected at most {most}")
        if below is not None and number >= below:
            raise ConfigError(f"{name}={plain(value)} is too large: expected less than {below}")


def _numbers(value: Any) -> Iterator[int | float]:
    value = list(value.values()) if isinstance(value, dict) else value
    for item in value if isinstance(value, list) else ():
        yield from _numbers(item)
    if isinstance(value, (int, float)):
        yield value


def _from(origin: str) -> str:
    """Return the start of a message about a value from a file."""
    return "" if origin in ("", "command line") else f"{origin}: "


def _elsewhere(command: str, name: str, schemas: Mapping[str, type]) -> str:
    """Return which commands read a key that this one does not."""
    readers = [other for other, schema in schemas.items() if name in known_keys(schema)]
    if not readers or command in readers:
        return ""
    return f": it is a key of {', '.join(readers)}, not of {command}"


def near(name: str, allowed: Collection[str]) -> str:
    """Return `; did you mean …? (allowed: …)` for a wrong name."""
    names = [str(a) for a in allowed]
    section = [n for n in names if n.startswith(name.rpartition(".")[0] + ".")]
    last = {n.rpartition(".")[2]: n for n in names}
    close = get_close_matches(name, names, 1, 0.6) or [
        last[c] for c in get_close_matches(name.rpartition(".")[2], list(last), 1, 0.7)
    ]
    hint = f"; did you mean {close[0]}?" if close else ""
    listed = section if "." in name and section else names
    if len(listed) > 30:
        listed = [*get_close_matches(name, names, 6, 0.3), "…; --help lists all"]
    return f"{hint} (allowed: {', '.join(listed)})"


def plain(value: Any) -> str:
    """Return a value as it is written in YAML and on the command line."""
    if isinstance(value, list):
        return f"[{', '.join(map(_inner, value))}]"
    if is_dataclass(value) and not isinstance(value, type):  # what differs from its defaults
        default = vars(type(value)())
        value = {name: each for name, each in vars(value).items() if each != default[name]}
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {_inner(each)}' for name, each in value.items())}}}"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _inner(value: Any) -> str:
    """Return a value in a list or mapping; a text is quoted unless it is a plain word."""
    if not isinstance(value, str):
        return plain(value)
    if re.fullmatch(r"[A-Za-z_][\w./-]*", value) and yaml.safe_load(value) == value:
        return value
    return json.dumps(value) if "'" in value else f"'{value}'"


def entries(node: Any, prefix: str = "") -> Iterator[tuple[str, Any, Field[Any]]]:
    """Yield dotted name, value and field of everything in a configuration."""
    for f in fields(node):
        value = getattr(node, f.name)
        if is_dataclass(value):
            yield from entries(value, f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", value, f


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted name and value of everything in a configuration."""
    return ((name, value) for name, value, _ in entries(node, prefix))


def known_keys(kind: type) -> list[str]:
    """Return the dotted names of all values of a schema, with those of every model and method."""
    names = [name for name, _ in leaves(kind())]
    for chooser, kinds in CHOICES.items():
        if chooser in names:
            section = chooser.partition(".")[0]
            names += [n for each in kinds.values() for n, _ in leaves(each(), f"{section}.")]
    return list(dict.fromkeys(names))


def to_yaml(config: Any) -> str:
    """Serialize a resolved configuration; `config=` reads it back unchanged."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))
