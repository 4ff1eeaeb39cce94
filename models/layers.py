"""Blocks shared by the networks.

MSA-Net's convolutions are bias-free and followed by a norm and ReLU: Table 1 of the paper counts
weights only, and without a norm its gradients vanish (see `msanet.py`).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.parametrizations import _SpectralNorm, spectral_norm


class Prediction(NamedTuple):
    """What a generator returns.

    image: N×3×H×W float32, RGB in [0, 1], hole and known pixels alike (not yet composited).
    features: maps that losses read, by name (a network's own features, a coarse result); may be
        empty.
    """

    image: Tensor
    features: dict[str, Tensor]


def scaled(channels: float, width: float = 1.0) -> int:
    """`channels` times `width`, rounded, never below 4."""
    return max(4, round(channels * width))


def one_of(name: str, value: str, allowed: Sequence[str]) -> str:
    """`value` if it is among `allowed`, else a ValueError that lists them."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not known; choose one of {', '.join(allowed)}")
    return value


def make_norm(kind: str, channels: int) -> nn.Module:
    """A norm over `channels` maps: "batch", "instance" (affine, per image) or "none"."""
    one_of("norm", kind, ("batch", "instance", "none"))
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "instance":
        return nn.InstanceNorm2d(channels, affine=True)
    return nn.Identity()


class ConvUnit(nn.Sequential):
    """Convolution, norm, ReLU; "same" padding before the stride.

    N×in×H×W → N×out×⌈H/stride⌉×⌈W/stride⌉. The bias is left to the norm where there is one.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        stride: int = 1,
        dilation: int = 1,
        norm: str = "batch",
    ) -> None:
        padding = dilation * (kernel - 1) // 2
        super().__init__(
            nn.Conv2d(
                in_channels,
                out_channels,
                kernel,
                stride,
                padding,
                dilation,
                bias=norm == "none",
            ),
            make_norm(norm, out_channels),
            nn.ReLU(inplace=True),
        )


class DeconvUnit(nn.Sequential):
    """Transposed convolution 4×4 of stride 2, norm, ReLU: N×in×H×W → N×out×2H×2W."""

    def __init__(self, in_channels: int, out_channels: int, norm: str = "batch") -> None:
        super().__init__(
            nn.ConvTranspose2d(in_channels, out_channels, 4, 2, 1, bias=norm == "none"),
            make_norm(norm, out_channels),
            nn.ReLU(inplace=True),
        )


def initialize_for_relu(module: nn.Module) -> None:
    """Initialize all convolutions of `module` in place: Kaiming-normal weights, zero biases.

    The fan-in of a transposed convolution counts the inputs of one output pixel: in · k² / stride².
    """
    for layer in module.modules():
        if isinstance(layer, nn.ConvTranspose2d):
            taps = math.prod(layer.kernel_size) / math.prod(layer.stride)
            nn.init.normal_(layer.weight, std=math.sqrt(2 / (layer.in_channels * taps)))
        elif isinstance(layer, (nn.Conv1d, nn.Conv2d)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "leaky": partial(nn.LeakyReLU, 0.2),
}
INITS = ("normal", "xavier", "relu")


def initialize(module: nn.Module, kind: str) -> None:
    """Draw all weights of `module` in place, biases 0.

    "normal": N(0, 0.02), scales of norms N(1, 0.02) (DCGAN). "xavier": uniform, TensorFlow's
    default. "relu": see `initialize_for_relu`; linear layers are drawn likewise.
    """
    if one_of("init", kind, INITS) == "relu":
        initialize_for_relu(module)
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            if kind == "normal":
                nn.init.normal_(layer.weight, std=0.02)
            elif kind == "xavier":
                nn.init.xavier_uniform_(layer.weight)
            elif isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif kind == "normal" and isinstance(layer, (_BatchNorm, _InstanceNorm)) and layer.affine:
            nn.init.normal_(layer.weight, 1, 0.02)


def normalize_spectra(*modules: nn.Module) -> None:
    """Hold the spectral norm of every weight in `modules` at 1, once drawn (Miyato et al. 2018)."""
    for layer in [layer for module in modules for layer in module.modules()]:
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            spectral_norm(layer)


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Within the context, batch norms use batch statistics and keep their running ones.

    Spectral norms keep their vectors. For a network that rests, or a second forward in a step
    (MSA-Net's features of the original image). Holds for every `_BatchNorm` subclass that, as
    torch's own do, reads `training` and `track_running_stats` in its forward.
    """
    norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    before = [(layer.training, layer.track_running_stats) for layer in norms]
    spectra = [s for s in module.modules() if isinstance(s, _SpectralNorm) and s.training]
    try:
        for layer in norms:
            layer.training, layer.track_running_stats = True, False
        for spectrum in spectra:
            spectrum.training = False
        yield
    finally:
        for layer, (training, tracked) in zip(norms, before):
            layer.training, layer.track_running_stats = training, tracked
        for spectrum in spectra:
            spectrum.training = True


def without_autocast(reference: Tensor) -> AbstractContextManager[None]:
    """A context without autocast on the device of `reference`.

    An exported graph, which is drawn without autocast, has none: it holds ATen operators alone.
    """
    if torch.compiler.is_exporting() or reference.is_meta:
        return nullcontext()
    return torch.autocast(reference.device.type, enabled=False)  # type: ignore[return-value]
