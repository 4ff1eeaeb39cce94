"""`bench attention`: our contextual attention vs. the usual implementation.

Both compute the same maps, order `paper`, patches of 1 and 3, from the same tensors; equality is
asserted first. The baseline goes image by image with patches cut out as convolution kernels, as the
released implementations do. `other` is our form for the other kind of device: batched on a CPU,
streamed on a GPU. The baseline propagates by shifted adds on the whole map, which is faster than
the identity convolutions of the released code, and lets autograd keep what it wants.

It computes 2·(1 + 9)·2·N²·C FLOP forward for an image of N cells and C channels, 23 times what no
exact form of ours avoids at a center hole: a speed-up of 20 leaves almost no time for softmax and
shifted sums, which on a CPU take ours longer than its matrix products.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from models import batched_attention
from models.contextual_attention import contextual_attention
from pipeline.bench.timing import alternate, compare, report, target
from shards.masks import irregular

PATCHES = (1, 3)
LAMBDA = 10.0
AGREES = 2e-5  # of values of order 1, in float32
KEPT_MIB = 70.0
CPU_TARGETS = {"center forward": 20.0, "center both": 10.0, "irregular both": 4.0}
GPU_TARGETS = {"center forward": 10.0, "center both": 10.0}

Method = Callable[[Tensor, Tensor], list[Tensor]]


def run(
    batch: int | None = None, size: int | None = None, channels: int = 128, repetitions: int = 5
) -> dict[str, Any]:
    """Measure; `seconds` are of the whole batch. On a CPU with one thread, within minutes."""
    on_gpu = torch.cuda.is_available()
    batch, size = batch or (8 if on_gpu else 1), size or (64 if on_gpu else 48)
    device = "cuda" if on_gpu else "cpu"
    torch.set_num_threads(1)
    torch.manual_seed(0)
    features = torch.randn(batch, channels, size, size, device=device)
    holes = {"center": center(batch, size), "irregular": irregular_holes(batch, size)}
    methods: dict[str, Method] = {"loop": loop, "ours": ours, "other": partial(other, on_gpu)}
    for name, mask in holes.items():
        holes[name] = mask.to(device)
        assert_equal(methods, features, holes[name])
    kept = kept_bytes(features, holes["irregular"]) / batch

    rows: dict[str, Callable[[], int]] = {}
    for case in CPU_TARGETS:
        hole, passes = case.split()
        work = _forward if passes == "forward" else _both
        for name, method in methods.items():
            if name != "other" or passes == "both":
                rows[f"{case} {name}"] = partial(work, method, features, holes[hole])
    table = alternate(rows, repetitions)

    # Other work on the machine disturbs CPU seconds least; a GPU is timed by the clock.
    goals = GPU_TARGETS if on_gpu else CPU_TARGETS
    pairs = {
        f"{case}: loop / ours": (f"{case} ours", f"{case} loop", goals.get(case))
        for case in CPU_TARGETS
    }
    pairs["center both: other / ours"] = ("center both ours", "center both other", None)
    ratios, targets = compare(table, pairs, "seconds" if on_gpu else "cpu_seconds")
    targets["MiB kept per image"] = target(kept / 2**20, KEPT_MIB, at_least=False)
    work_shown = {
        "batch": batch,
        "channels": channels,
        "size": size,
        "patches": PATCHES,
        "dtype": "float32",
        "threads": 1,
        "hole ratio": {name: mask.mean().item() for name, mask in holes.items()},
    }
    return report("attention", work_shown, table, ratios, targets)


def ours(features: Tensor, mask: Tensor) -> list[Tensor]:
    return contextual_attention(features, mask, PATCHES, order="paper", temperature=LAMBDA)


def other(on_gpu: bool, features: Tensor, mask: Tensor) -> list[Tensor]:
    with mock.patch.object(batched_attention, "fits", lambda *_: not on_gpu):
        return ours(features, mask)


def loop(features: Tensor, mask: Tensor) -> list[Tensor]:
    """Fill as the baseline does: for each image and patch size, kernels cut out of it."""
    return [
        torch.cat([_cut_out(f[None], m[None], p) for f, m in zip(features, mask)]) for p in PATCHES
    ]


def _cut_out(f: Tensor, mask: Tensor, p: int) -> Tensor:
    _, c, h, w = f.shape
    raw = F.unfold(f * (1 - mask), p, padding=p // 2).transpose(1, 2).reshape(h * w, c, p, p)
    kernels = raw / raw.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None, None]
    squares = F.avg_pool2d(f.square().sum(1, keepdim=True), p, 1, p // 2, divisor_override=1)
    scores = F.conv2d(f, kernels, padding=p // 2)
    scores = scores * (LAMBDA / squares.clamp(min=1e-14).sqrt())
    near_hole = F.max_pool2d(mask, p, 1, p // 2).reshape(1, h * w, 1, 1) > 0
    weights = scores.masked_fill(near_hole, -torch.inf).softmax(1).view(1, h, w, h, w)
    weights = _shifted_sum(_shifted_sum(weights, 2, 4), 1, 3).view(1, h * w, h, w)
    weights = weights.masked_fill(near_hole, 0)
    weights = weights / weights.sum(1, keepdim=True)
    pasted = F.conv_transpose2d(weights, raw, padding=p // 2)
    valued = F.unfold(1 - mask, p, padding=p // 2).transpose(1, 2).reshape(h * w, 1, p, p)
    return torch.where(mask > 0, pasted / F.conv_transpose2d(weights, valued, padding=p // 2), f)


def _shifted_sum(x: Tensor, key: int, query: int) -> Tensor:
    """Sum over shifts −1, 0, 1 of both dimensions together, zero outside."""
    out, size = x.clone(), x.shape[key] - 1
    for a, b in ((0, 1), (1, 0)):
        out.narrow(key, a, size).narrow(query, a, size).add_(
            x.narrow(key, b, size).narrow(query, b, size)
        )
    return out


def center(batch: int, size: int) -> Tensor:
    """Return a hole of the central half of each side."""
    mask = torch.zeros(batch, 1, size, size)
    mask[:, :, size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 1
    return mask


def irregular_holes(batch: int, size: int) -> Tensor:
    """Draw irregular holes of 30 to 40 % of the cells, another for each image."""
    masks = [irregular(size, size, 0.3, 0.4, 0, [0, i]) for i in range(batch)]
    return torch.stack([torch.from_numpy(mask)[None].float() for mask in masks])


def assert_equal(methods: Mapping[str, Method], features: Tensor, mask: Tensor) -> None:
    """Raise RuntimeError unless all methods agree in values and gradients."""
    weight = torch.randn_like(features)
    results = {}
    for name, method in methods.items():
        leaf = features.clone().requires_grad_()
        out = torch.stack(method(leaf, mask))
        (out * weight).sum().backward()
        assert leaf.grad is not None
        results[name] = out.detach(), leaf.grad
    for name, pair in results.items():
        for mine, reference in zip(pair, results["loop"]):
            worst = (mine - reference).abs().max().item()
            if worst > AGREES:
                raise RuntimeError(f"{name} differs from the loop by {worst:.1e} (> {AGREES})")


def kept_bytes(features: Tensor, mask: Tensor) -> int:
    """Measure the bytes that ours keeps from forward to backward, each storage once."""
    kept: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    leaf = features.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        ours(leaf, mask)
    return sum(kept.values())


def _forward(method: Method, features: Tensor, mask: Tensor) -> int:
    with torch.no_grad():
        method(features, mask)
    return len(features)


def _both(method: Method, features: Tensor, mask: Tensor) -> int:
    leaf = features.clone().requires_grad_()
    torch.stack(method(leaf, mask)).sum().backward()
    return len(features)
