"""Pairs exported for another repository's program, and its output folder scored."""

import subprocess
import sys

import numpy as np
import pytest

from pipeline import cli
from pipeline.comparison import collect, compare
from pipeline.config.schema import CompareConfig
from pipeline.evaluation import results
from tests.support.pairs import SIZE, crops, image_set, mask_set

# Each reads and writes files as that repository's program does (advimman/lama bin/predict.py and
# saicinpainting/evaluation/data.py; fenglinglwb/MAT generate_image.py), and fills with the mean of
# the known pixels.
FILL = """
import glob, os, sys
import numpy as np
from PIL import Image

def fill(image, hole, out):
    pixels = np.array(Image.open(image).convert("RGB"))
    pixels[hole] = np.round(pixels[~hole].mean(0))
    os.makedirs(os.path.dirname(out), exist_ok=True)
    Image.fromarray(pixels).save(out)

def gray(path):
    return np.array(Image.open(path).convert("L"))

indir, outdir = sys.argv[1:]
"""
PROGRAMS = {
    "pairs": """
for mask in glob.glob(f"{indir}/*_mask.png"):
    key = os.path.basename(mask).removesuffix("_mask.png")
    fill(f"{indir}/{key}.png", gray(mask) > 127, f"{outdir}/{key}.png")
""",
    "lama": """
indir += "/"
for mask in sorted(glob.glob(os.path.join(indir, "**", "*mask*.png"), recursive=True)):
    out = os.path.join(outdir, os.path.splitext(mask[len(indir):])[0] + ".png")
    fill(mask.rsplit("_mask", 1)[0] + ".png", gray(mask) > 0, out)
""",
    "mat": """
images, masks = (sorted(glob.glob(f"{indir}/{name}/*.png")) for name in ("images", "masks"))
assert len(images) == len(masks) > 0
for image, mask in zip(images, masks):
    fill(image, gray(mask) / 255.0 == 0, f"{outdir}/{os.path.basename(image)}")
""",
}


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    out = tmp_path_factory.mktemp("sets")
    words = [f"data.url={image_set(out / 'i', crops(2))}", f"masks.url={mask_set(out / 'm')}"]
    return ["evaluate", *words, f"protocol.size={SIZE}", "protocol.name=mine", "images=0"]


@pytest.mark.parametrize("layout", PROGRAMS)
def test_a_program_of_each_repository_fills_our_pairs_and_becomes_a_row(layout, words, tmp_path):
    def run(*more):
        assert cli.main([*words, *more]) == 0

    run(f"export={tmp_path}/in", f"layout={layout}")
    program = [sys.executable, "-c", FILL + PROGRAMS[layout]]
    subprocess.run([*program, f"{tmp_path}/in", f"{tmp_path}/out"], check=True)
    theirs, ours = (f"{tmp_path}/runs/evaluation/{name}.parquet" for name in ("theirs", "ours"))
    run(f"predictions={tmp_path}/out", "name=LaMa, authors", f"out={theirs}")
    run("model=mean_color", f"out={ours}")

    # The same fill by our own code: equal, so neither names nor the masks' polarity were mixed up.
    scores, expected = results.load(theirs)[0], results.load(ours)[0]
    for column in ("name", "ratio"):
        assert scores[column] == expected[column]
    for column in ("psnr", "ssim_gauss11_rgb", "l1"):
        assert np.allclose(scores[column], expected[column], rtol=1e-3)

    compared = compare.main(CompareConfig(root=f"{tmp_path}/runs"))
    rows = {row["label"]: row for row in compared["rows"]}
    assert {row["block"] for row in rows.values()} == {""}, "in one column with ours"
    assert "weights and code not verified" in rows["LaMa, authors"]["provenance"]
    proof = rows["LaMa, authors"]["receipts"]["psnr"]["model"]
    assert proof.endswith("; weights and code were not verified")
    assert collect.collect(f"{tmp_path}/runs")[0].facts["sha256"] in proof
