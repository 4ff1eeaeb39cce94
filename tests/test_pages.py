"""Every command of every page is run on toy downloads, rendered for a cluster, or composed.

Slow: the commands of `RUN`, in order. Fast: each `submit` line is rendered and every other command
line composed and checked. What is neither is in `ELSEWHERE`, with the reason.
"""

import io
import re
import shlex
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from markdown_it import MarkdownIt
from PIL import Image

from pipeline.cli import SHORT, _options, main
from pipeline.comparison import papers
from pipeline.comparison.compare import build
from pipeline.config.commands import COMMANDS, positional
from pipeline.config.compose import compose
from pipeline.training import flops
from tests.support.trained import finished_run

ROOT = Path(__file__).resolve().parent.parent
SLURM = "scheduler: slurm\ngpus_per_node: 8\ncode: image\npartition: gpu\n"
PODS = "scheduler: kubernetes\ngpus_per_node: 8\ncode: image\nimage: r/x@sha256:0\n"
COUNTS = {"train": 60, "val": 3, "test": 2}
RATIOS = (0.05, 0.15, 0.25, 0.35, 0.45, 0.55)


PAGES = subprocess.run(
    ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True
).stdout.split()
# Pages whose commands run: all of README.md in test_readme.py, the others here.
RUN = ("README.md", "docs/table6.md", "docs/musical-tables.md")
COMPOSED = {
    "docs/adding-a-method.md": "test_outside.py runs it with the page's files",
    "docs/compare-with-others.md": "needs their programs; test_other_programs.py runs stand-ins",
    "docs/figures.md": "benchmarks, which tests/pipeline/bench runs smaller",
    "docs/first-hour.md": "a published network; test_imports.py reads files as published",
    "docs/showcase.md": "needs Debian's packages and an hour; test_showcase.py reads it",
    "docs/metrics.md": "published weights; test_field_metrics.py runs it on weights of tests",
    "jobs/kubernetes.md": "a job on a cluster",
    "jobs/slurm.md": "a site's SLURM; tests/jobs runs a private one",
}
ELSEWHERE = {
    "python -m pipeline train methods.path=DIR": "test_outside.py runs it",
    "python bin/predict.py": "LaMa's",
    "python generate_image.py": "MAT's",
    ".": "a shell's",
    "export": "a shell's",
    "cp": "a shell's",
    "python .ci/showcase.py": "downloads packages of Debian",
    "curl": "needs a served model; test_pyfunc.py sends it",
    "docker": "needs docker and a registry; tests of the Dockerfile are in .ci/run",
    "kubectl": "needs a cluster",
    "scontrol": "needs a job",
    ".venv/bin/pre-commit": "needs pre-commit, which is not installed for tests",
    ".venv/bin/python -m pip": "needs a network",
    ".venv/bin/python -m pytest": "is how this test was started",
    "python jobs/deploy/server/accounts.py": "tests/pipeline/tracking/test_production.py runs it",
}


def blocks(page):
    """Yield (language, text) of each block of code; an indented one has no language."""
    for token in MarkdownIt().parse((ROOT / page).read_text()):
        if token.type in ("fence", "code_block"):
            yield token.info, token.content


def command_lines(page):
    """The commands of a page's ```sh blocks: without comments, continued lines joined."""
    text = "\n".join(content for language, content in blocks(page) if language == "sh")
    for line in text.replace("\\\n", " ").splitlines():
        found = shlex.join(shlex.split(line, comments=True))
        for command in found.split(" '&&' "):
            if command:
                yield re.sub(r"^(\w+=\S* )+(?=\S)", "", command)  # variables in front


def commands(page):
    """The page's lines of `python -m pipeline`."""
    return [line for line in command_lines(page) if line.startswith("python -m pipeline ")]


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_its_language(page):
    assert {language for language, _ in blocks(page)} <= {"sh", "python", "yaml", "text"}
    assert not [line for line in command_lines(page) if "…" in line]


def test_every_page_with_commands_is_run_or_says_why_not():
    assert {page for page in PAGES if commands(page)} == {*RUN, *COMPOSED}


@pytest.mark.parametrize("page", [page for page in PAGES if list(command_lines(page))])
def test_every_command_is_composed_or_listed(page, sites, capsys):
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()
    for line in command_lines(page):
        words = shlex.split(line)
        if any(line.startswith(f"{name} ") for name in ELSEWHERE):
            continue
        if line.startswith("python -m pipeline "):
            composed(words[3:], capsys)
        else:
            assert words[0] == "make" and words[1] in targets, line


def composed(words, capsys):
    """Render a `submit` line; compose and check any other command line."""
    command, args = words[0], words[1:]
    flags = [arg for arg in args if arg.startswith("-")]
    assert set(flags) <= set(_options(command)), words
    if command == "submit":
        status = main([command, *(arg for arg in args if arg not in flags), "--dry-run"])
        said = capsys.readouterr()
        assert status == 0, f"{words}\n{said.err}"
        found = said.out.count("#!/bin/bash") or said.out.count("dependsOn") + 1
        assert found == words.count("then") + 1
        return
    args = [SHORT.get((command, arg), arg) for arg in args if arg not in ("--dry-run", "--json")]
    spec = COMMANDS[command]
    spec.check(compose(command, positional(spec, args)).config)


@pytest.mark.parametrize(
    "line",
    [
        "train experiment=msanet/table6/places data.url=sets/a",
        "train experiment=quickstart data.ulr=sets/a",
        "train experiment=quickstart batch=0",
        "submit train experiment=musical/paris data.url=s cluster=SITE cluster.nodes=4",
        "submit shard out=sets/a cluster=SITE",
        "logs ID -g",
        "bench nothing",
    ],
)
def test_a_line_that_has_rotted_is_found(line, sites, capsys):
    with pytest.raises((AssertionError, ValueError)):
        composed(line.split(), capsys)


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
def sites(tmp_path, monkeypatch):
    """An empty folder with the clusters SITE and PODS, in the environment of a new user."""
    monkeypatch.chdir(tmp_path)
    # Counting takes minutes for a sweep over all recipes; test_flops.py counts.
    monkeypatch.setattr(flops, "estimate", lambda config: 172e9)
    for name in ("MLFLOW_TRACKING_URI", "AWS_PROFILE", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    for name, text in (("SITE", SLURM), ("PODS", PODS)):
        path = tmp_path / "site" / "cluster" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setenv("LACUNA_CONF", str(tmp_path / "site"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


@pytest.fixture
def toy(sites):
    downloads = sites / "downloads"
    places(downloads / "places2")
    paris(downloads / "paris")
    celeba(downloads / "celeba")
    masks(downloads / "test_mask.zip")
    return sites


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN[1:])
def test_a_page_s_commands_run_in_order(toy, page, capsys):
    for line in commands(page):
        words = shlex.split(line)[3:]
        # The published weights are not here; a run's checkpoint takes the place of its training.
        words += ["weights=random"] if words[0] == "train" else []
        if words[0] in ("train", "submit") and "--dry-run" not in words:
            words.append("--dry-run")
        if words[0] == "evaluate":
            run = words[1].removeprefix("checkpoint=").removesuffix("/checkpoints/best")
            finished_run(Path(run))
        if words[0] in ("sync", "fetch", "import"):
            continue  # need a run that a job left, a network, files that others published
        status = main(words)
        said = capsys.readouterr()
        assert status == 0 or words[0] == "doctor", f"{line}\n{said.err[-2000:]}"
        if words[0] == "compare":
            assert "ours" in said.out or "run@" in said.out


HOURS = [  # page, recipe, its GFLOP per image and images, and the row with the hours on n GPUs
    *(("table6.md", "msanet/table6/places2", 175, n, rf"\| {n} \| {16 // n} \|")
      for n in (1, 2, 4, 8)),
    ("musical-tables.md", "musical/paris", 230, 1, r"\| 1 \| 230 \| 447,000 \| 1.0e17 \|"),
    ("musical-tables.md", "musical/places", 230, 1, r"\| 2 \| 230 \| 350,000 \| 8.1e16 \|"),
    ("musical-tables.md", "musical/celeba", 170, 1, r"\| 3 \| 170 \| 1,461,096 \| 2.5e17 \|"),
]  # fmt: skip


@pytest.mark.parametrize(("page", "recipe", "gflop", "gpus", "row"), HOURS)
def test_the_hours_of_a_page_are_its_recipe_s(page, recipe, gflop, gpus, row):
    text = (ROOT / "docs" / page).read_text()
    ((start, *printed),) = re.findall(rf"({row}) (\S+) \| (\S+) \|", text)
    config = compose("train", [f"experiment={recipe}"]).config
    flop = gflop * 1e9 * config.max_images
    assert printed == [f"{flop / gpus / r / 0.3 / 3600:.1f}" for r in (312e12, 989e12)]
    if "e1" in start:
        assert f"| {config.max_images:,} |" in start
        assert float(start.split("|")[-2]) == pytest.approx(flop, rel=0.03)
    else:
        assert f"{gflop} GFLOP per image, {flop / 1e18:.2f}e18 FLOP" in text


@pytest.mark.parametrize(
    ("recipe", "gflop"),
    [
        pytest.param(r, g, marks=[pytest.mark.slow] if "musical" in r else [])
        for r, g in dict.fromkeys((recipe, gflop) for _, recipe, gflop, _, _ in HOURS)
    ],
)
def test_the_flop_of_a_page_are_those_that_a_dry_run_prints(recipe, gflop):
    words = [f"experiment={recipe}", "weights=random", "precision=fp32", "threads=1"]
    assert round(flops.estimate(compose("train", words).config) / 1e9) == gflop


@pytest.mark.parametrize(
    ("page", "table", "label", "dataset"),
    [
        ("table6", "6", "msanet/table6/places2", "places2"),
        ("musical-tables", "musical/1", "musical/paris", "paris"),
        ("musical-tables", "musical/2", "musical/places", "canyon"),
        ("musical-tables", "musical/3", "musical/celeba", "celeba"),
    ],
)
def test_the_command_of_an_empty_row_is_the_page_s(page, table, label, dataset):
    """`compare table=6` prints the page's commands, with placeholders for its folders."""
    (command,) = (r.missing for r in build([], table, None, None).rows if r.label == label)
    names = {rf"downloads/({dataset}|places2)": "DOWNLOAD", f"sets/{dataset}": "SET",
             "sets/masks": "MASKS", rf"runs/({dataset}|table6)": "RUN",
             r"downloads/test_mask\.zip": "test_mask.zip"}  # fmt: skip
    lines = commands(f"docs/{page}.md")
    for old, new in names.items():
        lines = [re.sub(rf"{old}(?![\w-])", new, line) for line in lines]
    for part in command.split(" && "):
        wanted = {word for word in shlex.split(part) if word != "protocol=msanet"}  # the default
        assert any(wanted <= set(shlex.split(line)) for line in lines), part


def test_a_row_whose_objective_compares_published_features_fetches_them():
    missing = {row.label: row.missing for row in build([], "6", None, None).rows if row.missing}
    for recipe, fetched in (("pconv", "vgg16"), ("edgeconnect", "vgg19"), ("gmcnn", "vgg19")):
        assert f" && python -m pipeline fetch {fetched} && " in missing[f"compare/{recipe}"]
    assert "fetch" not in missing["compare/deepfill"] + missing["msanet/table6/celeba"]
    assert set(papers.load()["tables"]) >= {"6", "musical/1", "musical/2", "musical/3"}
