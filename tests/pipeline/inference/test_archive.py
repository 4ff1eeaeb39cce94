"""Unsafe archives are rejected before torch reads them."""

import hashlib
import json
import os
import pickle
import re
import shutil
import zipfile

import pytest
import torch

from models import GENERATORS
from models.inpainter import Inpainter
from pipeline.inference import archive

pytestmark = pytest.mark.slow  # exports a network


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A valid archive of a small network."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("archive") / "inpainter.pt2"
    archive.save(Inpainter(GENERATORS["msanet"](width=0.0625)).eval(), path)
    return path


def changed(packed, tmp_path, change):
    """The archive with its records passed through `change(name, data) -> data`, and additions."""
    path = tmp_path / "changed.pt2"
    with zipfile.ZipFile(packed) as whole, zipfile.ZipFile(path, "w") as out:
        for name in whole.namelist():
            for new, data in change(name, whole.read(name)):
                out.writestr(new, data)
    return str(path)


def graph(edit):
    def change(name, data):
        if not name.endswith("/models/model.json"):
            return [(name, data)]
        model = json.loads(data)
        edit(model)
        return [(name, json.dumps(model).encode())]

    return change


class Touch:
    def __reduce__(self):
        return os.system, ("touch /tmp/should-not-be-here",)


def pickled_weights(name, data):
    if name.endswith("weights_config.json"):
        data = data.replace(b'"use_pickle": false', b'"use_pickle": true', 1)
    return [(name, data)]


def pickled_example(name, data):
    return [(name, pickle.dumps(Touch()) if "sample_inputs" in name else data)]


def two_of_one_name(name, data):
    return [(name, data), (name.upper(), data)] if name.endswith("weight_0") else [(name, data)]


def call_the_shell(model):
    model["graph_module"]["graph"]["nodes"][5]["target"] = "torch.os.system"


def shape_that_is_code(model):
    text = json.dumps(model["graph_module"]["graph"]["tensor_values"])
    evil = "__import__('os').system('true')"
    text = re.sub(r'"expr_str": "[^"]*"', f'"expr_str": "{evil}"', text, count=1)
    model["graph_module"]["graph"]["tensor_values"] = json.loads(text)


def guard_that_is_code(model):
    model["guards_code"] = ["__import__('os').system('true')"]


def arguments_of_a_foreign_type(model):
    signature = model["graph_module"]["module_call_graph"][0]["signature"]
    signature["in_spec"] = signature["in_spec"].replace("builtins.tuple", "os.PathLike", 1)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (pickled_weights, "declares a pickle"),
        (pickled_example, "neither JSON nor a raw tensor"),
        (two_of_one_name, "two records have the same name"),
        (graph(call_the_shell), "not an ATen operator"),
        (graph(shape_that_is_code), "not a shape expression"),
        (graph(guard_that_is_code), "contains code"),
        (graph(arguments_of_a_foreign_type), "an argument is not a tensor"),
    ],
)
def test_an_archive_with_anything_but_a_network_is_rejected(packed, tmp_path, change, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        archive.load(changed(packed, tmp_path, change))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_an_archive_is_rejected(tmp_path):
    path = tmp_path / "model.pt2"
    for content in (b"", b"PK\x03\x04 torn", pickle.dumps({"a": 1})):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not a torch.export archive"):
            archive.load(str(path))
    with zipfile.ZipFile(path, "w") as other:
        other.writestr("x/readme.txt", "hello")
    with pytest.raises(ValueError, match="neither JSON nor"):
        archive.load(str(path))


def test_a_file_of_another_hash_is_rejected(packed, tmp_path):
    path = tmp_path / "model.pt2"
    shutil.copy(packed, path)
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert archive.load(str(path), expected).sha256 == expected
    with open(path, "ab") as file:
        file.write(b"\0")
    with pytest.raises(ValueError, match="changed or damaged"):
        archive.load(str(path), expected)
