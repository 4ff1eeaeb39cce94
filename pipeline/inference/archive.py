"""The inpainter as a file: a `torch.export` archive of ATen operators, raw tensors and JSON.

torch's loader trusts an archive: it unpickles what is declared as pickle, resolves operator names
by `getattr` on torch, and evaluates shape expressions and guards as Python. So `load` first reads
the file as data and refuses whatever is not plainly a network.
"""

import contextlib
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from models import masking
from models.inpainter import Inpainter, export
from shards import store

TEXT = ("archive_format", "archive_version", "byteorder", "version", "serialization_id")
TARGET = re.compile(
    r"torch\.ops\.aten\.\w+\.\w+|torch\.sym_(max|min|not|ite|float|int)|math\.(ceil|floor|trunc)"
    r"|_operator\.(add|sub|mul|neg|floordiv|truediv|mod|pow|eq|ne|lt|le|gt|ge|and_|or_|getitem)"
)
SYMBOLIC = re.compile(
    r"Integer|Rational|Symbol|Add|Mul|Pow|Max|Min|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv"
    r"|IntTrueDiv|Equality|Unequality|LessThan|StrictLessThan|GreaterThan|StrictGreaterThan"
    r"|And|Or|Not|Eq|Ne|Le|Lt|Ge|Gt|[Tt]rue|[Ff]alse|positive|nonnegative|integer|real|finite"
    r"|[a-z]{1,4}\d+"
)
TREE = re.compile(r'"type": "(?!builtins\.(?:tuple|list|dict)")')


class Archive(nn.Module):
    """A loaded archive: `(image, mask) → image` as `Inpainter.forward` says, floats in [0, 1].

    Raises ValueError as `models.masking.check` does: the graph itself would compute rubbish.
    """

    def __init__(self, program: ExportedProgram, device: torch.device | str, sha256: str) -> None:
        super().__init__()
        self.program, self.device, self.sha256 = program, torch.device(device), sha256
        self._module = program.module()

    @torch.inference_mode()
    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        masking.check(image, mask)
        return self._module(image, mask)

    def on(self, device: torch.device | str) -> "Archive":
        """The same network on another device; an exported graph names its device at every node."""
        if torch.device(device) == self.device:
            return self
        from torch.export.passes import move_to_device_pass

        return Archive(move_to_device_pass(self.program, str(device)), device, self.sha256)


def save(inpainter: Inpainter, path: Path) -> str:
    """Exports a CPU fp32 inpainter to `path`, proves that it loads, returns the file's sha256."""
    program = export(inpainter)
    program.example_inputs = None  # would be stored as a pickle
    program._guards_code = []  # would be executed on loading; callers' sizes are checked anyway
    for node in program.graph.nodes:  # file names and source lines of this machine
        for name in ("stack_trace", "nn_module_stack", "torch_fn", "source_fn_stack"):
            node.meta.pop(name, None)
    torch.export.save(program, path)
    data = path.read_bytes()
    check(data, path.name)
    return hashlib.sha256(data).hexdigest()


def load(url: str, sha256: str | None = None, device: torch.device | str = "cpu") -> Archive:
    """Reads an archive. Raises ValueError if it is none, not ours, or not the one with `sha256`."""
    name = store.display(url)
    try:
        data = store.read(url)
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(
            f"{name} is no file: give models:/NAME@champion, models:/NAME/VERSION or a .pt2 file"
        ) from None
    found = hashlib.sha256(data).hexdigest()
    if sha256 and found != sha256:
        raise ValueError(
            f"{name} has sha256 {found[:12]}…, expected {sha256[:12]}…: it was changed or torn"
        )
    check(data, name)
    try:
        with _parsing_shapes_once():
            program = torch.export.load(io.BytesIO(data))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{name} cannot be read by torch {torch.__version__}: {reason}") from error
    return Archive(program, "cpu", found).on(device)


@contextlib.contextmanager
def _parsing_shapes_once() -> Iterator[None]:
    """torch parses the shape expressions of a graph one by one, 1,600 of which 64 differ: loading
    takes a third of its time when each is parsed once."""
    import sympy

    parse, parsed = sympy.sympify, {}

    def once(text: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(text, str):
            return parse(text, *args, **kwargs)
        if text not in parsed:
            parsed[text] = parse(text, *args, **kwargs)
        return parsed[text]

    sympy.sympify = once
    try:
        yield
    finally:
        sympy.sympify = parse


def check(data: bytes, name: str) -> None:
    """Raises ValueError unless `data` is only JSON, raw tensors and a graph of ATen operators."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            listed = archive.namelist()
            records = {n.partition("/")[2]: archive.read(n) for n in listed}
            _check_records(listed, records)
    except (zipfile.BadZipFile, EOFError, ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{name} is no archive of torch.export: give a registered model") from None
    except _Refused as error:
        raise ValueError(f"{name} is refused: {error}; register the run again") from None


class _Refused(Exception):
    pass


def _check_records(listed: list[str], records: dict[str, bytes]) -> None:
    # torch's reader ignores case and might take the other one of two equal names.
    if len({n.casefold() for n in listed}) != len(listed):
        raise _Refused("two of its records have one name")
    raw: set[str] = set()
    for name, content in records.items():
        if re.fullmatch(r"data/(weights|constants)/\w+_config\.json", name):
            folder = name.rpartition("/")[0]
            for entry in json.loads(content)["config"].values():
                if entry["use_pickle"] is not False:
                    raise _Refused(f"{name} declares a pickle")
                raw.add(f"{folder}/{entry['path_name']}")
        elif re.fullmatch(r"models/\w+\.json", name):
            _check_graph(json.loads(content))
    for name, content in records.items():
        leaf = name.rpartition("/")[2]
        known = (
            name.endswith(".json")
            or (leaf in TEXT and re.fullmatch(rb"[\w.-]{1,64}\n?", content))
            or (name in raw and re.fullmatch(r"(weight|tensor)_\d+", leaf))
            or (name.startswith("data/sample_inputs/") and not content)
        )
        if not known:
            raise _Refused(f"record {name} is neither JSON nor a raw tensor")


def _check_graph(model: dict[str, Any]) -> None:
    if model.get("guards_code") or model["graph_module"].get("treespec_namedtuple_fields"):
        raise _Refused("it holds code")
    for key, value in _strings(model):
        if key == "target" and not TARGET.fullmatch(value):
            raise _Refused(f"{value[:80]!r} is no ATen operator")
        if key == "expr_str" and not _is_shape(value):
            raise _Refused(f"{value[:80]!r} is no shape")
        if key in ("in_spec", "out_spec") and TREE.search(value):
            raise _Refused("its arguments are no tensors")


def _is_shape(text: str) -> bool:
    """Whether an expression is arithmetic of integers and symbols such as `s31`."""
    text = re.sub(r"'[a-z]{1,4}\d+'", "0", text)
    words = set(re.findall(r"[^\W\d]\w*", text))
    plain = re.fullmatch(r"[\w\s(),=+\-*/%<>!]*", text) is not None
    return plain and all(SYMBOLIC.fullmatch(word) for word in words)


def _strings(value: Any, key: str = "") -> Any:
    """Every string of a JSON value with the key it stands under."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _strings(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner, key)
    elif isinstance(value, str):
        yield key, value
