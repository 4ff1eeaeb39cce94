"""Turn a command line into a typed configuration, and record where each value came from.

Later sources override earlier ones: `conf/`, the site's folder (`$LACUNA_CONF`), the user's
(`~/.config/lacuna`), the command line. A folder may hold options of any group (`cluster/our.yaml`)
and `defaults.yaml`, plain keys that override the values of the groups.

As in Hydra, an option's file may name others of its group that it builds on (`defaults: [msanet]`),
and a recipe the options that it consists of (`defaults: [override /model: msanet]`). Arguments
follow Hydra's grammar. The files are read here, so that `--dry-run` can show which one set a key.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.common.environment import CHECKOUT, config_dir
from pipeline.common.errors import ConfigError, one_line
from pipeline.config import outside
from pipeline.config.commands import COMMANDS, Command
from pipeline.config.former import RENAMED, RETIRED
from pipeline.config.resolve import Resolved, entries, interpolated, known_keys, merge, near
from shards import store

CONF = CHECKOUT / "conf"
SCHEMAS = {name: spec.schema for name, spec in COMMANDS.items()}
# Keys with string values; True if a boolean is kept as such, as in `sbatch: {exclusive: true}`.
STRING_KEYS = {
    name: f.name == "sbatch"
    for schema in SCHEMAS.values()
    for name, _, f in entries(schema())
    if re.fullmatch(r"(list\[|dict\[str, )?str\]?( \| None)?", str(f.type)) or f.name == "sbatch"
}


def search_folders() -> list[tuple[str, Path]]:
    """Return name and path of each folder that is searched; the last one wins."""
    site = store.expanded(os.environ.get("LACUNA_CONF", ""))
    if site and not Path(site).is_dir():
        raise ConfigError(
            f"LACUNA_CONF={site} is not a folder: set it to your site's configuration folder, or "
            "unset it"
        )
    methods = [("methods", folder / "conf") for folder in outside.folders]
    named = [("conf", CONF), *methods, ("site", Path(site) if site else None)]
    named.append(("user", config_dir()))
    return [(name, path) for name, path in named if path and path.is_dir()]


def compose(command: str, args: Sequence[str]) -> Resolved:
    """Resolve the `key=value` arguments of a command; ConfigError names the first error."""
    spec = COMMANDS[command]
    saved, args = saved_start(command, spec.groups, args)
    choices, values = _split(spec, args)
    outside_path = OmegaConf.select(OmegaConf.create(saved[0] if saved else {}), "methods.path")
    if outside_path := dict(values).get("methods.path", outside_path):
        outside.use(store.expanded(outside_path))
    if saved and choices:
        raise ConfigError("config= is already resolved: change single keys, not groups")
    layers = _leaves_of(command, *saved) if saved else list(_composed(command, choices))
    for name, folder in [] if saved else search_folders():
        if (folder / "defaults.yaml").is_file():
            site = _loaded(folder / "defaults.yaml")
            layers += _leaves_of(command, site, f"{name}: {folder / 'defaults.yaml'}", lenient=True)
    layers += [(k, v, "command line") for k, v in values]
    return merge(command, layers, SCHEMAS)


def _loaded(path: Path, group: str = "") -> dict[str, Any]:
    """Read a YAML file of keys, or of a group's keys."""
    try:
        values = _read(path.read_text(), group)
    except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {one_line(error)}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected `key: value` lines")
    return values


def _read(text: str, group: str = "") -> Any:
    """Parse YAML; a number or boolean keeps its spelling where a string is expected.

    YAML reads 12:00:00 as 43200, 3.10 as 3.1 and 0123 as 83.
    """
    typed = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))
    return _spelled(typed, yaml.load(text, _Spelling) or {}, group)


class _Spelling(yaml.SafeLoader):
    """Reads numbers, booleans and dates as strings."""


for _kind in ("bool", "float", "int", "timestamp"):
    _Spelling.add_constructor(f"tag:yaml.org,2002:{_kind}", lambda loader, node: str(node.value))


def _spelled(value: Any, spelling: Any, name: str) -> Any:
    """Replace numbers and booleans by their spelling in the keys that expect a string."""
    if isinstance(value, dict):
        names = [name if name in STRING_KEYS else _plain_key(f"{name}.{key}") for key in value]
        return dict(zip(value, map(_spelled, value.values(), spelling.values(), names)))
    if isinstance(value, list):
        return [_spelled(item, written, name) for item, written in zip(value, spelling)]
    kept = isinstance(value, bool) and STRING_KEYS.get(name)
    wrong = name in STRING_KEYS and isinstance(value, (int, float)) and not kept
    return spelling if wrong and isinstance(spelling, str) else value


def _plain_key(name: str) -> str:
    """Return the key that is meant: `cluster.commands.NAME.time` is read like `cluster.time`."""
    return re.sub(r"^cluster\.commands\.[^.]+\.", "cluster.", name.lstrip("."))


def options(group: str) -> list[str]:
    """Return the names that `group=` accepts, such as `experiment=msanet/table6/places2`."""
    bases = [folder / group for _, folder in search_folders()]
    found = {p.relative_to(base).with_suffix("") for base in bases for p in base.rglob("*.yaml")}
    return sorted(map(str, found))


def _split(spec: Command, args: Sequence[str]) -> tuple[dict[str, str], list[tuple[str, Any]]]:
    """Separate the choices of groups from single values."""
    choices, values = {}, []
    for arg in args:
        if "=" not in arg:
            raise ConfigError(f"{arg!r}: expected key=value; --help lists the keys")
        name, _, text = arg.partition("=")
        if name.startswith(("+", "~")):
            raise ConfigError(f"{arg!r}: keys cannot be added or removed; write key=value")
        if not text:
            raise ConfigError(f"{name}= is empty: give a value, or {name}=null")
        if name in spec.groups:
            choices[name] = text
        else:
            values.append((RENAMED.get(name, name), _parsed(arg, text)))
    return choices, values


def _parsed(arg: str, text: str) -> Any:
    """Return the value of an argument: lists, mappings, numbers and quoted text by Hydra's grammar.

    Other values are taken literally: paths and URLs contain characters of that grammar.
    """
    box = re.match(r"mask(\.file)?=\s*[\[\d.+-]", arg)  # x,y,w,h: Hydra would read four values
    if box or not re.match(r"^\s*([\[{'\"]|[-+\d.]|true$|false$|null$)", text, re.I):
        return text
    try:
        override = OverridesParser.create().parse_override(arg)
    except HydraException:
        return text
    if override.is_sweep_override():
        raise ConfigError(f"{arg!r} has several values: give one (only `submit` runs sweeps)")
    value = override.value()
    with suppress(yaml.YAMLError):  # a list in Hydra's grammar but not in YAML
        value = _spelled(value, yaml.load(text, _Spelling), _plain_key(arg.partition("=")[0]))
    return value


def _composed(command: str, choices: dict[str, str]) -> Iterator[tuple[str, Any, str]]:
    """Yield the values of the chosen options, a recipe's own values last.

    Options given as arguments override those of a recipe, which override the command's defaults.
    """
    recipe = list(_files("experiment", choices["experiment"])) if "experiment" in choices else []
    chosen = dict(COMMANDS[command].groups)
    for overrides, _, _ in recipe:
        chosen |= overrides
    for group, option in {**chosen, **choices}.items():
        for _, values, origin in _files(group, option) if option and group != "experiment" else ():
            yield from _leaves_of(command, {group: values}, origin)
    for _, values, origin in recipe:
        yield from _leaves_of(command, values, origin)
        yield "experiment", choices["experiment"], "command line"


def _files(group: str, option: str) -> Iterator[tuple[dict[str, str], dict[str, Any], str]]:
    """Yield the overrides, values and name of an option's file, preceded by those it builds on.

    As in Hydra, `_self_` among the `defaults` puts the file before the options that follow it.
    """
    known = options(group)
    if option not in known:
        raise ConfigError(f"unknown option {group}={option}{near(option, known)}")
    found = [(name, folder / group / f"{option}.yaml") for name, folder in search_folders()]
    name, path = [(name, path) for name, path in found if path.is_file()][-1]
    values = _loaded(path, "" if group == "experiment" else group)
    overrides: dict[str, str] = {}
    defaults = values.pop("defaults", [])
    for item in defaults if "_self_" in defaults else [*defaults, "_self_"]:
        if item == "_self_":
            yield overrides, values, f"{name}/{group}/{option}.yaml"
        elif isinstance(item, dict) and group == "experiment":
            overrides |= {key.removeprefix("override /"): choice for key, choice in item.items()}
        else:
            yield from _files(group, str(item))


def _leaves_of(
    command: str, values: Any, origin: str, lenient: bool = False
) -> list[tuple[str, Any, str]]:
    """Return the values of a file that this command reads, by dotted key.

    Keys of a shared section that only other commands read are skipped: conf/data/*.yaml serves
    `shard`, `train` and `evaluate`. With `lenient` so are all keys of other commands.
    """
    known = set(known_keys(SCHEMAS[command]))
    elsewhere = {*RETIRED, *(key for schema in SCHEMAS.values() for key in known_keys(schema))}
    shared = {name.partition(".")[0] for name in known if "." in name}
    with interpolated(origin):
        plain = OmegaConf.to_container(OmegaConf.create(values), resolve=True)
    return [
        (name, value, origin)
        for name, value in _flatten(plain, known)
        if name in known
        or name not in elsewhere
        or not (lenient or name.partition(".")[0] in shared)
    ]


def _flatten(values: Any, known: set[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        dotted = f"{prefix}{name}"
        if isinstance(value, dict) and dotted not in known:
            yield from _flatten(value, known, f"{dotted}.")
        else:
            yield RENAMED.get(dotted, dotted), value


def saved_start(
    command: str, groups: Iterable[str], args: Sequence[str]
) -> tuple[tuple[Any, str] | None, list[str]]:
    """Return the saved configuration to start from with its URL, or None, and the other arguments.

    `train run=URL` starts from `<run>/config.yaml` if that exists and no argument names a recipe or
    another group.
    """
    given = {name: store.expanded(v) for name, _, v in (arg.partition("=") for arg in args) if v}
    url = given.get("config")
    if url is None and command == "train" and given.get("run") and not set(groups) & set(given):
        url = store.join(given["run"], "config.yaml")
        url = url if store.exists(url) else None
    if url is None:
        return None, list(args)
    try:
        saved = _read(store.read(url).decode())
    except FileNotFoundError:
        raise ValueError(f"config={store.display(url)} does not exist: give a file") from None
    return (saved, store.display(url)), [w for w in args if not w.startswith("config=")]
