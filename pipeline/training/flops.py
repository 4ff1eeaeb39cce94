"""FLOPs of a training step, counted while it runs, and devices' peak FLOP/s."""

from __future__ import annotations

import copy
import math
import re
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from pipeline.config.phases import Turn, shares
from pipeline.config.schema import RANDOM, TrainConfig
from pipeline.training import method
from pipeline.training.engine import Engine
from pipeline.training.method import Batch, Method
from pipeline.training.network import TrainableNetwork

# Dense FLOP/s in bf16 and fp16 with fp32 accumulation, from the vendor's data sheets; no sparsity.
PEAKS = {
    r"B200": 2250e12,
    r"H100 PCIe": 756e12,
    r"H100 NVL": 835e12,
    r"H100|H200|GH200": 989e12,
    r"A100": 312e12,
    r"L40S": 362e12,
    r"L4\b": 121e12,
    r"A40\b": 150e12,
    r"A10\b": 125e12,
    r"RTX A6000": 155e12,
    r"RTX 4090": 165e12,
    r"V100": 125e12,
    r"T4\b": 65e12,
}


_FFT = torch.ops.aten


@register_flop_formula([_FFT._fft_r2c, _FFT._fft_c2r, _FFT._fft_c2c])  # type: ignore[untyped-decorator]
def _fft_flop(shape: Any, dims: list[int], *_: Any, out_shape: Any, **__: Any) -> int:
    """5 n log2 n for a transform of n complex numbers, half of it for real ones."""
    n = math.prod(max(shape[dim], out_shape[dim]) for dim in dims)
    whole = max(math.prod(shape), math.prod(out_shape))
    return int((5.0 if shape == out_shape else 2.5) * whole * math.log2(n))


def peak(device_name: str, precision: str) -> float | None:
    """Look up a device's advertised peak FLOP/s; None if unknown, and for fp32."""
    if precision == "fp32":
        return None
    known = (rate for name, rate in PEAKS.items() if re.search(name, device_name))
    return next(known, None)


def ideal_seconds_per_image(networks: Method, engine: Engine, config: TrainConfig) -> float:
    """Return the seconds per image with all devices at their peak FLOP/s; 0 if that is unknown.

    Call it before `Engine.start`.
    """
    if engine.device.type != "cuda":
        return 0.0
    rate = peak(torch.cuda.get_device_name(engine.device), engine.precision)
    return flop_per_image(networks, engine, config) / rate / engine.world_size if rate else 0.0


def flop_per_image(networks: Method, engine: Engine, config: TrainConfig) -> float:
    """Count the FLOP of one image in training, forward and backward: the mean over the schedule."""
    objective, batch = config.objective, config.batch
    turns = shares(objective.phases, batch, objective.players, config.max_images)
    counted: dict[tuple[int, frozenset[str]], int] = {}
    total = 0.0
    for share, turn in turns:
        key = turn.number, frozenset(turn.rates)
        if key not in counted:
            counted[key] = flop_of(networks, engine, turn, config.data.crop)
        total += share * counted[key]
    return total


def flop_of(networks: Method, engine: Engine, turn: Turn, side: int) -> int:
    """Count the FLOP of one image (side x side) in a turn.

    Counted on copies of all networks, with a hole over a quarter of the image; recomputation in the
    backward pass counts, optimizers do not. Norms are in evaluation mode, so that one image is
    enough and other ranks are not needed.
    """
    copied = copy.deepcopy(networks, {id(engine): engine})
    copied.begin(turn)
    for player in copied.players:
        player.module.eval()
    image = torch.full((1, 3, side, side), 0.5, device=engine.device)
    mask = torch.zeros_like(image[:, :1])
    mask[:, :, side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = 1
    own = [engine.device] if engine.device.type == "cuda" else []  # not the node's other GPUs
    with torch.random.fork_rng(own), FlopCounterMode(display=False) as counter:
        method.backward(copied, engine, Batch(image, mask, (0,)), 1.0)
    return int(counter.get_total_flops())


class _Counted:
    """What counting needs of an engine: one CPU, without process group and optimizers."""

    device, world_size, precision = torch.device("cpu"), 1, "fp32"

    def prepare(self, name: str, module: Any, *_: Any, **__: Any) -> TrainableNetwork:
        return TrainableNetwork(name, module, module, torch.optim.SGD(module.parameters()))

    def autocast(self) -> AbstractContextManager[None]:
        return nullcontext()

    def backward(self, loss: torch.Tensor, player: TrainableNetwork) -> None:
        loss.backward()  # type: ignore[no-untyped-call]


def estimate(config: TrainConfig) -> float:
    """Return the FLOP of a training step on one image of the recipe, counted on this CPU.

    Convolutions grow with the area and attention between all places with its square, so that two
    small images tell the cost of a large one; four, where maps are padded beyond the image.
    """
    engine: Any = _Counted()
    rules = [config.model.sides(), config.objective.discriminator_sides() or (1, 1)]
    # Twice the rule, as maps of odd sides do not grow evenly.
    step = 2 * math.lcm(*(multiple for multiple, _ in rules))
    small = -(-max(least for _, least in rules) // step) * step
    side, sides = config.data.crop, [small, small + step]

    def density(side: int) -> float:
        at = replace(config, weights=RANDOM, data=replace(config.data, crop=side))
        return flop_per_image(method.build(at, engine), engine, at) / side**2

    if side <= max(sides):
        return density(side) * side**2
    known, powers = list(map(density, sides)), [0, 2]
    if known[1] < known[0]:
        sides += [small + 2 * step, small + 3 * step]
        known, powers = known + list(map(density, sides[2:])), [*powers, -1, -2]
    terms = np.linalg.solve([[float(s) ** p for p in powers] for s in sides], known)
    return float(terms @ [float(side) ** p for p in powers]) * side**2
