"""`bench attention`: contextual attention beside the two ways in which it is written elsewhere.

All three compute the same maps, order `paper`, patches of 1 and 3, from the same tensors; equality
is asserted first. (a) picture by picture, patches cut out as convolution kernels, as the released
implementations do; (b) the same for the whole batch as one grouped convolution; (c) ours. (a) and
(b) propagate by shifted adds on the whole map, faster than the identity convolutions found in the
wild, and let autograd keep what it wants.

The floor counts what no exact form of ours avoids, per picture of N cells with h hole cells, q
queries in the window around them and C channels, two patch sizes:
    forward   2·q·N·C + 2·2·h·N·C FLOP,  backward  2·(2·q·N·C) + 2·(2·2·h·N·C) + 2·q·N·C FLOP
divided by the rate of this machine's matrix product of that shape, measured in the same rounds,
plus N·C·4 bytes read and three maps written at the rate of a copy (under 1 % of it on a CPU).

(a) and (b) compute 2·(1 + 9)·2·N²·C FLOP forward, 23 times the floor's at a centre hole: 20 times
faster would leave next to nothing for softmax and shifted sums, which on a CPU take ours longer
than its products do.
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
from pipeline.bench.timing import alternate, faster, report, target
from shards.masks import irregular

PATCHES = (1, 3)
LAMBDA = 10.0
REACH = 3  # 2·radius + propagation of the larger patch
AGREES = 2e-5  # of values of order 1, in float32
KEPT_MIB = 70.0
CPU_TARGETS = {"centre forward": 20.0, "centre both": 10.0, "irregular both": 4.0}
GPU_TARGETS = {"centre forward": 10.0, "centre both": 10.0}

Method = Callable[[Tensor, Tensor], list[Tensor]]


def main(config: Any = None) -> dict[str, Any]:
    """The benchmark as `python -m pipeline bench attention` runs it."""
    return run()


def run(
    batch: int = 4,
    size: int = 64,
    channels: int = 128,
    repetitions: int = 5,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
) -> dict[str, Any]:
    """Rows, ratios and targets; `seconds` are of the whole batch. On a CPU one thread each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    features = torch.randn(batch, channels, size, size, device=device)
    holes = {"centre": centre(batch, size), "irregular": drawn(batch, size)}
    methods: dict[str, Method] = {"loop": loop, "grouped": grouped, "ours": ours}
    for name, mask in holes.items():
        holes[name] = mask.to(device)
        assert_equal(methods, features, holes[name])
    kept = kept_bytes(features, holes["irregular"]) / batch

    rows: dict[str, Callable[[], int]] = {}
    peaks: dict[str, int] = {}
    for hole, passes in (("centre", ("forward", "both")), ("irregular", ("both",))):
        for which in passes:
            for name, method in methods.items():
                work = _work(method, which, features, holes[hole])
                rows[f"{hole} {which} {name}"] = work
                peaks[f"{hole} {which} {name}"] = peak_bytes(work, device)
    rows["matrix product"] = _product(channels, size, device)
    steps = {name: lambda work=work: _one_step(work) for name, work in rows.items()}
    table = alternate(steps, repetitions)
    for row in table:
        if row["name"] in peaks:
            row["peak_bytes"] = peaks[row["name"]]

    ratios: dict[str, float] = {}
    for case in CPU_TARGETS:
        for other in ("loop", "grouped"):
            ratios[f"{case}: {other} / ours"] = _faster(
                table, f"{case} ours", f"{case} {other}", device
            )
        hole, which = case.split()
        ratios[f"{case}: ours / floor"] = _over_floor(table, case, which, holes[hole], channels)
    goals = CPU_TARGETS if device == "cpu" else GPU_TARGETS
    targets = {
        f"{case}, times (a)": target(ratios[f"{case}: loop / ours"], wanted)
        for case, wanted in goals.items()
    }
    targets["MiB kept a picture"] = target(kept / 2**20, KEPT_MIB, at_least=False)
    work_told = {
        "batch": batch,
        "channels": channels,
        "size": size,
        "patches": PATCHES,
        "dtype": "float32",
        "threads": 1,
        "hole ratio": {name: mask.mean().item() for name, mask in holes.items()},
    }
    torch.set_num_threads(threads)
    return report("attention", work_told, table, ratios, targets)


def ours(features: Tensor, mask: Tensor) -> list[Tensor]:
    return contextual_attention(features, mask, PATCHES, order="paper", temperature=LAMBDA)


def loop(features: Tensor, mask: Tensor) -> list[Tensor]:
    """(a): for each picture and patch size, kernels cut out of it."""
    return [
        torch.cat([_cut_out(f[None], m[None], p) for f, m in zip(features, mask)]) for p in PATCHES
    ]


def grouped(features: Tensor, mask: Tensor) -> list[Tensor]:
    """(b): the kernels of all pictures in one grouped convolution."""
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


def centre(batch: int, size: int) -> Tensor:
    """The central half of each side."""
    mask = torch.zeros(batch, 1, size, size)
    mask[:, :, size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 1
    return mask


def drawn(batch: int, size: int) -> Tensor:
    """Irregular holes of 30 to 40 % of the cells, another for each picture."""
    masks = [irregular(size, size, 0.3, 0.4, 0, [0, i]) for i in range(batch)]
    return torch.stack([torch.from_numpy(mask)[None].float() for mask in masks])


def assert_equal(methods: Mapping[str, Method], features: Tensor, mask: Tensor) -> None:
    """All methods agree in values and gradients, or there is nothing to time."""
    weight = torch.randn_like(features)
    found = {}
    for name, method in methods.items():
        leaf = features.clone().requires_grad_()
        out = torch.stack(method(leaf, mask))
        (out * weight).sum().backward()
        assert leaf.grad is not None
        found[name] = out.detach(), leaf.grad
    for name, pair in found.items():
        for mine, reference in zip(pair, found["loop"]):
            worst = (mine - reference).abs().max().item()
            if worst > AGREES:
                raise RuntimeError(f"{name} differs from the loop by {worst:.1e} (> {AGREES})")


def kept_bytes(features: Tensor, mask: Tensor) -> int:
    """Bytes that ours keeps from forward to backward, all pictures, each storage once."""
    kept: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    leaf = features.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        ours(leaf, mask)
    return sum(kept.values())


def peak_bytes(work: Callable[[], int], device: str) -> int:
    """The most bytes of tensors that `work` has alive at once, above what was alive before."""
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
    """Keeps the profiler's own lines off the process's stderr."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _one_step(work: Callable[[], int]) -> Iterator[int]:
    yield work()


def _work(method: Method, which: str, features: Tensor, mask: Tensor) -> Callable[[], int]:
    def forward() -> int:
        with torch.no_grad():
            method(features, mask)
        return _done(features)

    def both() -> int:
        leaf = features.clone().requires_grad_()
        torch.stack(method(leaf, mask)).sum().backward()
        return _done(features)

    return forward if which == "forward" else both


def _product(channels: int, size: int, device: str) -> Callable[[], int]:
    left = torch.randn(size * size // 4, channels, device=device)
    right = torch.randn(channels, size * size, device=device)

    def product() -> int:
        for _ in range(8):
            left @ right
        _done(left)
        return 8 * 2 * left.shape[0] * channels * right.shape[1]

    return product


def _done(x: Tensor) -> int:
    if x.is_cuda:
        torch.cuda.synchronize()
    return x.shape[0]


def _faster(table: list[dict[str, Any]], name: str, than: str, device: str) -> float:
    """By CPU seconds, which other work on the machine disturbs least; by the clock on a GPU."""
    if device == "cpu":
        return faster(table, name, than)
    found = {row["name"]: row["seconds"] for row in table}
    return statistics.median(b / a for a, b in zip(found[name], found[than]))


def _over_floor(
    table: list[dict[str, Any]], case: str, which: str, mask: Tensor, channels: int
) -> float:
    cells, flop = mask[0].numel(), 0
    for picture in mask[:, 0] > 0:
        window = window_of(picture, REACH, cells, 1)
        assert window is not None
        rows = sum(block.stop - block.start for block in window.blocks)
        scores = 2 * rows * (window.columns.stop - window.columns.start) * cells * channels
        pastes = 2 * len(PATCHES) * int(picture.sum()) * cells * channels
        flop += scores + pastes if which == "forward" else 4 * scores + 3 * pastes
    found = {row["name"]: row for row in table}
    product, mine = found["matrix product"], found[f"{case} ours"]
    clock = "seconds" if mask.is_cuda else "cpu_seconds"
    rate = product["items"] / statistics.median(product[clock])
    return statistics.median(mine[clock]) * rate / flop
