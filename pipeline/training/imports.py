"""`import`: networks that were published as files, as runs of one checkpoint.

`RULES` turn our names of tensors into theirs. Every tensor of a file is used once, or is one of
`DROPPED`; files are safetensors or unpickled as tensors only.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.config.schema import ImportConfig
from pipeline.runs.checkpoints import build_generator
from pipeline.runs.folder import folder_at, held
from pipeline.runs.run_json import place_of, update_run_json
from pipeline.training.checkpointing import Saver
from pipeline.training.weights import unpickled
from shards import store

Tensors = dict[str, Tensor]


class Source(NamedTuple):
    """What others published.

    files: name of each file, "" for any, and the beginning of our names of its tensors. key: where
    its state dict is; None: it is one. rules: patterns in our names, and what they say. change: of
    the tensors. objects: whether the file holds more than tensors, which is not loaded.
    """

    model: dict[str, Any]
    license: str
    files: dict[str, str]
    key: str | None
    rules: tuple[tuple[str, str], ...]
    change: Callable[[Tensors], None] = lambda tensors: None
    objects: bool = False


def _to_rgb(tensors: Tensors) -> None:
    """Exchange red and blue of what was trained on BGR: where the image enters and leaves."""
    first, last = tensors["encoder.0.conv.weight"], tensors["out.weight"]
    tensors["encoder.0.conv.weight"] = first.flip(1)
    last = last.flip(0)
    tensors["out.weight"] = torch.cat((last[:, :-3], last[:, -3:].flip(1)), 1)
    tensors["out.bias"] = tensors["out.bias"].flip(0)


def lama(blocks: int) -> Source:
    """advimman/lama: a checkpoint of PyTorch Lightning; Big LaMa has 18 blocks."""
    up = blocks + 6  # padding, encoder, blocks and their concatenation come first
    return Source(
        {"name": "lama", "blocks": blocks},
        "Apache-2.0",
        {"": ""},
        "state_dict",
        (
            *((rf"^encoder\.{i}\.", f"generator.model.{i + 1}.") for i in range(4)),
            *((rf"^blocks\.{i}\.", f"generator.model.{i + 5}.") for i in range(blocks)),
            *(
                (rf"^decoder\.{i}\.{j}\.", f"generator.model.{up + 3 * i + j}.")
                for i in range(3)
                for j in range(2)
            ),
            (r"^out\.", f"generator.model.{up + 10}."),
            (r"\.layers\.0\.", ".conv1."),
            (r"\.layers\.1\.", ".conv2."),
            (r"\.local\.", ".ffc.convl2l."),
            (r"\.to_global\.", ".ffc.convl2g."),
            (r"\.to_local\.", ".ffc.convg2l."),
            (r"\.spectral\.reduce\.", ".ffc.convg2g.conv1."),
            (r"\.spectral\.fourier\.mix\.", ".ffc.convg2g.fu.conv_layer."),
            (r"\.spectral\.fourier\.norm\.", ".ffc.convg2g.fu.bn."),
            (r"\.spectral\.expand\.", ".ffc.convg2g.conv2."),
            (r"\.norm\.", ".bn_l."),
            (r"\.norm_global\.", ".bn_g."),
        ),
        objects=True,
    )


SOURCES = {
    "edgeconnect": Source(  # knazeri/edge-connect; its test gives G2 the edges of G1 alone
        {"name": "edgeconnect", "merge_edges": False},
        "CC-BY-NC-4.0",
        {"EdgeModel_gen.pth": "edges.", "InpaintingModel_gen.pth": "image."},
        "generator",
        (
            (r"^body\.(\d)\.", r"encoder.\1."),
            (r"^body\.1([0-7])\.layers\.", r"middle.\1.conv_block."),
            (r"^body\.18\.", "decoder.0."),
            (r"^body\.21\.", "decoder.3."),
            (r"^out\.1\.", "decoder.7."),
            (r"parametrizations\.weight\.original", "weight_orig"),
            (r"parametrizations\.weight\.0\._", "weight_"),
        ),
    ),
    "gmcnn": Source(  # shepnerd/inpainting_gmcnn, pytorch/
        {"name": "gmcnn"},
        "MIT",
        {"": ""},
        None,
        (
            *((rf"^columns\.{i}\.(\d+)\.0\.", rf"EB{i + 1}.\1.") for i in range(3)),
            (r"^merge\.0\.", "decoding_layers.0."),
            (r"^out\.", "decoding_layers.1."),
        ),
    ),
    "lama": lama(18),
    "mmagic/pconv": Source(  # open-mmlab/mmagic, configs/partial_conv
        {"name": "pconv", "stem_bias": True},
        "Apache-2.0",
        {"": ""},
        "state_dict",
        (
            *((rf"^encoder\.{i}\.", f"generator.encoder.enc{i + 1}.") for i in range(7)),
            *((rf"^decoder\.{i}\.", f"generator.decoder.dec{7 - i}.") for i in range(6)),
            (r"^out\.", "generator.decoder.dec1.conv."),
            (r"\.norm\.", ".bn."),
        ),
        _to_rgb,
    ),
    "showcase": Source(  # experiment=showcase, docs/showcase.md
        {"name": "pconv", "levels": 6, "width": 0.25, "fill": True},
        "Apache-2.0",
        {"": ""},
        None,
        (),
    ),
}
# Kernels of ones that partial convolutions keep, discriminators, networks of losses and metrics,
# counters.
DROPPED = re.compile(
    r"\.weight_mask_updater$|^(disc|discriminator|loss_\w+|\w+_evaluator)\.|^step_counter$|^iteration$"
)


def theirs(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    """Return the published name of one of our tensors."""
    for pattern, text in rules:
        name = re.sub(pattern, text, name)
    return name


def tensors_of(source: Source, path: str) -> tuple[Tensors, dict[str, str]]:
    """Read our tensors from the published file, or folder of files, and the sha256 of each file."""
    with torch.device("meta"):
        expected = build_generator(source.model).state_dict()
    found: Tensors = {}
    hashes = {}
    for file, prefix in source.files.items():
        url = store.join(path, file) if file else path
        shown = store.display(url)
        try:
            data = store.read(url)
        except OSError as error:
            raise ValueError(
                f"file={shown} cannot be read ({error.strerror or 'no such object'}): give "
                f"{f'the folder that holds {file}' if file else 'the published file'}"
            ) from error
        hashes[store.name(url)] = digest = hashlib.sha256(data).hexdigest()
        # OpenMMLab ends its names with the hash's first digits.
        if (ending := re.search(r"-([0-9a-f]{8})\.pth$", url)) and ending[1] != digest[:8]:
            raise ValueError(f"{shown} has sha256 {digest[:8]}…: it is damaged; fetch it again")
        left = unpickled(data, shown, source.key, source.objects)
        for name, like in expected.items():
            if not name.startswith(prefix):
                continue
            given = left.pop(theirs(name.removeprefix(prefix), source.rules), None)
            if given is None or given.shape != like.shape:
                has = "no such tensor" if given is None else f"{list(given.shape)} there"
                raise ValueError(
                    f"{shown} is not of {source.model['name']}: {name} of {list(like.shape)} is "
                    f"{theirs(name.removeprefix(prefix), source.rules)}, {has}; give the file of "
                    f"another method=, or of its generator"
                )
            found[name] = given
        if unused := sorted(name for name in left if not DROPPED.search(name)):
            raise ValueError(
                f"{shown} holds {len(unused)} tensors that {source.model['name']} has not, first "
                f"{unused[0]}: it is of another network"
            )
    source.change(found)
    return found, hashes


def main(config: ImportConfig) -> dict[str, Any]:
    """Write a run of one checkpoint; returns `{"run", "tensors", "license"}`."""
    source = SOURCES[config.method]
    tensors, hashes = tensors_of(source, config.file)
    run = folder_at(config.out)
    imported = {"from": config.method, "files": hashes, "license": source.license}
    with held(run):
        if run.images_saved or store.exists(store.join(run.url, "run.json")):
            raise ValueError(f"out={store.display(run.url)} holds a run already: give a new folder")
        saver = Saver(run, 1)
        saver.save(0, {"generator": tensors}, {"model": source.model, "imported": imported})
        saver.close()
        update_run_json(run.url, id=run.name, url=place_of(run.url), imported=imported)
    return {"run": run.url, "tensors": len(tensors), "license": source.license}


def dry_run(config: ImportConfig) -> str:
    tensors, _ = tensors_of(SOURCES[config.method], config.file)
    return f"would write {len(tensors)} tensors to {store.display(config.out)}"
