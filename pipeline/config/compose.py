"""From words on a command line to a typed configuration, and where each value came from.

Searched in this order, later wins: `conf/`, a site's folder (`$LACUNA_CONF`), a user's
(`~/.config/lacuna`), the command line. A folder may bring options of any group (`cluster/our.yaml`)
and `defaults.yaml`, plain keys that are laid over what the groups say.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

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

from pipeline.common.secrets import ConfigError, refuse_secret
from pipeline.config.groups import MODELS, known_keys, leaves, meaning
from pipeline.config.saved import saved_start
from pipeline.config.verbs import VERBS, VerbSpec

CONF = Path(__file__).resolve().parents[2] / "conf"
WRITTEN = {dict: ", and written {name: 'a value'}", list: ", and written ['one', 'another']"}


@dataclass(frozen=True)
class Resolved:
    """A verb's configuration, and for each dotted key the place that set it."""

    config: Any
    origins: dict[str, str]

    def yaml(self) -> str:
        return OmegaConf.to_yaml(OmegaConf.structured(self.config))

    def described(self) -> str:
        """`key: value  # origin`, one line each, as --dry-run prints it."""
        lines = [
            (f"{k}: {_plain(v)}", self.origins.get(k, "default")) for k, v in leaves(self.config)
        ]
        width = min(60, max(len(text) for text, _ in lines))
        return "\n".join(f"{text:<{width}}  # {origin}" for text, origin in lines)


def search_folders() -> list[tuple[str, Path]]:
    """Name and path of each folder that is searched, the winning one last."""
    site = os.environ.get("LACUNA_CONF")
    if site and not Path(site).is_dir():
        raise ConfigError(f"LACUNA_CONF={site} is no folder: point it at your site's or unset it")
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "lacuna"
    found = [("conf", CONF), ("site", Path(site) if site else None), ("user", home)]
    return [(name, path) for name, path in found if path is not None and path.is_dir()]


def compose(verb: str, words: Sequence[str]) -> Resolved:
    """Resolve `key=value` words of one verb; `ConfigError` names the first thing that is wrong."""
    spec = VERBS[verb]
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


def _split(spec: VerbSpec, words: Sequence[str]) -> tuple[list[Any], list[tuple[str, Any]]]:
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
    verb: str, spec: VerbSpec, choices: list[Any], folders: list[tuple[str, Path]]
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
    known = set(known_keys(VERBS[verb].schema))
    everywhere = {k for spec in VERBS.values() for k in known_keys(spec.schema)} if lenient else ()
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


def _merge(verb: str, spec: VerbSpec, layers: list[tuple[str, Any, str]]) -> Resolved:
    base = OmegaConf.structured(spec.schema)
    given: dict[str, tuple[Any, str]] = {}
    for name, value, origin in layers:
        given[name] = (value, origin)
    if "model.name" in given:
        name, origin = given["model.name"]
        if name not in MODELS:
            raise ConfigError(f"{origin}: model.name={name} is no choice{_near(name, MODELS)}")
        base.model = OmegaConf.structured(MODELS[name])
    allowed = known_keys(spec.schema)
    if "model.name" in given:
        model = set(known_keys(MODELS[given["model.name"][0]], "model."))
        allowed = [k for k in allowed if not k.startswith("model.") or k in model]
    for name, (value, origin) in given.items():
        if name not in allowed:
            raise ConfigError(f"{_told(origin)}unknown key {name}{_near(name, allowed)}")
        _set(base, name, value, origin)
    with _interpolated():
        missing = OmegaConf.missing_keys(base)
        for name in (key for key in allowed if key in missing):
            raise ConfigError(f"{name}= is missing: {meaning(spec.schema, name)}")
        resolved = OmegaConf.to_object(base)
    _check(resolved, {name: origin for name, (_, origin) in given.items()})
    return Resolved(resolved, {name: origin for name, (_, origin) in given.items()})


@contextmanager
def _interpolated(origin: str = "") -> Iterator[None]:
    try:
        yield
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"{_told(origin)}{str(error).splitlines()[0]}: ${{NAME}} stands for another key here; "
            "a shell's variable is $NAME"
        ) from None


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
        before = None if OmegaConf.is_missing(node, leaf) else node[leaf]
        now = f"it is {_plain(before)} by default{WRITTEN.get(get_origin(kind), '')}"
        reason = str(error).splitlines()[0] if is_dataclass(element) else now
        raise ConfigError(f"{_told(origin)}{name}={value} is no {wanted}: {reason}") from None


def _check(node: Any, origins: dict[str, str], prefix: str = "") -> None:
    for f in fields(node):
        name, value = f"{prefix}{f.name}", getattr(node, f.name)
        choices = f.metadata.get("choices") or ()
        if is_dataclass(value):
            _check(value, origins, f"{name}.")
        elif choices and value not in choices:
            told = _told(origins.get(name, ""))
            raise ConfigError(f"{told}{name}={value} is no choice{_near(str(value), choices)}")
        else:
            refuse_secret(name, value)
            _check_range(name, value, f.metadata)
            for i, item in enumerate(value if isinstance(value, list) else ()):
                if is_dataclass(item):
                    _check(item, origins, f"{name}.{i}.")


def _check_range(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
    least, most, below = (metadata.get(bound) for bound in ("least", "most", "below"))
    for number in value if isinstance(value, list) else [value]:
        if not isinstance(number, (int, float)):
            continue
        if number != number or least is not None and number < least:
            raise ConfigError(f"{name}={_plain(value)} is too small: at least {least}")
        if most is not None and number > most:
            raise ConfigError(f"{name}={_plain(value)} is too large: at most {most}")
        if below is not None and number >= below:
            raise ConfigError(f"{name}={_plain(value)} is too large: below {below}")


def _told(origin: str) -> str:
    return "" if origin in ("", "command line") else f"{origin}: "


def _near(name: str, allowed: Sequence[str] | dict[str, Any]) -> str:
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


def _plain(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
