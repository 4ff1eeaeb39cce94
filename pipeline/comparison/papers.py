"""The papers' printed tables (`conf/paper_tables.yaml`), and how far they compare with ours.

The authors published neither their image–mask pairs nor their scripts, so no printed number is of
the same pairs as ours; at best the protocol is the same. Every cell carries its status.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import yaml

from pipeline.config.compose import CONF

FILE = CONF / "paper_tables.yaml"
MAIN = {"msanet": "6", "musical": "musical/1"}  # the main results of each protocol
LIU = 12_000  # masks of Liu et al.'s test set
UNPUBLISHED = "same protocol, but its pairs are unpublished"


@lru_cache
def load() -> dict[str, Any]:
    """Return `papers`, `datasets` and `tables` of the file; do not modify them."""
    document: dict[str, Any] = yaml.safe_load(FILE.read_bytes())
    return document


def table(name: str) -> dict[str, Any]:
    """Return a table by its name (`6`, `musical/1`), with its title and its source, a paper."""
    printed = load()["tables"][name]
    paper = load()["papers"][printed["paper"]]
    title = f"{paper['name']}, table {name.rpartition('/')[2]}: {printed['caption']}"
    return {**printed, "title": title, "source": paper}


def dataset(name: str) -> dict[str, Any]:
    """Return a printed dataset.

    It has a `title`, the `names` of sharded sets of the same images, the tested `split` and its
    number of `images`, and the `data` group of its recipe.
    """
    return dict(load()["datasets"][name])


@lru_cache
def short_side(data: str) -> int | None:
    """Return the `resize_short` of a group under `conf/data/`; None: images are not resized."""
    group: dict[str, Any] = yaml.safe_load((CONF / "data" / f"{data}.yaml").read_bytes())
    known: int | None = (
        group["resize_short"] if "resize_short" in group else short_side(group["defaults"][0])
    )
    return known


def provenance(paper: str, row: Mapping[str, Any]) -> str:
    """Say who measured a printed row, with whose weights, and the training masks if known."""
    if row.get("experiment"):
        text = f"measured by the authors of {paper}"
    elif row["by"] == "copied":
        text = f"copied by the authors of {paper} from {row['from']}"
    else:
        text = f"run by the authors of {paper}: {row['from']}"
    if row.get("trained_on"):
        text += f"; trained on {row['trained_on']}"
    return text


def status(
    printed: Mapping[str, Any],
    block: Mapping[str, Any],
    row: Mapping[str, Any],
    metric: str,
    ours: Mapping[str, Any] | None,
) -> str:
    """Say whether a printed cell follows the same protocol as our results, or how it differs.

    printed: the table; ours: facts of an evaluation, None if there is none.
    """
    if ours is None:
        return "no evaluation of ours to compare with"
    differs = []
    known = dataset(row.get("dataset", block["dataset"]))
    if ours["dataset_name"] not in known["names"]:
        differs.append(f"images ({known['title']}, ours {ours['dataset_name']})")
    else:
        differs += _test_set_differences(known, ours)
    if ours["protocol"] != printed["protocol"]:
        differs.append(f"protocol ({printed['protocol']}, ours {ours['protocol']})")
    if printed["masks"] == "nvidia":
        count = ours.get("masks_count", LIU)  # absent in tables of earlier versions
        if ours.get("masks_name") != "imported":
            differs.append("masks (Liu et al.'s test set, ours drawn)")
        elif count < 0.9 * LIU:  # an import skips masks outside the buckets
            differs.append(f"masks (Liu et al.'s {LIU}, ours {count} imported)")
    if row.get("size", 256) != ours["size"]:
        differs.append(f"size ({row.get('size', 256)}, ours {ours['size']})")
    if metric == "ssim":
        window = row.get("ssim_window", block.get("ssim_window", printed["source"]["ssim"]))
        if window != ours["ssim"]:
            differs.append(f"SSIM window ({window}, ours {ours['ssim']})")
    return f"differs in {', '.join(differs)}" if differs else UNPUBLISHED


def _test_set_differences(known: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Say how our choice of images of the same data set differs from the paper's test set."""
    differs = []
    if ours["split"] != known["split"]:
        differs.append(f"split ({known['split']}, ours {ours['split']})")
    images = ours.get("images") or known["images"]  # absent in tables of earlier versions
    if images < known["images"]:
        differs.append(f"number of images ({known['images']}, ours {images})")
    if (short := short_side(known["data"])) != ours["resize_short"]:
        scale = ours["resize_short"] or "as stored"
        differs.append(f"scale (short side {short}, ours {scale})")
    return differs
