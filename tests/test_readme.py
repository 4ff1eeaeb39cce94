"""The README's commands run unchanged, on one quickstart that these tests share."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli import main
from tests import conftest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()
UNSET = (*conftest.UNSET, "OMP_NUM_THREADS")  # a user's quickstart takes all cores
LINES = [line for line in TEXT.splitlines() if line.startswith("python -m pipeline ")]
BUCKETS = ("(0.1,0.2]", "(0.2,0.3]", "(0.3,0.4]", "(0.4,0.5]", "(0.5,0.6]")


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory):
    """`quickstart` in a folder of its own that looks like the checkout; its result."""
    place = tmp_path_factory.mktemp("quickstart")
    for name in ("pipeline", "models", "shards", "jobs", "conf"):
        (place / name).symlink_to(ROOT / name)
    done = run(place, "quickstart", "--json", timeout=2400)
    assert done.returncode == 0, done.stderr[-4000:]
    return place, json.loads(done.stdout.splitlines()[-1]), done


def run(place, *words, timeout=300):
    environment = {k: v for k, v in os.environ.items() if k not in UNSET}
    environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{place}/runs/quickstart/mlflow.db"
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *words],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.mark.slow
def test_the_trained_network_beats_the_mean_color(quickstart):
    _, result, _ = quickstart
    mean = result["baselines"]["mean_color"]["buckets"]
    for bucket in BUCKETS:
        ours, theirs = result["buckets"][bucket]["psnr"], mean[bucket]["psnr"]
        assert ours >= theirs + 1.5, f"{bucket}: {ours:.2f} dB, mean color {theirs:.2f} dB"


@pytest.mark.slow
def test_quickstart_makes_a_run_a_model_and_an_image(quickstart):
    place, result, _ = quickstart
    out = place / "runs" / "quickstart"
    assert Path(
        result["strip"] if os.path.isabs(result["strip"]) else place / result["strip"]
    ).exists()
    assert {"photographs", "shards", "masks", "run", "mlflow.db"} <= set(os.listdir(out))
    assert re.fullmatch(r"models:/inpaint-msanet/\d+", result["model_uri"])
    assert result["seconds"]["total"] > 0 and result["peak_rss_mb"] < 4000
    assert set(result["baselines"]) == {"mean_color", "harmonic", "telea"}
    assert result["yardsticks"].pop("mean_colour") == result["baselines"]["mean_color"]
    assert result["yardsticks"] == result["baselines"]  # former names


@pytest.mark.slow
def test_the_object_removal_keeps_known_pixels_bit_identical(quickstart):
    import numpy as np
    from PIL import Image

    out = quickstart[0] / "runs" / "quickstart"
    original, mask, filled = (
        np.asarray(Image.open(out / name).convert(mode))
        for name, mode in (
            ("coffee.png", "RGB"),
            ("coffee_mask.png", "L"),
            ("coffee_filled.png", "RGB"),
        )
    )
    known = mask < 128
    assert filled.shape == (389, 597, 3)
    assert (filled[known] == original[known]).all()
    assert (filled[~known] != original[~known]).any()


@pytest.mark.slow
def test_a_second_quickstart_skips_every_step(quickstart):
    place, first, _ = quickstart
    done = run(place, "quickstart", "--json")
    second = json.loads(done.stdout.splitlines()[-1])
    assert second["buckets"] == first["buckets"]
    assert {"train", "evaluate", "register", "predict"} <= set(second["reused"])


def test_a_quickstart_in_a_folder_with_other_files_is_rejected(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    done = run(ROOT, "quickstart", f"out={tmp_path}")
    assert done.returncode == 2 and "holds other files" in done.stderr
    assert os.listdir(tmp_path) == ["letter.txt"]


@pytest.mark.slow
def test_a_step_runs_again_if_its_files_are_missing(quickstart):
    place, first, _ = quickstart
    (place / "runs" / "quickstart" / "coffee_filled_strip.png").unlink()
    dry = run(place, "quickstart", "out=runs/../runs/quickstart", "--dry-run").stdout
    would = [line.split()[1] for line in dry.splitlines() if line.startswith("would")]
    assert would == ["skip"] * 11 + ["run"]
    done = run(place, "quickstart", "--json")
    assert done.returncode == 0, done.stderr
    assert "predict" not in json.loads(done.stdout.splitlines()[-1])["reused"]
    assert (place / first["strip"]).exists()


@pytest.mark.slow
def test_the_readmes_image_is_the_one_that_quickstart_makes(quickstart):
    """Original and mask are identical; the result may differ with the machine that trained."""
    import numpy as np
    from PIL import Image

    place, result, _ = quickstart
    ours, made = (
        np.asarray(Image.open(path).convert("RGB")).astype(int)
        for path in (ROOT / "README.png", place / result["strip"])
    )
    assert ours.shape == made.shape
    rest = made.shape[1] * 2 // 3
    assert (ours[:, :rest] == made[:, :rest]).all()
    assert abs(ours[:, rest:] - made[:, rest:]).mean() < 2


@pytest.mark.slow
def test_the_readmes_commands_run_unchanged(quickstart):
    place = quickstart[0]
    shutil.rmtree(place / "runs" / "readme", ignore_errors=True)
    assert len(LINES) >= 9
    for line in LINES:
        words = shlex.split(line, comments=True)[3:]
        done = run(place, *words)
        assert done.returncode == 0, f"{line}\n{done.stderr[-2000:]}"
    assert (place / "runs" / "readme" / "coffee.png").exists()


SET = "data.url=runs/quickstart/shards"
DRY = {
    "quickstart": ("out=runs/other", r"would run +photographs"),
    "quickstart done": ("out=runs/quickstart", r"(would skip .*\n){11}would skip .* predict"),
    "fetch": ("vgg16 source=/somewhere", r"would read /somewhere/vgg16-397923af.pth"),
    "shard": ("source=runs/quickstart/photographs out=runs/new", r"would read .* write runs/new"),
    "masks": ("out=runs/new", r"would draw 14000 masks of 256x256 into runs/new"),
    "masks done": ("out=runs/quickstart/masks", r"would check that runs/quickstart/masks"),
    "train": (f"experiment=quickstart {SET} run=runs/new", r"would start 6000 .* runs/new, 2 pro"),
    "train on": ("run=runs/quickstart/run max_images=9999", r"would resume at 6000 of 9999 images"),
    "evaluate": (f"model=telea {SET} split=test masks.url=runs/quickstart/masks limit=1",
                 r"would score telea on 7 pairs and write runs/evaluation/msanet-telea-\w+"),
    "register": ("run=runs/quickstart/run", r"would export .*0{5}\d+ and register it as inp"),
    "promote": ("inpaint-msanet", r"would compare inpaint-msanet/1 with champion inpaint"),
    "predict": ("model=telea image=runs/quickstart/coffee.png mask=1,1,9,9 out=runs/new.png",
                r"would fill runs/quickstart/coffee.png by telea and write runs/new.png"),
    "sync": ("runs/quickstart/run", r"would send 0 events of runs/quickstart/run to sqlite"),
    "runs": ("prune root=runs older_than=24h", r"would list, and with delete=true delete, 0 check"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", DRY)
def test_a_dry_run_describes_the_command_and_changes_nothing(quickstart, case, monkeypatch, capsys):
    place = quickstart[0]
    monkeypatch.chdir(place)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}/runs/quickstart/mlflow.db")
    monkeypatch.delenv("LACUNA_CONF", raising=False)

    def files():
        return {p: p.stat().st_mtime_ns for p in place.rglob("runs/**/[!.]*")}

    before = files()
    words, would = DRY[case]
    status = main([case.partition(" ")[0], *words.split(), "--dry-run"])
    output = capsys.readouterr()
    assert status == 0, output.err
    assert re.search(would, output.out.partition("\n\n")[2]), output.out
    assert files() == before


def test_files_that_the_readme_names_exist():
    for path in re.findall(r"\]\(([\w./]+)\)", TEXT):
        assert (ROOT / path).exists(), path
