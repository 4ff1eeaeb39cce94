"""Metrics of composites: one record each.

Images are uint8 N×H×W×3 RGB: the composite as it would be saved. A metric of single images is
computed per image and averaged afterwards; one of two sets compares the composites with the
originals.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models import perceptual
from models.inception import Inception
from pipeline.config.groups import SSIM_WINDOWS
from pipeline.evaluation import learned, pixels, sets
from pipeline.evaluation.sets import SetFunction

Function = Callable[[Tensor, Tensor, Tensor], Tensor]  # result, image, mask → float64 N


@dataclass(frozen=True)
class Metric:
    """A metric of one image or of two sets: what it is, how to compute it and how to print it."""

    name: str  # column of per-image tables
    title: str
    unit: str
    digits: int  # printed decimals
    direction: int  # 1: higher is better; -1: lower is better
    function: Function | None
    window: int = 1  # smallest side of an image that it can be computed on
    convention: str = ""  # of several conventions of one metric, the protocol chooses one
    printed: bool = True  # in the tables of results and comparisons
    range: tuple[float, float] = (0, math.inf)
    how: str = ""  # its convention, in words
    network: Callable[[], nn.Module] | None = None
    needs: tuple[str, ...] = ()  # weights of the network, as `fetch` names them
    of_sets: SetFunction | None = None  # in place of `function`, for a metric of two sets
    least: int = 1  # images that it needs
    unbiased: int = 1  # below so many its estimate is biased
    tolerance: float = 0  # largest loss against the champion that a promotion may bring

    @property
    def key(self) -> str:
        """Name in results, where the protocol's convention is just `ssim`."""
        return self.name.removesuffix(f"_{self.convention}")

    def loaded(self, device: torch.device) -> nn.Module:
        """Return the network with its weights; ValueError, with what fetches them, without."""
        assert self.network is not None
        return learned.loaded(self.network, self.needs, device)

    @property
    def heading(self) -> str:
        return f"{self.title} {self.unit}".rstrip()


def _whole(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    return lambda result, image, mask: function(result, image)


def _ssim(convention: str, window: int) -> Metric:
    function = _whole(functools.partial(pixels.ssim, convention=convention))
    metric = functools.partial(Metric, range=(-1, 1), how=convention, tolerance=0.002)
    return metric(f"ssim_{convention}", "SSIM", "", 4, 1, function, window, convention)


def _learned(
    name: str, title: str, how: str, network: Callable[[], nn.Module], *needs: str
) -> Metric:
    metric = functools.partial(Metric, how=how, network=network, needs=needs, tolerance=0.002)
    return metric(name, title, "", 4, -1, learned.distance(network, needs), perceptual.SMALLEST)


IN_DB, IN_PERCENT, ANY = (0, pixels.PSNR_CAP), (0, 100), (-math.inf, math.inf)
RGB = "RGB, range 255, whole image, mean over images"
# To add a metric, write its function and add a row here. Those without `needs` cost next to nothing
# and are always computed; `metrics=` asks for the others.
METRICS: tuple[Metric, ...] = (
    Metric("psnr", "PSNR", "dB", 3, 1, _whole(pixels.psnr), range=IN_DB, how=RGB),
    *(_ssim(convention, window) for convention, window in SSIM_WINDOWS.items()),
    Metric("l1", "L1", "%", 3, -1, _whole(pixels.l1), range=IN_PERCENT, how=RGB, tolerance=0.02),
    Metric(
        "l1_hole",
        "L1 of the hole",
        "%",
        3,
        -1,
        pixels.l1_hole,
        1,
        "",
        False,
        IN_PERCENT,
        "RGB, hole",
    ),
    _learned("lpips_vgg", "LPIPS (VGG)", "0.1", perceptual.lpips_vgg, "vgg16", "lpips_vgg"),
    _learned("lpips_alex", "LPIPS (Alex)", "0.1", perceptual.lpips_alex, "alexnet", "lpips_alex"),
    _learned("dists", "DISTS", "at the evaluated size", perceptual.DISTS, "vgg16", "dists"),
    _learned("stlpips", "ST-LPIPS", "AlexNet, ST0.0", perceptual.stlpips, "stlpips"),
)
_of_sets = functools.partial(
    Metric,
    function=None,
    how="2048 features of Inception 2015-12-05, resized as TensorFlow 1 does",
    network=Inception,
    needs=("inception",),
    least=2048,  # fewer pairs than features a linear SVM separates, whatever they show
)
_ids = functools.partial(_of_sets, unit="%", digits=2, direction=1, of_sets=sets.ids)
SET_METRICS: tuple[Metric, ...] = (
    _of_sets("fid", "FID", "", 3, -1, of_sets=sets.fid, unbiased=10_000, tolerance=0.2),
    _of_sets("kid", "KID", "", 5, -1, of_sets=sets.kid, least=1000, range=ANY, tolerance=2e-4),
    _ids("p_ids", "P-IDS", range=IN_PERCENT, tolerance=0.5),
    _ids("u_ids", "U-IDS", range=IN_PERCENT, tolerance=0.5),
)


def printed_metrics(
    convention: str = "gauss11_rgb", chosen: Sequence[str] = ()
) -> dict[str, Metric]:
    """Return the metrics that tables print, by their key in results.

    SSIM in the given convention, and of those that need weights the `chosen`.
    """
    return {
        m.key: m
        for m in (*METRICS, *SET_METRICS)
        if m.printed and m.convention in ("", convention) and (not m.needs or m.name in chosen)
    }


def record(key: str) -> Metric:
    """Return the metric that results call `key`."""
    return next(m for m in (*METRICS, *SET_METRICS) if m.key == key)


def selected(names: Sequence[str], key: str = "metrics") -> list[Metric]:
    """Return the metrics of the list `key` that are computed on request only.

    Raises ValueError for an unknown name.
    """
    every = {m.key: m for m in (*METRICS, *SET_METRICS) if m.printed}
    if unknown := [name for name in names if name not in every]:
        raise ValueError(f"unknown {key}={unknown[0]}: choose from {', '.join(every)}")
    return [m for m in every.values() if m.needs and m.key in names]


def direction(logged: str) -> int:
    """Return 1 if a value logged under this name is better when higher, -1 when lower.

    logged: such as `val/psnr`, `eval/msanet/l1 0.1_0.2` or a loss, `g/style`.
    """
    kind, _, name = logged.rpartition("/")
    known = {metric.key: metric.direction for metric in (*METRICS, *SET_METRICS)}
    return known.get(name.partition(" ")[0], -1 if kind in ("g", "d") else 1)


def measure(
    result: Tensor,
    image: Tensor,
    mask: Tensor,
    conventions: Sequence[str] = tuple(SSIM_WINDOWS),
    chosen: Sequence[str] = (),
) -> dict[str, Tensor]:
    """Compute the metrics of composites: name as in `METRICS` → float64 N on the images' device.

    result, image: uint8 N×H×W×3; mask: N×H×W (1 = hole); conventions: of SSIM; chosen: of those
    that need weights. A metric whose window is larger than the image is NaN.
    """
    side = min(image.shape[1:3])
    nothing = torch.full((len(image),), torch.nan, dtype=torch.float64, device=image.device)
    return {
        m.name: m.function(result, image, mask) if side >= m.window else nothing
        for m in METRICS
        if m.function and m.convention in ("", *conventions) and (not m.needs or m.name in chosen)
    }
