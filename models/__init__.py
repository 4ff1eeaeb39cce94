"""Networks; a generator is g(erased, mask) → Prediction. This package knows no ranks or files."""

from torch import nn

from .layers import Prediction
from .msanet import MSANet
from .musical import Musical

GENERATORS: dict[str, type[nn.Module]] = {"msanet": MSANet, "musical": Musical}

__all__ = ["GENERATORS", "Prediction"]
