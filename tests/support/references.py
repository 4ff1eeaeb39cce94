"""The reference programs of learned metrics, with a stand-in for torchvision.

lpips, DISTS-pytorch, stlpips-pytorch and torch-fidelity import torchvision, which does not import
beside a CPU build of torch. They take two networks from it: the stand-in gives ours, with the
weights of the test; all other code that runs is theirs.
"""

import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

NAMES = ("lpips", "DISTS_pytorch", "stlpips_pytorch", "torch_fidelity")


def with_torchvision(patch: pytest.MonkeyPatch, vgg16, alexnet) -> None:
    """Let the references import; `vgg16()` and `alexnet()` return the layers of the networks."""
    for name in [n for n in sys.modules if n.partition(".")[0] in NAMES]:
        patch.delitem(sys.modules, name)
    stub = MagicMock()
    stub.models.vgg16 = lambda *a, **k: SimpleNamespace(features=vgg16())
    stub.models.alexnet = lambda *a, **k: SimpleNamespace(features=alexnet())
    for name in ("", ".models", ".datasets", ".transforms", ".transforms.functional"):
        patch.setitem(sys.modules, f"torchvision{name}", stub)
    for other in ("IPython", "torchsummary"):  # imported by ST-LPIPS for its printouts
        patch.setitem(sys.modules, other, MagicMock())
    patch.setitem(sys.modules, "torchvision.models", stub.models)
