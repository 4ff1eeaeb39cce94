"""Methods from a folder outside the checkout, `methods.path=`, with the paths of the checkout.

`submit` carries such a folder as one archive, which is read in its place.
"""

from __future__ import annotations

import hashlib
import io
import sys
import zipfile
import zlib
from functools import cache
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.common.environment import CHECKOUT, cache_dir
from pipeline.common.errors import ConfigError
from pipeline.config.groups import ModelConfig, ObjectiveConfig
from pipeline.config.methods import METHODS, MODELS
from shards import store

CONFIGURED, TRAINED, NETWORKS = "pipeline/config/methods", "pipeline/training/methods", "models"
# The base of a configuration, the key with its name, where it is listed, and where its code is.
KINDS: list[tuple[type, str, dict[str, Any], str]] = [
    (ModelConfig, "name", MODELS, NETWORKS),
    (ObjectiveConfig, "method", METHODS, TRAINED),
]
folders: list[Path] = []  # those in use


class _Finder:
    """Finds modules of the folders in use where the checkout has none of the name."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        package = name.rpartition(".")[0].replace(".", "/")
        if package not in (CONFIGURED, TRAINED, NETWORKS):
            return None
        return PathFinder.find_spec(name, [str(folder / package) for folder in folders])


def read(path: str) -> dict[str, bytes]:
    """Read the files of a folder or archive by their paths in it."""
    if path.endswith(".zip"):
        try:
            with zipfile.ZipFile(io.BytesIO(store.read(path))) as packed:
                files = {name: packed.read(name) for name in packed.namelist()}
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            raise ConfigError(
                f"methods.path={path} is damaged ({error}): give the folder"
            ) from None
        for name in files:  # it is unpacked: nothing may land next to the folder
            if name.startswith("/") or ".." in PurePosixPath(name).parts:
                raise ConfigError(f"methods.path={path}: {name} lies outside the archive's folder")
        return files
    root = Path(path)
    patterns = (*(f"{place}/*.py" for place in (CONFIGURED, TRAINED, NETWORKS)), "conf/**/*.yaml")
    found = sorted(file for pattern in patterns for file in root.glob(pattern))
    if not any(file.parent == root / CONFIGURED for file in found):
        raise ConfigError(
            f"methods.path={path} has no {CONFIGURED}/NAME.py: give a folder with the files that "
            f"docs/adding-a-method.md names"
        )
    return {file.relative_to(root).as_posix(): file.read_bytes() for file in found}


def archive(path: str) -> bytes:
    """Pack the files; the same bytes for the same files."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as made:
        for name, data in read(path).items():
            made.writestr(zipfile.ZipInfo(name), data)
    return packed.getvalue()


def digest(path: str) -> str:
    """Return the sha256 of the files, the same of a folder and its archive."""
    sha = hashlib.sha256()
    for name, data in read(path).items():
        sha.update(f"{name} {len(data)}\n".encode() + data)
    return sha.hexdigest()


@cache
def use(path: str) -> None:
    """Add the models and methods of the folder to those of the checkout."""
    found, folder = read(path), Path(path).absolute()
    for name in found:
        if (CHECKOUT / name).exists():
            raise ConfigError(
                f"methods.path={path}: {name} is also a file of the checkout: rename it"
            )
    if path.endswith(".zip"):
        folder = _unpacked(found, cache_dir() / "methods" / digest(path))
    folders.append(folder)
    if _Finder not in sys.meta_path:
        sys.meta_path.append(_Finder)
    for name in (PurePosixPath(n).stem for n in found if n.startswith(CONFIGURED)):
        module = import_module(f"pipeline.config.methods.{name}")
        for kind in vars(module).values():
            if isinstance(kind, type) and kind.__module__ == module.__name__:
                _add(kind, path, found)


def _add(kind: Any, path: str, found: dict[str, bytes]) -> None:
    for base, key, rows, place in KINDS:
        if not issubclass(kind, base):
            continue
        name = getattr(kind, key)
        if rows.setdefault(name, kind) is not kind:
            raise ConfigError(f"methods.path={path}: the {key} {name} is taken: choose another")
        if f"{place}/{name}.py" not in found:
            raise ConfigError(f"methods.path={path} has no {place}/{name}.py: add the file")


def _unpacked(found: dict[str, bytes], folder: Path) -> Path:
    for name, data in found.items():
        store.write(str(folder / name), data)  # atomically: other ranks do the same
    return folder
