"""The command blocks of pages in order, on toy downloads, or rendered for a cluster."""

import io
import re
import shlex
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.cli import main
from pipeline.comparison import papers
from pipeline.comparison.compare import build
from pipeline.training import flops
from tests.support.trained import finished_run

ROOT = Path(__file__).resolve().parent.parent
SLURM = "scheduler: slurm\ngpus_per_node: 8\ncode: image\npartition: gpu\n"
PODS = "scheduler: kubernetes\ngpus_per_node: 8\ncode: image\nimage: r/x@sha256:0\n"
COUNTS = {"train": 60, "val": 3, "test": 2}
RATIOS = (0.05, 0.15, 0.25, 0.35, 0.45, 0.55)


def commands(page):
    """The command lines of a page's ```sh blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "docs" / page).read_text(), re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    assert all(line.startswith("python -m pipeline ") for line in lines)
    return lines


def picture(path, number, width, height):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    Image.fromarray(noise).resize((width, height), Image.BICUBIC).save(path)


def places(folder):
    listed = {"train": [], "val": []}
    for i in range(COUNTS["train"]):
        listed["train"].append(f"/c/canyon/{i:08d}.jpg 81")
        picture(folder / "data_256" / "c" / "canyon" / f"{i:08d}.jpg", i, 256, 256)
    for split in ("val", "test"):
        for i in range(COUNTS[split]):
            name = f"Places365_{split}_{i:08d}.jpg"
            listed.setdefault(split, []).append(f"{name} 81")
            picture(folder / f"{split}_256" / name, 100 + i, 256, 256)
    (folder / "places365_train_standard.txt").write_text("\n".join(listed["train"]) + "\n")
    (folder / "places365_val.txt").write_text("\n".join(listed["val"]) + "\n")


def paris(folder):
    for i in range(150):
        picture(folder / "paris_train_original" / f"{i}.JPG", i, 400, 360)
    for i in range(2):
        picture(folder / "paris_eval" / "paris_eval_gt" / f"{i}.png", 200 + i, 400, 360)


def celeba(folder):
    folder.mkdir(parents=True)
    lines = []
    with zipfile.ZipFile(folder / "img_align_celeba.zip", "w") as archive:
        for i in range(300):  # of train and val 1 % is held out
            picture(folder / "face.jpg", i, 178, 218)
            archive.write(folder / "face.jpg", f"img_align_celeba/{i:06d}.jpg")
            lines.append(f"{i:06d}.jpg {0 if i < 250 else 1 if i < 296 else 2}")
    (folder / "face.jpg").unlink()
    (folder / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")


def masks(path):
    """As NVIDIA's archive: 512 x 512, white holes of every ratio."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for number, ratio in enumerate(RATIOS * 2):
            hole = np.zeros((512, 512), np.uint8)
            hole[: round(512 * ratio)] = 255
            file = io.BytesIO()
            Image.fromarray(hole).save(file, "PNG")
            archive.writestr(f"mask/testing_mask_dataset/{number:05d}.png", file.getvalue())


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "AWS_PROFILE", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    for name, text in (("SITE", SLURM), ("PODS", PODS)):
        path = tmp_path / "site" / "cluster" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setenv("LACUNA_CONF", str(tmp_path / "site"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(flops, "estimate", lambda config: 172e9)
    downloads = tmp_path / "downloads"
    places(downloads / "places2")
    paris(downloads / "paris")
    celeba(downloads / "celeba")
    masks(downloads / "test_mask.zip")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", ["table6.md", "musical-tables.md"])
def test_a_page_s_commands_run_in_order(toy, page, capsys):
    for line in commands(page):
        words = shlex.split(line)[3:]
        # The published weights are not here; a run's checkpoint takes the place of its training.
        words = ["weights=random" if w.startswith("weights=") else w for w in words]
        if words[0] in ("train", "submit") and "--dry-run" not in words:
            words.append("--dry-run")
        if words[0] == "evaluate":
            run = words[1].removeprefix("checkpoint=").removesuffix("/checkpoints/best")
            finished_run(Path(run))
        if words[0] == "sync":
            continue  # needs a run that a job left
        status = main(words)
        said = capsys.readouterr()
        assert status == 0 or words[0] == "doctor", f"{line}\n{said.err[-2000:]}"
        if words[0] == "submit":
            stages = words.count("then") + 1
            found = said.out.count("#!/bin/bash") or said.out.count("dependsOn") + 1
            assert found == stages
        if words[0] == "compare":
            assert "ours" in said.out or "run@" in said.out


def hours(flop, rate):
    return flop / rate / 0.3 / 3600


@pytest.mark.parametrize(
    ("page", "flop", "row"),
    [("table6.md", 172e9 * 9.6e6 / n, rf"\| {n} \| \d+ \| (\S+) \| (\S+) \|") for n in (1, 2, 4, 8)]
    + [
        ("musical-tables.md", 230e9 * 1_043_000, r"\| 1 \| .*e17 \| (\S+) \| (\S+) \|"),
        ("musical-tables.md", 230e9 * 350_000, r"\| 2 \| .*e16 \| (\S+) \| (\S+) \|"),
        ("musical-tables.md", 169e9 * 12_784_590, r"\| 3 \| .*e18 \| (\S+) \| (\S+) \|"),
    ],
)
def test_the_hours_of_a_page_multiply_out(page, flop, row):
    text = (ROOT / "docs" / page).read_text()
    (printed,) = re.findall(row, text)
    assert printed == tuple(f"{hours(flop, rate):.1f}" for rate in (312e12, 989e12))


def test_the_command_of_an_empty_row_is_the_page_s():
    """`compare table=6` prints the page's commands, with placeholders for its folders."""
    table = build([], "6", None, None)
    (command,) = (r.missing for r in table.rows if r.label == "msanet/table6/places2")
    names = {"downloads/places2": "DOWNLOAD", "sets/places2": "SET", "sets/masks": "MASKS",
             "runs/table6": "RUN", "downloads/test_mask.zip": "test_mask.zip"}  # fmt: skip
    page = commands("table6.md")
    for part in command.split(" && "):
        wanted = {w for w in shlex.split(part) if not w.startswith("protocol=")}
        for old, new in names.items():
            page = [re.sub(rf"{old}(?![\w-])", new, line) for line in page]
        assert any(wanted <= set(shlex.split(line)) for line in page), part
    assert set(papers.load()["tables"]) >= {"6", "musical/1", "musical/2", "musical/3"}
