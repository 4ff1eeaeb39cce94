"""The showcase model: its card, its photographs, and the file that `quickstart` imports."""

import csv
import hashlib
import subprocess
from collections import Counter
from pathlib import Path

import torch

from pipeline.config.compose import compose
from pipeline.data.photographs import SPLITS
from pipeline.training import imports

RECIPE = "experiment=finetune/showcase"
WEIGHTS = "pipeline/quickstart/showcase/showcase.safetensors"
ROOT = Path(__file__).resolve().parents[3]
CARD = (ROOT / "docs/showcase.md").read_text()
with (ROOT / "pipeline/quickstart/showcase/photographs.tsv").open() as lines:
    ROWS = list(csv.DictReader(lines, delimiter="\t"))


def test_the_card_names_the_file_by_its_hash():
    data = (ROOT / WEIGHTS).read_bytes()
    assert f"`{hashlib.sha256(data).hexdigest()}`" in CARD and len(data) < 8e6


def test_the_imported_weights_fit_both_recipes():
    tensors, _ = imports.tensors_of(imports.SOURCES["showcase"], str(ROOT / WEIGHTS))
    assert all(torch.isfinite(t).all() for t in tensors.values())
    model = imports.SOURCES["showcase"].model
    for recipe in (RECIPE, "experiment=showcase"):
        config = compose("train", [recipe]).config.model
        assert {k: getattr(config, k) for k in model} == model


def test_photographs_that_quickstart_holds_out_are_held_out():
    names = {Path(r["file"]).name: r["split"] for r in ROWS if r["package"] == "skimage"}
    for split in ("val", "test"):
        assert {names.get(name, split) for name in SPLITS[split]} == {split}


def test_the_card_counts_the_photographs():
    assert len({(r["package"], r["file"]) for r in ROWS}) == len(ROWS)
    assert all(r["license"] for r in ROWS)
    splits = Counter(r["split"] for r in ROWS)
    train, val, test = (splits[split] for split in ("train", "val", "test"))
    assert f"{train} for training, {val} for validation, {test} held out" in CARD


def test_snapshots_for_jobs_leave_the_weights_out():
    words = ["git", "check-attr", "export-ignore", WEIGHTS]
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said.endswith("export-ignore: set\n")
