"""Save and load an inpainter as a `torch.export` archive: ATen operators, raw tensors and JSON.

torch's loader trusts an archive: it unpickles every entry that is declared as a pickle, resolves
operator names by `getattr` on torch, and evaluates shape expressions and guards as Python. So
`load` first reads the file as data and rejects anything that is not plainly a network.
"""

import hashlib
import io
import json
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from models import masking
from models.inpainter import Inpainter, export
from pipeline.common.errors import one_line
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
    """A loaded archive: `(image, mask) → image` like `Inpainter.forward`, floats in [0, 1].

    Raises ValueError for inputs that fail `models.masking.check`; the graph alone would silently
    compute a wrong result.
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
        """Copy to another device; an exported graph names its device at every node."""
        if torch.device(device) == self.device:
            return self
        from torch.export.passes import move_to_device_pass

        return Archive(move_to_device_pass(self.program, str(device)), device, self.sha256)


def save(inpainter: Inpainter, path: Path) -> str:
    """Export a CPU fp32 inpainter to `path`, check the file, and return its sha256."""
    program = without_sources(export(inpainter))
    program.example_inputs = None  # would be stored as a pickle
    program._guards_code = []  # would be executed on loading; `Archive.forward` checks sizes
    torch.export.save(program, path)
    data = path.read_bytes()
    check(data, path.name)
    return hashlib.sha256(data).hexdigest()


def without_sources(program: ExportedProgram) -> ExportedProgram:
    """Remove this machine's file names and source lines from the graph, in place."""
    for node in program.graph.nodes:
        for name in ("stack_trace", "nn_module_stack", "torch_fn", "source_fn_stack"):
            node.meta.pop(name, None)
    return program


def load(url: str, sha256: str | None = None, device: torch.device | str = "cpu") -> Archive:
    """Load an archive. ValueError if it is missing, unsafe, or its hash is not `sha256`."""
    name = store.display(url)
    try:
        data = store.read(url)
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(
            f"{name}: no such file; use models:/NAME@champion, models:/NAME/VERSION or a .pt2 file"
        ) from None
    actual = hashlib.sha256(data).hexdigest()
    if sha256 and actual != sha256:
        raise ValueError(
            f"{name} has sha256 {actual[:12]}…, expected {sha256[:12]}…: the file was changed or "
            "damaged; delete or replace it"
        )
    check(data, name)
    try:
        with _parsing_shapes_once():
            program = torch.export.load(io.BytesIO(data))
    except Exception as error:
        reason = one_line(error)[:200]
        raise ValueError(f"{name} cannot be read by torch {torch.__version__}: {reason}") from error
    return Archive(program, "cpu", actual).on(device)


def _parsing_shapes_once() -> Any:
    """Parse each distinct shape expression once, inside a `with`.

    Torch parses all 1,600 of a graph, of which 64 differ. Loading then takes a third of the time.
    """
    import sympy

    parse, parsed = sympy.sympify, {}

    def once(text: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(text, str):
            return parse(text, *args, **kwargs)
        if text not in parsed:
            parsed[text] = parse(text, *args, **kwargs)
        return parsed[text]

    return mock.patch.object(sympy, "sympify", once)


# What zipfile and the JSON within raise; RuntimeError: encrypted, or compressed in a strange way.
DAMAGED: tuple[type[Exception], ...] = (
    *(zipfile.BadZipFile, zlib.error, EOFError, RuntimeError),
    *(ValueError, KeyError, TypeError, AttributeError),
)


def check(data: bytes, name: str) -> None:
    """Raise ValueError unless `data` is only JSON, raw tensors and a graph of ATen operators."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            # torch compresses nothing: records that inflate or overlap would fill the memory.
            if sum(info.file_size for info in archive.infolist()) > len(data):
                raise _Unsafe("its records are larger than the file")
            _check_records(names, {n.partition("/")[2]: archive.read(n) for n in names})
    except DAMAGED:
        raise ValueError(f"{name} is not a torch.export archive: use a registered model") from None
    except _Unsafe as error:
        raise ValueError(f"{name} is rejected as unsafe: {error}; register the run again") from None


class _Unsafe(Exception):
    pass


def _check_records(names: list[str], records: dict[str, bytes]) -> None:
    # torch's reader ignores case: of two equal names it might read the one not checked here.
    if len({n.casefold() for n in names}) != len(names):
        raise _Unsafe("two records have the same name")
    raw: set[str] = set()
    for name, content in records.items():
        if re.fullmatch(r"data/(weights|constants)/\w+_config\.json", name):
            folder = name.rpartition("/")[0]
            for entry in json.loads(content)["config"].values():
                if entry["use_pickle"] is not False:
                    raise _Unsafe(f"{name} declares a pickle")
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
            raise _Unsafe(f"record {name} is neither JSON nor a raw tensor")


def _check_graph(model: dict[str, Any]) -> None:
    if model.get("guards_code") or model["graph_module"].get("treespec_namedtuple_fields"):
        raise _Unsafe("it contains code")
    for key, value in _strings(model):
        if key == "target" and not TARGET.fullmatch(value):
            raise _Unsafe(f"{value[:80]!r} is not an ATen operator")
        if key == "expr_str" and not _is_shape(value):
            raise _Unsafe(f"{value[:80]!r} is not a shape expression")
        if key in ("in_spec", "out_spec") and TREE.search(value):
            raise _Unsafe("an argument is not a tensor")


def _is_shape(text: str) -> bool:
    """Return whether an expression is arithmetic of integers and symbols such as `s31`."""
    text = re.sub(r"'[a-z]{1,4}\d+'", "0", text)
    words = set(re.findall(r"[^\W\d]\w*", text))
    plain = re.fullmatch(r"[\w\s(),=+\-*/%<>!]*", text) is not None
    return plain and all(SYMBOLIC.fullmatch(word) for word in words)


def _strings(value: Any, key: str = "") -> Any:
    """Yield every string in a JSON value, with its key."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _strings(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner, key)
    elif isinstance(value, str):
        yield key, value
