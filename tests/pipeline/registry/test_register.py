"""What `register` stores: an archive that is the trained network, and nothing but a network."""

import io
import json
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.inpainter import Inpainter
from pipeline.config.schema import RegisterConfig
from pipeline.config.values import checked_name
from pipeline.inference import sources
from pipeline.registry import register
from pipeline.runs import checkpoints
from pipeline.runs.folder import folder_at
from pipeline.runs.run_json import read_run_json
from pipeline.tracking import model_versions
from pipeline.tracking.client import connect, tracking_uri
from pipeline.training import checkpointing
from tests.support.trained import finished_run, scored

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.slow  # exports a network, and loads it in a fresh interpreter


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A folder of runs with one registered run; exporting takes seconds, so once."""
    root = tmp_path_factory.mktemp("registry") / "runs"
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.environ["XDG_CACHE_HOME"] = str(root.parent / "cache")
    run = finished_run(root / "first", uri=tracking_uri(str(root)))
    scored(run, 21.5)
    yield root, run, register.main(RegisterConfig(run=run))
    os.environ.pop("XDG_CACHE_HOME")


@pytest.fixture(autouse=True)
def embedded(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def files(store, tmp_path_factory):
    """The logged model's files."""
    root, _, registered = store
    folder = tmp_path_factory.mktemp("files")
    model_versions.download(tracking_uri(str(root)), registered["model_id"], "", folder)
    return folder


def client(store):
    return connect(tracking_uri(str(store[0])))


def random_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def hole(height, width):
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : height // 2, width // 3 : width // 2] = 255
    return mask


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_archive_is_the_trained_network_for_any_batch_and_size(store):
    root, run, registered = store
    loaded, info = sources.load_archive(registered["model_uri"], root=str(root))
    eager = Inpainter(checkpoints.load_generator(run)[0]).eval()
    for batch, height, width in ((1, 1, 1), (3, 61, 47), (2, 96, 130)):
        image = torch.rand(batch, 3, height, width)
        mask = (torch.rand(batch, 1, height, width) > 0.6).float()
        with torch.inference_mode():
            expected = eager(image, mask)
        torch.testing.assert_close(loaded(image, mask), expected, rtol=0, atol=1e-6)
        assert torch.equal(loaded(image, mask) * (1 - mask), image * (1 - mask))
    assert (info["version"], info["name"], info["network"]) == (1, "inpaint-msanet", "msanet")


def test_the_version_says_where_it_comes_from(store):
    _, run, registered = store
    version = client(store).get_model_version("inpaint-msanet", "1")
    tags = version.tags
    assert tags["lacuna.run"] == run
    assert tags["lacuna.run_id"] == read_run_json(run)["mlflow_run_id"] == version.run_id
    assert tags["lacuna.dataset"] == "ab" * 32
    assert tags["lacuna.images_seen"] == "1000"
    assert tags["lacuna.sha256"] == registered["sha256"]
    card = version.description
    assert "## Limits" in card and "## License" in card and "ab" * 32 in card
    assert "Protocol msanet, 360 pairs of split test, on the composite" in card
    assert f'load_model("models:/{registered["model_id"]}")' in card
    assert f"msanet, {int(tags['lacuna.parameters']) / 1e6:.2f} M weights" in card
    (row,) = re.findall(r"\| \(0.1,0.2\] \| 60 \| (\S+) \| \[(\S+), (\S+)\] \| 0.8000 \|", card)
    mean, low, high = map(float, row)
    assert abs(mean - 21.5) < 1 and low < mean < high
    assert read_run_json(run)["pinned"] == [1000], "retention must not delete its checkpoint"


def test_the_logged_model_belongs_to_the_run(store):
    _, run, registered = store
    logged = client(store).get_logged_model(registered["model_id"])
    assert logged.source_run_id == read_run_json(run)["mlflow_run_id"]
    assert str(logged.status).endswith("READY")
    (made,) = client(store).get_run(logged.source_run_id).outputs.model_outputs
    assert (made.model_id, made.step) == (registered["model_id"], 1000)


def test_the_same_weights_are_registered_once(store):
    _, run, registered = store
    assert register.main(RegisterConfig(run=run)) == registered
    assert len(model_versions.versions(client(store), "inpaint-msanet")) == 1


def test_a_run_that_was_never_scored_names_its_evaluation_as_what_is_next(store):
    _, run, registered = store
    folder = Path(run, "evaluation")
    folder.rename(Path(run, "aside"))
    try:
        again = register.main(RegisterConfig(run=run))
    finally:
        Path(run, "aside").rename(folder)
    assert "next" not in registered
    assert f"evaluate checkpoint={run}/checkpoints/000000001000" in again.pop("next")
    assert again == registered


def test_requirements_are_pinned_to_what_ran(files):
    lines = (files / "requirements.txt").read_text().split()
    expected = {"mlflow", "torch", "numpy", "Pillow", "opencv-python-headless"}
    assert {line.partition("==")[0] for line in lines} == expected
    assert f"torch=={torch.__version__.partition('+')[0]}" in lines


def test_the_files_hold_no_pickle_and_no_path_of_this_machine(files):
    with zipfile.ZipFile(files / sources.ARCHIVE) as packed:
        content = {name: packed.read(name) for name in packed.namelist()}
    for name, data in content.items():
        assert not data.startswith((b"\x80\x02", b"\x80\x04", b"PK")), name
    joined = b"".join(content.values())
    assert str(ROOT).encode() not in joined
    assert b".py" not in joined


CLEAN = """
import json, sys
sys.path[:] = [p for p in sys.path if "site-packages" not in p] + [{packages!r}]
import io, mlflow, numpy as np, pandas as pd
from PIL import Image
model = mlflow.pyfunc.load_model({folder!r})
golden = {{n: open({folder!r} + "/artifacts/golden/" + n + ".png", "rb").read()
          for n in ("image", "mask", "filled")}}
pixels = {{n: np.array(Image.open(io.BytesIO(b))) for n, b in golden.items()}}
rows = pd.DataFrame({{"image": [golden["image"]], "mask": [golden["mask"]]}})
(answer,) = model.predict(rows)
from_bytes = np.array(Image.open(io.BytesIO(answer["image"])))
(two, small) = model.predict({{"image": [pixels["image"], pixels["image"][:20, :30]],
                             "mask": [pixels["mask"], pixels["mask"][:20, :30]]}})
example = model.predict(model.input_example)
errors = []
for bad in ({{"image": [b"not an image"], "mask": [golden["mask"]]}},
            {{"image": [golden["image"]], "mask": [golden["mask"][:40]]}},
            {{"image": [pixels["image"]], "mask": [pixels["mask"][:5]]}},
            {{"image": [pixels["image"] / 255.0], "mask": [pixels["mask"]]}},
            {{"image": [np.zeros((600, 600, 3), np.uint8)], "mask": [np.zeros((600, 600), int)]}}):
    try:
        model.predict(bad)
        errors.append("none")
    except mlflow.exceptions.MlflowException as error:
        errors.append(str(error))
known = pixels["mask"] == 0
print(json.dumps({{
    "ours": [m for m in sys.modules if m.split(".")[0] in ("pipeline", "models", "shards")],
    "golden": int(abs(from_bytes.astype(int) - pixels["filled"]).max()),
    "arrays": bool((two["image"] == from_bytes).all()),
    "known": bool((from_bytes[known] == pixels["image"][known]).all()),
    "small": list(small["image"].shape),
    "example": example[0]["image"] == answer["image"],
    "sha256": answer["sha256"],
    "errors": errors,
}}))
"""


def test_it_loads_and_answers_in_an_interpreter_without_our_code_or_pickle(store, files, tmp_path):
    code = CLEAN.format(packages=sysconfig.get_path("purelib"), folder=str(files))
    env = {**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "PYTHONPATH": ""}
    env["LACUNA_MAX_PIXELS"] = str(512 * 512)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=env,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    stored = ["pipeline", "pipeline.inference"]
    stored += ["pipeline.inference.images", "pipeline.inference.tiling", "shards"]
    stored += [
        f"shards.{name}"
        for name in ("files", "formats", "mask_file", "metadata", "objects", "store")
    ]
    assert sorted(answer["ours"]) == stored
    assert answer["golden"] <= 1 and answer["known"] and answer["arrays"] and answer["example"]
    assert answer["small"] == [20, 30, 3]
    assert answer["sha256"] == store[2]["sha256"]
    expected = (
        "not a PNG, JPEG or WebP",
        "not a PNG, JPEG or WebP",
        "mask of the image's size",
        "integers from 0",
        "pixels",
    )
    for error, words in zip(answer["errors"], expected, strict=True):
        assert words in error and "row 0" in error, error


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("models:/inpaint-msanet@champion", "no alias 'champion' at sqlite:///"),
        ("models:/inpaint-msanet/7", "no version 7 at sqlite:///"),
        ("models:/inpaint-msane/1", "mlflow.db; there are: inpaint-msanet"),
        ("models:/a b/1", "invalid name of a registered model"),
        ("models:/a/b/c", "invalid models:"),
        ("nothing-here.pt2", "no such file; use models:/NAME@champion"),
    ],
)
def test_a_model_that_is_not_there_is_answered_with_what_is(store, uri, words):
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        sources.load_archive(uri, root=str(store[0]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["inpaint-msanet", "inpaint-msanet@champion"])
def test_a_name_without_models_is_read_as_its_champion(store, monkeypatch, name):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri(str(store[0])))
    with pytest.raises(ValueError, match="inpaint-msanet has no alias 'champion' at sqlite"):
        sources.load(name)
    with pytest.raises(ValueError, match="inpaint-msanet has no alias 'other' at sqlite"):
        sources.load("inpaint-msanet@other")


def test_a_registered_model_of_another_network_is_refused(store):
    _, run, _ = store
    client(store).create_registered_model("inpaint-other", tags={"lacuna.network": "musical"})
    with pytest.raises(
        ValueError, match="model inpaint-other is for musical: choose another name= for msanet"
    ):
        register.main(RegisterConfig(run=run, name="inpaint-other"))
    client(store).create_registered_model("foreign")
    with pytest.raises(ValueError, match="was not created by `register`"):
        register.main(RegisterConfig(run=run, name="foreign"))


@pytest.mark.parametrize("name", ["a/b", "", "a:b", "-x", "ä", "x" * 101])
def test_a_bad_name_is_refused_before_anything_is_exported(store, name):
    with pytest.raises(ValueError, match="invalid name of a registered model"):
        checked_name(name)


def test_a_generator_that_gives_nan_is_not_registered(store):
    root, _, _ = store
    run = finished_run(root / "broken", seed=5)
    found = checkpoints.find(run)
    tensors = found.read("generator")
    name = next(k for k in tensors if k.endswith("weight"))
    tensors[name].fill_(float("nan"))
    saver = checkpointing.Saver(folder_at(run), 3)
    saver.save(
        2000, {"generator": tensors}, {k: found.state[k] for k in ("model", "dataset", "metrics")}
    )
    saver.close()
    with pytest.raises(ValueError, match="non-finite pixels"):
        register.main(RegisterConfig(run=run, checkpoint="2000"))
    assert len(model_versions.versions(client(store), "inpaint-msanet")) == 1


def test_the_lines_on_the_card_fill_the_hole(store, tmp_path):
    root, _, _ = store
    card = client(store).get_model_version("inpaint-msanet", "1").description
    code = card.partition("```python\n")[2].partition("```")[0]
    assert len(code.splitlines()) == 6
    code = code.replace("http://127.0.0.1:5000", tracking_uri(str(root)))
    image = random_image(70, 90)
    (tmp_path / "image.png").write_bytes(png(image))
    (tmp_path / "mask.png").write_bytes(png(hole(70, 90)))
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    filled = np.asarray(Image.open(tmp_path / "filled.png"))
    known = hole(70, 90) == 0
    assert (filled[known] == image[known]).all() and (filled[~known] != image[~known]).any()
