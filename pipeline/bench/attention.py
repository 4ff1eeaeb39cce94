"""`bench attention`: our contextual attention vs. the two usual implementations.

All three compute the same maps, order `paper`, patches of 1 and 3, from the same tensors; equality
is asserted first. (a) image by image, patches cut out as convolution kernels, as the released
implementations do; (b) the same for the whole batch as one grouped convolution; (c) ours. (a) and
(b) propagate by shifted adds on the whole map, which is faster than the identity convolutions of
the released code, and let autograd keep what it wants.

The floor counts the work that no exact form of ours avoids, per image of N cells with h hole cells,
q queries in the window around them and C channels, for two patch sizes:
    forward   2·q·N·C + 2·2·h·N·C FLOP,  backward  2·(2·q·N·C) + 2·(2·2·h·N·C) + 2·q·N·C FLOP
divided by the rate of this machine's matrix product of that shape, measured in the same rounds,
plus N·C·4 bytes read and three maps written at the rate of a copy (under 1 % of it on a CPU).

(a) and (b) compute 2·(1 + 9)·2·N²·C FLOP forward, 23 times the floor at a center hole: a speed-up
of 20 leaves almost no time for softmax and shifted sums, which on a CPU take ours longer than its
matrix products.
"""

import os
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from models.contextual_attention import contextual_attention
from models.streamed_attention import window_of
from pipeline.bench.timing import alternate, faster, now, report, target, whole
from shards.masks import irregular

PATCHES = (1, 3)
LAMBDA = 10.0
REACH = 3  # 2·radius + propagation of the larger patch
AGREES = 2e-5  # of values of order 1, in float32
KEPT_MIB = 70.0
CPU_TARGETS = {"center forward": 20.0, "center both": 10.0, "irregular both": 4.0}
GPU_TARGETS = {"center forward": 10.0, "center both": 10.0}

Method = Callable[[Tensor, Tensor], list[Tensor]]


def run(
    batch: int = 4,
    size: int = 64,
    channels: int = 128,
    repetitions: int = 5,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
) -> dict[str, Any]:
    """Measure; `seconds` are of the whole batch. On a CPU with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    features = torch.randn(batch, channels, size, size, device=device)
    holes = {"center": center(batch, size), "irregular": irregular_holes(batch, size)}
    methods: dict[str, Method] = {"loop": loop, "grouped": grouped, "ours": ours}
    for name, mask in holes.items():
        holes[name] = mask.to(device)
        assert_equal(methods, features, holes[name])
    kept = kept_bytes(features, holes["irregular"]) / batch

    rows: dict[str, Callable[[], int]] = {}
    peaks: dict[str, int] = {}
    for hole, passes in (("center", ("forward", "both")), ("irregular", ("both",))):
        for which in passes:
            for name, method in methods.items():
                work = _work(method, which, features, holes[hole])
                rows[f"{hole} {which} {name}"] = work
                peaks[f"{hole} {which} {name}"] = peak_bytes(work, device)
    rows["matrix product"] = _product(channels, size, device)
    table = alternate({name: whole(work) for name, work in rows.items()}, repetitions)
    for row in table:
        if row["name"] in peaks:
            row["peak_bytes"] = peaks[row["name"]]

    # Other work on the machine disturbs CPU seconds least; a GPU is timed by the clock.
    clock = "cpu_seconds" if device == "cpu" else "seconds"
    ratios: dict[str, float] = {}
    for case in CPU_TARGETS:
        for other in ("loop", "grouped"):
            ratios[f"{case}: {other} / ours"] = faster(
                table, f"{case} ours", f"{case} {other}", clock
            )
        hole, which = case.split()
        ratios[f"{case}: ours / floor"] = _over_floor(table, case, which, holes[hole], channels)
    goals = CPU_TARGETS if device == "cpu" else GPU_TARGETS
    targets = {
        f"{case}, times (a)": target(ratios[f"{case}: loop / ours"], wanted)
        for case, wanted in goals.items()
    }
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
    torch.set_num_threads(threads)
    return report("attention", work_shown, table, ratios, targets)


def ours(features: Tensor, mask: Tensor) -> list[Tensor]:
    return contextual_attention(features, mask, PATCHES, order="paper", temperature=LAMBDA)


def loop(features: Tensor, mask: Tensor) -> list[Tensor]:
    """(a): for each image and patch size, kernels cut out of it."""
    return [
        torch.cat([_cut_out(f[None], m[None], p) for f, m in zip(features, mask)]) for p in PATCHES
    ]


def grouped(features: Tensor, mask: Tensor) -> list[Tensor]:
    """(b): the kernels of all images in one grouped convolution."""
    return [_cut_out(features, mask, p) for p in PATCHES]


def _cut_out(f: Tensor, mask: Tensor, p: int) -> Tensor:
    n, c, h, w = f.shape
    raw = F.unfold(f * (1 - mask), p, padding=p // 2).transpose(1, 2).reshape(n * h * w, c, p, p)
    kernels = raw / raw.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None, None]
    squares = F.avg_pool2d(f.square().sum(1, keepdim=True), p, 1, p // 2, divisor_override=1)
    scores = F.conv2d(f.reshape(1, n * c, h, w), kernels, padding=p // 2, groups=n)
    scores = scores.view(n, h * w, h, w) * (LAMBDA / squares.clamp(min=1e-14).sqrt())
    near_hole = F.max_pool2d(mask, p, 1, p // 2).reshape(n, h * w, 1, 1) > 0
    weights = scores.masked_fill(near_hole, -torch.inf).softmax(1).view(n, h, w, h, w)
    weights = _shifted_sum(_shifted_sum(weights, 2, 4), 1, 3).view(n, h * w, h, w)
    weights = weights / weights.sum(1, keepdim=True)
    pasted = F.conv_transpose2d(weights.view(1, n * h * w, h, w), raw, padding=p // 2, groups=n)
    return torch.where(mask > 0, pasted.view(n, c, h, w) / p**2, f)


def _shifted_sum(x: Tensor, key: int, query: int) -> Tensor:
    """Σ over shifts −1, 0, 1 of both dimensions together, zero outside."""
    out, size = x.clone(), x.shape[key] - 1
    for a, b in ((0, 1), (1, 0)):
        out.narrow(key, a, size).narrow(query, a, size).add_(
            x.narrow(key, b, size).narrow(query, b, size)
        )
    return out


def center(batch: int, size: int) -> Tensor:
    """The central half of each side."""
    mask = torch.zeros(batch, 1, size, size)
    mask[:, :, size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 1
    return mask


def irregular_holes(batch: int, size: int) -> Tensor:
    """Irregular holes of 30 to 40 % of the cells, another for each image."""
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
    """Bytes that ours keeps from forward to backward, of all images, each storage once."""
    kept: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    leaf = features.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        ours(leaf, mask)
    return sum(kept.values())


def peak_bytes(work: Callable[[], int], device: str) -> int:
    """Peak bytes of live tensors during `work`, above those that were alive before."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    events = recorded.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    alive = peak = 0
    for _, change in sorted(changes):
        alive += change
        peak = max(peak, alive)
    return peak


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what the profiler itself prints to stderr."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _work(method: Method, which: str, features: Tensor, mask: Tensor) -> Callable[[], int]:
    def forward() -> int:
        with torch.no_grad():
            method(features, mask)
        now()
        return len(features)

    def both() -> int:
        leaf = features.clone().requires_grad_()
        torch.stack(method(leaf, mask)).sum().backward()
        now()
        return len(features)

    return forward if which == "forward" else both


def _product(channels: int, size: int, device: str) -> Callable[[], int]:
    left = torch.randn(size * size // 4, channels, device=device)
    right = torch.randn(channels, size * size, device=device)

    def product() -> int:
        for _ in range(8):
            left @ right
        now()
        return 8 * 2 * left.shape[0] * channels * right.shape[1]

    return product


def _over_floor(
    table: list[dict[str, Any]], case: str, which: str, mask: Tensor, channels: int
) -> float:
    cells, flop = mask[0].numel(), 0
    for hole in mask[:, 0] > 0:
        window = window_of(hole, REACH, cells, 1)
        assert window is not None
        rows = sum(block.stop - block.start for block in window.blocks)
        scores = 2 * rows * (window.columns.stop - window.columns.start) * cells * channels
        pastes = 2 * len(PATCHES) * int(hole.sum()) * cells * channels
        flop += scores + pastes if which == "forward" else 4 * scores + 3 * pastes
    named = {row["name"]: row for row in table}
    product, mine = named["matrix product"], named[f"{case} ours"]
    clock = "seconds" if mask.is_cuda else "cpu_seconds"
    rate = product["items"] / statistics.median(product[clock])
    return statistics.median(mine[clock]) * rate / flop
