"""From words on a command line to a typed configuration, and where each value came from.

Later sources override earlier ones: `conf/`, the site's folder (`$LACUNA_CONF`), the user's
(`~/.config/lacuna`), the command line. A folder may hold options of any group (`cluster/our.yaml`)
and `defaults.yaml`, plain keys that override the values of the groups.

Hydra's public `compose` does not tell which file set a key, which `--dry-run` shows; hence the
imports from `hydra._internal`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.core_plugins.structured_config_source import StructuredConfigSource
from hydra._internal.defaults_list import create_defaults_list
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.common.environment import CHECKOUT, config_dir
from pipeline.common.errors import ConfigError, one_line
from pipeline.config.commands import COMMANDS, Command
from pipeline.config.groups import RETIRED
from pipeline.config.resolve import Resolved, interpolated, known_keys, merge, near

CONF = CHECKOUT / "conf"


def search_folders() -> list[tuple[str, Path]]:
    """Return name and path of each folder that is searched; the last one wins."""
    site = os.environ.get("LACUNA_CONF")
    if site and not Path(site).is_dir():
        raise ConfigError(f"LACUNA_CONF={site} is not a folder: set it to your site's or unset it")
    folders = [("conf", CONF), ("user", config_dir())]
    if site:
        folders.insert(1, ("site", Path(site)))
    return [(name, path) for name, path in folders if path.is_dir()]


def compose(command: str, words: Sequence[str]) -> Resolved:
    """Resolve the `key=value` words of a command; ConfigError names the first error."""
    spec = COMMANDS[command]
    saved, words = saved_start(command, spec.groups, words)
    choices, values = _split(spec, words)
    if saved and choices:
        raise ConfigError("config= is already resolved: change single keys, not groups")
    folders = [] if saved else search_folders()
    layers = _leaves_of(command, *saved) if saved else list(_composed(command, choices, folders))
    for name, folder in folders:
        if (folder / "defaults.yaml").is_file():
            site = _loaded(folder / "defaults.yaml")
            layers += _leaves_of(command, site, f"{name}: {folder / 'defaults.yaml'}", lenient=True)
    layers += [(k, v, "command line") for k, v in values]
    return merge(command, layers)


def _loaded(path: Path) -> DictConfig:
    try:
        values = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {one_line(error)}") from None
    if not isinstance(values, DictConfig):
        raise ConfigError(f"{path} holds a list: write `key: value` lines")
    return values


def options(group: str) -> list[str]:
    """Return the names that `group=` accepts, such as `experiment=msanet/table6/places2`."""
    names = set()
    for _, folder in search_folders():
        base = folder / group
        names |= {str(p.relative_to(base).with_suffix("")) for p in base.rglob("*.yaml")}
    return sorted(names)


def _split(spec: Command, words: Sequence[str]) -> tuple[list[Any], list[tuple[str, Any]]]:
    """Separate the choices of groups, as Hydra's overrides, from single values."""
    choices, values = [], []
    for word in words:
        if "=" not in word:
            raise ConfigError(f"{word!r}: expected key=value; --help lists the keys")
        name, _, text = word.partition("=")
        if name.startswith(("+", "~")):
            raise ConfigError(f"{word!r}: keys are neither added nor removed; write key=value")
        if not text:
            raise ConfigError(f"{name}= is empty: give a value, or {name}=null")
        if name in spec.groups:
            known = options(name)
            if text not in known:
                raise ConfigError(f"unknown option {name}={text}{near(text, known)}")
        # Other values are taken literally: paths and URLs contain characters that mean something
        # in Hydra's grammar. Lists, mappings, numbers and quoted text go through its parser.
        box = re.fullmatch(r"\d+(,\d+){2,4}", text)  # mask=x,y,w,h, to Hydra four values
        plain = re.match(r"^\s*([\[{'\"]|[-+\d.]|true$|false$|null$)", text, re.I)
        if name in spec.groups or plain and not box:
            try:
                override = OverridesParser.create().parse_override(word)
            except HydraException:
                override = None
            if override is not None and override.is_sweep_override():
                raise ConfigError(f"{word!r} gives several values; a run takes one")
            if name in spec.groups:
                choices.append(override)
                continue
            values.append((name, text if override is None else override.value()))
        else:
            values.append((name, text))
    return choices, values


def _composed(
    command: str, choices: list[Any], folders: list[tuple[str, Path]]
) -> Iterator[tuple[str, Any, str]]:
    """Yield the values of the chosen group files in the order of Hydra's defaults list."""
    search = ConfigSearchPathImpl()
    for name, path in reversed(folders):
        search.append(name, f"file://{path}")
    search.append("schema", "structured://")
    for source in (FileConfigSource, StructuredConfigSource):
        SourcesRegistry.instance().register(source)
    groups = COMMANDS[command].groups
    node: dict[str, Any] = {"defaults": [*({g: o} for g, o in groups.items()), "_self_"]}
    ConfigStore.instance().store(name=f"_command_{command}", node=node)
    repository = ConfigRepository(search)
    try:
        listed = create_defaults_list(repository, f"_command_{command}", choices, False, False)
    except HydraException as error:
        raise ConfigError(one_line(error)) from None
    for default in listed.defaults:
        if default.config_path is None or default.config_path.startswith("_command_"):
            continue
        loaded = repository.load_config(default.config_path)
        assert loaded is not None
        values = loaded.config
        for part in reversed((default.package or "").split(".") if default.package else []):
            values = OmegaConf.create({part: values})
        yield from _leaves_of(command, values, f"{loaded.provider}/{default.config_path}.yaml")
        if default.config_path.startswith("experiment/"):
            yield "experiment", default.config_path.removeprefix("experiment/"), "command line"


def _leaves_of(
    command: str, values: Any, origin: str, lenient: bool = False
) -> list[tuple[str, Any, str]]:
    """The values of a file that this command reads, by dotted key.

    Keys of a shared section that only other commands read are skipped: conf/data/*.yaml serves
    `shard`, `train` and `evaluate`. With `lenient` so are all keys of other commands.
    """
    known = set(known_keys(COMMANDS[command].schema))
    elsewhere = {*RETIRED, *(k for spec in COMMANDS.values() for k in known_keys(spec.schema))}
    shared = {name.partition(".")[0] for name in known if "." in name}
    with interpolated(origin):
        plain = OmegaConf.to_container(values, resolve=True)
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
            yield dotted, value


def saved_start(
    command: str, groups: Iterable[str], words: Sequence[str]
) -> tuple[tuple[Any, str] | None, list[str]]:
    """Return the configuration to start from and its URL, if there is one, and the other words.

    `train run=URL` starts from `<run>/config.yaml` where that exists and no word names a recipe or
    another group.
    """
    given = dict(word.split("=", 1) for word in words if "=" in word)
    if "config" in given:
        return _read(given["config"]), [w for w in words if not w.startswith("config=")]
    if command == "train" and given.get("run") and not set(groups) & set(given):
        from shards import store

        url = store.join(given["run"], "config.yaml")
        if store.exists(url):
            return _read(url), list(words)
    return None, list(words)


def _read(url: str) -> tuple[Any, str]:
    from shards import store

    try:
        return OmegaConf.create(store.read(url).decode()), store.display(url)
    except FileNotFoundError:
        raise ValueError(f"config={store.display(url)} does not exist") from None
