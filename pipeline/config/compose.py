"""From words on a command line to a typed configuration, and where each value came from.

Searched in this order, later wins: `conf/`, a site's folder (`$LACUNA_CONF`), a user's
(`~/.config/lacuna`), the command line. A folder may bring options of any group (`cluster/our.yaml`)
and `defaults.yaml`, plain keys that are laid over what the groups say.
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
from pipeline.common.errors import ConfigError
from pipeline.config.commands import COMMANDS, Command
from pipeline.config.resolve import Resolved, _interpolated, _merge, _near, known_keys

CONF = CHECKOUT / "conf"


def search_folders() -> list[tuple[str, Path]]:
    """Name and path of each folder that is searched, the winning one last."""
    site = os.environ.get("LACUNA_CONF")
    if site and not Path(site).is_dir():
        raise ConfigError(f"LACUNA_CONF={site} is no folder: point it at your site's or unset it")
    home = config_dir()
    found = [("conf", CONF), ("site", Path(site) if site else None), ("user", home)]
    return [(name, path) for name, path in found if path is not None and path.is_dir()]


def compose(verb: str, words: Sequence[str]) -> Resolved:
    """Resolve `key=value` words of one verb; `ConfigError` names the first thing that is wrong."""
    spec = COMMANDS[verb]
    saved, words = saved_start(verb, spec.groups, words)
    choices, values = _split(spec, words)
    if saved and choices:
        raise ConfigError("config= is resolved already: change single keys, not whole groups")
    folders = [] if saved else search_folders()
    layers = _leaves_of(verb, *saved) if saved else list(_composed(verb, spec, choices, folders))
    for name, folder in folders:
        if (folder / "defaults.yaml").is_file():
            site = _loaded(folder / "defaults.yaml")
            layers += _leaves_of(verb, site, f"{name}: {folder / 'defaults.yaml'}", lenient=True)
    layers += [(k, v, "command line") for k, v in values]
    return _merge(verb, spec, layers)


def _loaded(path: Path) -> DictConfig:
    try:
        found = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path} cannot be read as YAML: {' '.join(str(e).split())}") from None
    if not isinstance(found, DictConfig):
        raise ConfigError(f"{path} holds a list: write `key: value` lines")
    return found


def options(group: str) -> list[str]:
    """Names that `group=` accepts, such as `experiment=msanet/table6/places2`."""
    found = set()
    for _, folder in search_folders():
        base = folder / group
        found |= {str(p.relative_to(base).with_suffix("")) for p in base.rglob("*.yaml")}
    return sorted(found)


def _split(spec: Command, words: Sequence[str]) -> tuple[list[Any], list[tuple[str, Any]]]:
    choices, values = [], []
    for word in words:
        if "=" not in word:
            raise ConfigError(f"{word!r} is no key=value; see --help for the keys of this verb")
        name, _, text = word.partition("=")
        if name.startswith(("+", "~")):
            raise ConfigError(f"{word!r}: keys are neither added nor removed; write key=value")
        if not text:
            raise ConfigError(f"{name}= is empty: give a value, or {name}=null")
        if name in spec.groups:
            known = options(name)
            if text not in known:
                raise ConfigError(f"{name}={text} is no choice{_near(text, known)}")
        # A bare value is taken as it stands: paths and URLs hold signs that mean something
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
    verb: str, spec: Command, choices: list[Any], folders: list[tuple[str, Path]]
) -> Iterator[tuple[str, Any, str]]:
    """Values of the chosen group files in the order in which Hydra's defaults list lays them."""
    search = ConfigSearchPathImpl()
    for name, path in reversed(folders):
        search.append(name, f"file://{path}")
    search.append("schema", "structured://")
    for source in (FileConfigSource, StructuredConfigSource):
        SourcesRegistry.instance().register(source)
    node: dict[str, Any] = {"defaults": [*({g: o} for g, o in spec.groups.items()), "_self_"]}
    ConfigStore.instance().store(name=f"_verb_{verb}", node=node)
    repository = ConfigRepository(search)
    try:
        listed = create_defaults_list(repository, f"_verb_{verb}", choices, False, False)
    except HydraException as error:
        raise ConfigError(" ".join(str(error).split())) from None
    for default in listed.defaults:
        if default.config_path is None or default.config_path.startswith("_verb_"):
            continue
        loaded = repository.load_config(default.config_path)
        assert loaded is not None
        values = loaded.config
        for part in reversed((default.package or "").split(".") if default.package else []):
            values = OmegaConf.create({part: values})
        yield from _leaves_of(verb, values, f"{loaded.provider}/{default.config_path}.yaml")
        if default.config_path.startswith("experiment/"):
            yield "experiment", default.config_path.removeprefix("experiment/"), "command line"


def _leaves_of(
    verb: str, values: Any, origin: str, lenient: bool = False
) -> list[tuple[str, Any, str]]:
    known = set(known_keys(COMMANDS[verb].schema))
    everywhere = (
        {k for spec in COMMANDS.values() for k in known_keys(spec.schema)} if lenient else ()
    )
    with _interpolated(origin):
        plain = OmegaConf.to_container(values, resolve=True)
    found = []
    for name, value in _flatten(plain, known):
        if name not in known and name in everywhere:
            continue
        found.append((name, value, origin))
    return found


def _flatten(values: Any, known: set[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        dotted = f"{prefix}{name}"
        if isinstance(value, dict) and dotted not in known:
            yield from _flatten(value, known, f"{dotted}.")
        else:
            yield dotted, value


def saved_start(
    verb: str, groups: Iterable[str], words: Sequence[str]
) -> tuple[tuple[Any, str] | None, list[str]]:
    """The configuration to start from with its URL, if there is one, and the words that are left.

    `train run=URL` starts from `<run>/config.yaml` where that exists and no word names a recipe or
    another group.
    """
    given = dict(word.split("=", 1) for word in words if "=" in word)
    if "config" in given:
        return _read(given["config"]), [w for w in words if not w.startswith("config=")]
    if verb == "train" and given.get("run") and not set(groups) & set(given):
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
