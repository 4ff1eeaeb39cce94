"""`jobs/deploy/serve`: a pinned version over HTTP, from an environment without our packages."""

import base64
import io
import json
import os
import subprocess
import sys
import sysconfig
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config.schema import RegisterConfig
from pipeline.registry import register
from pipeline.tracking import client
from tests.support.mlflow_server import Process, free_port
from tests.support.trained import finished_run

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
    run = finished_run(root / "runs" / "run", uri=uri)
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
        "LACUNA_MAX_PIXELS": str(200 * 200),
        "HOST": "127.0.0.1",
        "PORT": str(port),
    }
    running = Process([str(SERVE / "start")], root / "serve.log", env, cwd=root)
    try:
        running.wait_for(f"http://127.0.0.1:{port}/ping", 240)
        yield registered, env, f"http://127.0.0.1:{port}"
    finally:
        running.kill()


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def ask(url, rows):
    body = json.dumps({"dataframe_split": {"columns": ["image", "mask"], "data": rows}})
    request = urllib.request.Request(
        f"{url}/invocations", body.encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())["predictions"]


def decoded(row):
    return np.array(Image.open(io.BytesIO(base64.b64decode(row["image"]))))


def pair(height, width, seed=0):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    mask = np.zeros((height, width), np.uint8)
    mask[height // 3 : height // 2, width // 3 : width // 2] = 255
    return image, mask


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


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (["bm90IGEgcGljdHVyZQ==", png(pair(8, 8)[1])], "not an 8-bit PNG, JPEG or WebP"),
        ([png(pair(8, 8)[0]), png(pair(9, 8)[1])], "its mask 8×9"),
        (
            [png(np.zeros((300, 300, 3), np.uint8)), png(np.zeros((300, 300), np.uint8))],
            "limit of 40000 pixels",
        ),
    ],
)
def test_bad_input_is_answered_400_with_the_reason(served, row, words):
    _, _, url = served
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(url, [row])
    assert caught.value.code == 400
    assert words in json.loads(caught.value.read())["message"]


def test_a_malformed_request_is_answered_400(served):
    request = urllib.request.Request(
        f"{served[2]}/invocations", b'{"inputs": 1}', {"Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=60)
    assert caught.value.code == 400


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
        ({"LACUNA_MODEL": "models:/inpaint-msanet@champion"}, "is not a pinned version"),
    ],
)
def test_only_the_pinned_version_and_bytes_are_served(served, tmp_path, change, words):
    _, env, _ = served
    env = {**os.environ, **env, "MODEL_FOLDER": str(tmp_path / "model"), **change}
    done = subprocess.run([str(SERVE / "start")], env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert words in done.stderr
