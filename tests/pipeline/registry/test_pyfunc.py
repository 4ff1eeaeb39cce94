"""`jobs/deploy/serve`: a pinned version over HTTP, from an environment without our packages."""

import base64
import io
import json
import os
import re
import subprocess
import sys
import sysconfig
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from pipeline.config.schema import RegisterConfig
from pipeline.registry import register
from pipeline.tracking import client
from tests.support.mlflow_server import Process, free_port
from tests.support.trained import SIMPLE, finished_run

ROOT = Path(__file__).resolve().parents[3]
SERVE = ROOT / "jobs" / "deploy" / "serve"

pytestmark = [pytest.mark.slow, pytest.mark.dist]


@pytest.fixture(scope="module")
def clean_python(tmp_path_factory):
    """An interpreter with the installed packages, except this project."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "installed.pth").write_text(sysconfig.get_path("purelib"))  # without its own .pth
    python = str(folder / "bin" / "python")
    script = folder / "bin" / "uvicorn"  # as pip would have made it there
    script.write_text(f"#!{python}\nfrom uvicorn.main import main\nmain()\n")
    script.chmod(0o755)
    for name in ("pipeline.inference.archive", "models.inpainter", "shards.store", "jobs.spec"):
        done = subprocess.run([python, "-c", f"import {name}"], cwd=folder, capture_output=True)
        assert done.returncode != 0, f"{name} can be imported"
    return python


@pytest.fixture(scope="module")
def served(tmp_path_factory, clean_python):
    root = tmp_path_factory.mktemp("serve")
    uri = client.tracking_uri(str(root / "runs"), f"sqlite:///{root}/runs/mlflow.db")
    run = finished_run(root / "runs" / "run", uri=uri, model=SIMPLE)
    registered = register.main(RegisterConfig(run=run))
    port = free_port()
    env = {
        "PATH": f"{Path(clean_python).parent}:{os.environ['PATH']}",
        "PYTHON": clean_python,
        "PYTHONPATH": "",
        "MLFLOW_TRACKING_URI": uri,
        "MODEL_FOLDER": str(root / "model"),
        "LACUNA_MODEL": registered["model_uri"],
        "LACUNA_MODEL_VERSION": str(registered["version"]),
        "LACUNA_SHA256": registered["sha256"],
        "LACUNA_MAX_PIXELS": str(640 * 480),
        "LACUNA_MAX_MB": "3",
        "HOST": "127.0.0.1",
        "PORT": str(port),
    }
    running = Process([str(SERVE / "start")], root / "serve.log", env, cwd=root)
    try:
        running.wait_for(f"http://127.0.0.1:{port}/ping", 240)
        yield registered, env, f"http://127.0.0.1:{port}"
    finally:
        running.kill()


def pair(height, width, seed=0):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    mask = np.zeros((height, width), np.uint8)
    mask[height // 3 : height // 2, width // 3 : width // 2] = 255
    return image, mask


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return base64.b64encode(buffer.getvalue()).decode()


def png(pixels):
    return encoded(Image.fromarray(pixels))


def post(url, body):
    """Status and text of the answer to a JSON body."""
    return send(url, json.dumps(body).encode())


def send(url, body, kind="application/json", **headers):
    headers = {"Content-Type": kind, **headers}
    request = urllib.request.Request(f"{url}/invocations", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def ask(url, rows):
    status, text = post(url, {"dataframe_split": {"columns": ["image", "mask"], "data": rows}})
    assert status == 200, text
    return json.loads(text)["predictions"]


def decoded(row):
    return np.array(Image.open(io.BytesIO(base64.b64decode(row["image"]))))


def test_pairs_of_any_size_and_mask_are_filled_in_one_request(served):
    registered, env, url = served
    pairs = [pair(61, 47, 1), pair(61, 47, 2), pair(120, 33, 3)]
    pairs[1][1][:10] = 255

    rows = ask(url, [[png(image), png(mask)] for image, mask in pairs])

    for (image, mask), row in zip(pairs, rows, strict=True):
        filled = decoded(row)
        known = mask == 0
        assert filled.shape == image.shape
        assert (filled[known] == image[known]).all() and (filled[~known] != image[~known]).any()
        assert row["version"] == "1"
        assert row["sha256"] == registered["sha256"]


PAGE = (SERVE / "README.md").read_text()
REQUESTS = {
    "form": ["bash", "-c", re.search(r"^curl .*$", PAGE, re.M)[0]],
    "json": [sys.executable, "-c", PAGE.partition("```python\n")[2].partition("```")[0]],
}


@pytest.mark.parametrize("name", REQUESTS)
def test_the_requests_of_the_page_write_the_filled_image(served, tmp_path, name):
    image, mask = pair(61, 47, 1)
    Image.fromarray(image).save(tmp_path / "photo.jpg")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    *program, text = REQUESTS[name]
    text = text.replace("http://localhost:8080", served[2])
    subprocess.run([*program, text], cwd=tmp_path, check=True)
    given = np.array(Image.open(tmp_path / "photo.jpg"))
    filled = np.array(Image.open(tmp_path / "filled.png"))
    assert (filled[mask == 0] == given[mask == 0]).all()
    assert (filled[mask > 0] != given[mask > 0]).any()


# Row 28
@pytest.mark.parametrize("size", [(480, 640), (640, 480), (20, 1500), (517, 513)])
def test_images_of_any_size_within_the_limit_are_filled_in_their_hole(served, size):
    image, mask = pair(*size)
    mask[-5:, -9:] = 255  # a second hole, in a corner
    filled = decoded(*ask(served[2], [[png(image), png(mask)]]))
    assert filled.shape == image.shape
    assert (filled[mask == 0] == image[mask == 0]).all()
    assert (filled[mask > 0] != image[mask > 0]).any()


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
COLORS = Image.fromarray(pair(40, 60)[0])
ALPHA = Image.linear_gradient("L").resize((60, 40))
SEEN = {  # an image, and as what its pixels are seen
    "PNG, profile and alpha": (COLORS.copy(), "PNG", "RGBA", ALPHA),
    "WebP, profile and alpha": (COLORS.copy(), "WEBP", "RGBA", ALPHA),
    "gray PNG, profile and alpha": (COLORS.convert("L"), "PNG", "LA", ALPHA),
    "gray PNG, profile": (COLORS.convert("L"), "PNG", "L", None),
    "JPEG, profile": (COLORS.copy(), "JPEG", "RGB", None),
}


# Row 28
@pytest.mark.parametrize("name", SEEN)
def test_the_profile_the_alpha_and_the_mode_are_kept(served, name):
    image, kind, mode, alpha = SEEN[name]
    if alpha:
        image.putalpha(alpha)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    sent = encoded(image, kind, icc_profile=PROFILE, **options)
    mask = pair(40, 60)[1]
    (row,) = ask(served[2], [[sent, png(mask)]])
    filled = Image.open(io.BytesIO(base64.b64decode(row["image"])))
    before = np.array(Image.open(io.BytesIO(base64.b64decode(sent))))
    assert (filled.format, filled.mode) == ("PNG", mode)
    assert filled.info["icc_profile"] == PROFILE
    assert (np.array(filled)[mask == 0] == before[mask == 0]).all()
    if alpha:
        assert (np.array(filled)[..., -1] == np.array(alpha)).all()


IMAGE, MASK = map(png, pair(24, 32))
ROW = {"image": IMAGE, "mask": MASK}
FORMS = {
    "dataframe_split": {"columns": ["mask", "image"], "data": [[MASK, IMAGE]] * 2},
    "dataframe_records": [ROW, ROW],
    "inputs": [ROW, ROW],
    "inputs ": {"image": [IMAGE, IMAGE], "mask": [MASK, MASK]},
    "inputs  ": [{name: f"data:image/png;base64,{text}" for name, text in ROW.items()}] * 2,
    "instances": [ROW, ROW],
    "instances ": {"image": [IMAGE, IMAGE], "mask": [MASK, MASK]},
}


# Row 28
@pytest.mark.parametrize("form", FORMS)
def test_every_json_form_of_mlflow_gets_the_same_answer(served, form):
    status, text = post(served[2], {form.strip(): FORMS[form]})
    assert status == 200, text
    rows = json.loads(text)["predictions"]
    assert rows == ask(served[2], [[IMAGE, MASK]]) * 2


def test_arrays_are_answered_with_arrays(served):
    image, mask = pair(24, 32)
    body = {"dataframe_records": [{"image": image.tolist(), "mask": mask.tolist()}]}
    status, text = post(served[2], body)
    assert status == 200, text
    (row,) = json.loads(text)["predictions"]
    assert (np.array(row["image"]) == decoded(*ask(served[2], [[IMAGE, MASK]]))).all()


LARGE = png(pair(481, 640)[0])
REFUSED = [
    ({"inputs": [{"image": "bm90IGEgcGljdHVyZQ==", "mask": MASK}]}, "not a PNG, JPEG or WebP"),
    ({"inputs": [{"image": "no base64!", "mask": MASK}]}, "not a PNG, JPEG or WebP"),
    ({"inputs": [{"image": IMAGE, "mask": png(pair(9, 8)[1])}]}, "32×24, its mask 8×9"),
    ({"inputs": [{"image": LARGE, "mask": MASK}]}, "640×481 exceeds the limit of 307200 pixels"),
    ({"inputs": [{"image": IMAGE, "mask": IMAGE}]}, "looks like a photograph"),
    ({"inputs": [{"image": IMAGE, "mask": png(255 - pair(24, 32)[1])}]}, "invert the mask"),
    ({"inputs": [{"image": IMAGE}]}, "no `mask` in the request"),
    ({"inputs": [{"img": IMAGE, "mask": MASK}]}, "no `image` in the request"),
    ({"inputs": {"image": [IMAGE, IMAGE], "mask": [MASK]}}, "2 images need as many masks"),
    ({"inputs": [IMAGE, MASK]}, "no `image` and no `mask` in the request"),
    ({"inputs": IMAGE}, "no `image` and no `mask` in the request"),
    ({"inputs": 1}, "no `image` and no `mask` in the request"),
    ({"instances": [{"picture": IMAGE}]}, "no `image` and no `mask` in the request"),
    ({"dataframe_records": [{"picture": IMAGE}]}, "no `image` and no `mask` in the request"),
    ({"dataframe_records": [{"image": IMAGE, "mask": None}]}, "row 0: "),
    ({"dataframe_split": {"data": [[IMAGE, MASK]]}}, "no `image` and no `mask` in the request"),
    ({"input": IMAGE}, "no `image` and no `mask` in the request"),
    (ROW, "exactly one of the input fields"),
    ([ROW], "Received a list"),
]


# Row 28
@pytest.mark.parametrize(("body", "words"), REFUSED)
def test_bad_input_is_answered_400_in_one_line_without_what_was_sent(served, body, words):
    status, text = post(served[2], body)
    line = json.loads(text)["message"]
    assert status == 400 and words in line
    assert "\n" not in line and IMAGE[:60] not in text and MASK[:60] not in text


def form(*parts):
    lines = [f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="f"\r\n\r\n'.encode()
             + data + b"\r\n" for name, data in parts]  # fmt: skip
    return b"".join(lines) + b"--b--\r\n"


PHOTO = base64.b64decode(IMAGE)
JSON, FORM = "application/json", "multipart/form-data; boundary=b"
BODIES = [
    (400, "is not JSON", json.dumps({"instances": [ROW]}).encode()[:-9], JSON),
    (400, "is not JSON", b"\xff\xfe" + PHOTO, JSON),
    (400, "is not JSON", b"[" * 100_000, JSON),
    (415, "is text/csv: send application/json, or a form", b"image,mask\n1,2", "text/csv"),
    (415, "Content-Type is missing", PHOTO, ""),
    (413, "at most 3145728 are accepted", b" " * (24 * 2**20), JSON),
    (400, "no file `mask` in the form: send curl", form(("image", PHOTO)), FORM),
    (400, "not a PNG, JPEG or WebP", form(("image", b"GIF89a"), ("mask", PHOTO)), FORM),
    (400, "looks like a photograph", form(("image", PHOTO), ("mask", PHOTO)), FORM),
    (400, "the form cannot be read", form(("image", PHOTO))[:-9], FORM),
]  # fmt: skip


# Row 28
@pytest.mark.parametrize(("status", "words", "body", "kind"), BODIES)
def test_a_body_that_cannot_be_read_is_answered_in_one_line(served, status, words, body, kind):
    found, text = send(served[2], body, kind)
    line = json.loads(text)["message"]
    assert found == status and words in line
    assert "\n" not in line and len(line) < 300


def test_the_readiness_check_fills_the_golden_pair_and_detects_another_model(served):
    _, env, _ = served
    ready = [env["PYTHON"], str(SERVE / "ready.py")]
    clean = {**os.environ, **env}
    assert subprocess.run(ready, env=clean).returncode == 0
    other = {**clean, "LACUNA_SHA256": "0" * 64}
    done = subprocess.run(ready, env=other, capture_output=True, text=True)
    assert done.returncode == 1 and "another model is served" in done.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"LACUNA_SHA256": "0" * 64}, "differs from LACUNA_SHA256: not served"),
        ({"LACUNA_MODEL": "models:/inpaint-context_encoder@champion"}, "is not a pinned version"),
    ],
)
def test_only_the_pinned_version_and_bytes_are_served(served, tmp_path, change, words):
    _, env, _ = served
    (tmp_path / "precious.txt").write_text("of the user")
    env = {**os.environ, **env, "MODEL_FOLDER": str(tmp_path), **change}
    done = subprocess.run([str(SERVE / "start")], env=env, capture_output=True, text=True)
    assert (tmp_path / "precious.txt").read_text() == "of the user"
    assert done.returncode == 2
    assert words in done.stderr
