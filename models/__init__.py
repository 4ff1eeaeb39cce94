"""Networks; a generator is g(erased, mask) → Prediction. This package knows no ranks or files."""

from torch import nn

from .context_encoder import ContextEncoder
from .deepfill import DeepFill
from .edgeconnect import EdgeConnect
from .glc import GLC
from .gmcnn import GMCNN
from .lama import LaMa
from .layers import Prediction
from .msanet import MSANet
from .musical import Musical
from .pconv import PConv
from .shiftnet import ShiftNet

GENERATORS: dict[str, type[nn.Module]] = {
    "msanet": MSANet,
    "musical": Musical,
    "pconv": PConv,
    "edgeconnect": EdgeConnect,
    "deepfill": DeepFill,
    "glc": GLC,
    "gmcnn": GMCNN,
    "shiftnet": ShiftNet,
    "context_encoder": ContextEncoder,
    "lama": LaMa,
}

__all__ = ["GENERATORS", "Prediction"]
