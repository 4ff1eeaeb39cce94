"""ONNX files of the networks, run by onnxruntime without torch's graph."""

import numpy as np
import onnxruntime
import pytest
import torch

from models import GENERATORS
from models.inpainter import Inpainter
from pipeline.common.errors import ConfigError
from pipeline.config import checks
from pipeline.config.schema import ExportConfig
from pipeline.inference import archive, onnx_file

SMALL = {
    "pconv": {"levels": 4, "width": 0.0625},
}


@pytest.fixture(scope="module", params=SMALL)
def saved(request, tmp_path_factory):
    """A network with random weights, as the archive that `register` stores."""
    torch.manual_seed(0)
    inpainter = Inpainter(GENERATORS[request.param](**SMALL[request.param])).eval()
    path = tmp_path_factory.mktemp(request.param) / "a.pt2"
    archive.save(inpainter, path)
    return inpainter, path


@pytest.mark.slow
def test_onnxruntime_fills_images_of_any_size_as_torch_does(saved, tmp_path):
    inpainter, path = saved
    out = tmp_path / "a.onnx"
    result = onnx_file.main(ExportConfig(model=str(path), out=str(out)))
    assert result["bytes"] == out.stat().st_size and result["difference"] <= 1e-4
    assert str(path.parent).encode() not in out.read_bytes()
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    assert [i.shape for i in session.get_inputs()] == [
        ["batch", 3, "height", "width"],
        ["batch", 1, "height", "width"],
    ]
    for n, height, width in ((1, 64, 64), (3, 33, 97), (1, 5, 140), (1, 1, 1)):
        image = torch.rand(n, 3, height, width)
        mask = (torch.rand(n, 1, height, width) < 0.4).float()
        (filled,) = session.run(["filled"], {"image": image.numpy(), "mask": mask.numpy()})
        with torch.no_grad():
            wanted = inpainter(image, mask).numpy()
        np.testing.assert_allclose(filled, wanted, atol=1e-4)
        known = np.broadcast_to(mask.numpy() == 0, filled.shape)
        assert np.array_equal(filled[known], image.numpy()[known])


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"model": "a.pt2", "out": "a.pb"}, r"out=a\.pb: give a name that ends in \.onnx"),
        ({"model": "models:/", "out": "a.onnx"}, "invalid models:/"),
    ],
)
def test_what_cannot_be_asked_is_refused(given, line):
    with pytest.raises(ConfigError, match=line):
        checks.export(ExportConfig(**given))


def test_a_baseline_has_no_network(tmp_path):
    with pytest.raises(ConfigError, match="model=telea is a baseline without a network"):
        onnx_file.main(ExportConfig(model="telea", out=f"{tmp_path}/a.onnx"))


def test_the_packages_that_are_missing_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "NEEDED", ("onnx", "not_there_at_all"))
    with pytest.raises(ConfigError, match=r"`export` needs not_there_at_all: pip install"):
        onnx_file.main(ExportConfig(model="telea", out=f"{tmp_path}/a.onnx"))
    assert not list(tmp_path.iterdir())
