"""Metrics of composites: one record each, and the functions of PSNR and L1.

Images are uint8 N×H×W×3 RGB: the composite as it would be saved. A metric of single images is
computed per image and averaged afterwards (not PSNR of a mean error); one of two sets compares the
composites with the originals. Published SSIM values follow
different conventions. The four that occur are named here; each equals scikit-image's
`structural_similarity` with the options given:

    gauss11_rgb     gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=2
                    (Wang et al. 2004, which MSA-Net cites; MMagic, LaMa)
    uniform7_rgb    channel_axis=2 (MUSICAL's quality_test)
    uniform7_gray   of rgb2gray (MUSICAL's Paris script, which weighs B as R: here R is R)
    uniform51_gray  win_size=51, of rgb2gray (EdgeConnect's metrics.py, MANet)
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models import perceptual
from models.inception import Inception
from pipeline.config.groups import SSIM_WINDOWS
from pipeline.evaluation import learned, sets
from pipeline.evaluation.sets import SetFunction

PSNR_CAP = 100.0  # dB, for identical images
_WEIGHTS = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
_TAPS = (_WEIGHTS / _WEIGHTS.sum()).astype(np.float32)  # σ = 1.5, cut at 5 (3.5 σ)
LUMA = (0.2125, 0.7154, 0.0721)  # skimage.color.rgb2gray


def to_bytes(image: Tensor) -> Tensor:
    """Convert float N×3×H×W in [0, 1] (clamped) → uint8 N×H×W×3, rounded to nearest."""
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def composite_bytes(prediction: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """Take the prediction where the mask is 1, the image's own bytes elsewhere.

    prediction, image: uint8 N×H×W×3; mask: N×H×W, 0 or 1 (1 = hole). Returns uint8 N×H×W×3.
    """
    return torch.where(mask.bool().unsqueeze(-1), prediction, image)


def psnr(result: Tensor, image: Tensor) -> Tensor:
    """Compute the peak signal-to-noise ratio in dB over all three channels, range 255, at most 100.

    result, image: uint8 N×H×W×3. Returns float64 N.
    """
    difference = result.float().sub_(image.float()).flatten(2)
    squares = torch.linalg.vecdot(difference, difference).sum(1, dtype=torch.float64)
    mse = squares / result[0].numel()
    return (10 * torch.log10(255.0**2 / mse)).clamp(max=PSNR_CAP)


def l1(result: Tensor, image: Tensor) -> Tensor:
    """Compute the mean absolute difference in % of 255. uint8 N×H×W×3 → float64 N."""
    error = (result.float() - image.float()).abs_().mean((1, 2, 3), dtype=torch.float64)
    return error / 255 * 100


def l1_hole(result: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """Compute the mean absolute difference in % of 255 over the hole (mask N×H×W, 1 = hole).

    uint8 N×H×W×3 → float64 N; NaN for an image without a hole.
    """
    hole = mask.bool().unsqueeze(-1)
    error = ((result.float() - image.float()).abs_() * hole).sum((1, 2, 3), dtype=torch.float64)
    return error / (hole.sum((1, 2, 3)) * 3) / 255 * 100


def ssim(result: Tensor, image: Tensor, convention: str = "gauss11_rgb") -> Tensor:
    """Compute the mean structural similarity (Wang et al. 2004) over windows inside the image.

    result, image: uint8 N×H×W×3, neither side smaller than the window. Returns float64 N.
    """
    # On a CPU, one image at a time keeps its planes in cache.
    step = 1 if image.device.type == "cpu" else len(image)
    starts = range(0, len(image), step)
    parts = [_ssim(result[i : i + step], image[i : i + step], convention) for i in starts]
    return torch.cat(parts)


def _ssim(result: Tensor, image: Tensor, convention: str) -> Tensor:
    # With s = a + b and d = a − b the formula needs four filters instead of five, and d = 0
    # gives exactly 1: the float32 rounding of E[s²] − E[s]² then cancels where it would matter.
    a, b = result.float(), image.float()
    d = a - b
    s = a.add_(b)
    if convention.endswith("gray"):
        luma = torch.tensor(LUMA, device=a.device)
        s, d = ((x @ luma).unsqueeze(-1) for x in (s, d))
    s -= 255  # variance ignores a shift, rounding does not
    mean_s, mean_d = _mean(s, convention), _mean(d, convention)
    mean_ss, mean_dd = _mean(s.square_(), convention), _mean(d.square_(), convention)
    window = SSIM_WINDOWS[convention]
    unbiased = 1.0 if convention == "gauss11_rgb" else window**2 / (window**2 - 1)
    lum_d = mean_d.square_()
    var_s = mean_ss.addcmul_(mean_s, mean_s, value=-1).mul_(unbiased)  # Var a + Var b + 2 Cov
    var_d = mean_dd.sub_(lum_d).mul_(unbiased)  # Var a + Var b − 2 Cov
    lum_s = mean_s.add_(255).square_()
    c1, c2 = 2 * (0.01 * 255) ** 2, 2 * (0.03 * 255) ** 2
    score = (lum_s - lum_d).add_(c1).mul_((var_s - var_d).add_(c2))
    score.div_(lum_s.add_(lum_d).add_(c1).mul_(var_s.add_(var_d).add_(c2)))
    if score.device.type == "cpu":
        border = window // 2
        score = score[:, border:-border, border:-border]
    return score.mean((2, 3)).mean(1, dtype=torch.float64)


def _mean(x: Tensor, convention: str) -> Tensor:
    """Compute the weighted mean over each window inside the image.

    N×H×W×C → N×(H−w+1)×(W−w+1)×C; on a CPU N×H×W×C, whose border of w // 2 pixels is invalid.
    """
    if x.device.type != "cpu":
        return _mean_torch(x, convention)
    window, means = SSIM_WINDOWS[convention], torch.empty_like(x)
    for one, mean in zip(x.numpy(), means.numpy()):  # OpenCV: three times as fast as torch's sums
        if convention == "gauss11_rgb":
            cv2.sepFilter2D(one, cv2.CV_32F, _TAPS, _TAPS, dst=mean)
        else:
            cv2.boxFilter(one, cv2.CV_32F, (window, window), dst=mean)
    return means


def _mean_torch(x: Tensor, convention: str) -> Tensor:
    window = SSIM_WINDOWS[convention]
    for dim in (1, 2):
        size = x.shape[dim] - window + 1
        if convention == "gauss11_rgb":
            shifted = (x.narrow(dim, i, size) * tap for i, tap in enumerate(_TAPS.tolist()))
            x = functools.reduce(Tensor.add_, shifted)
        else:
            sums = functional.pad(x.movedim(dim, -1).cumsum(-1, dtype=torch.float64), (1, 0))
            means = (sums.narrow(-1, window, size) - sums.narrow(-1, 0, size)) / window
            x = means.movedim(-1, dim)
    return x


@dataclass(frozen=True)
class Metric:
    """A metric of one image or of two sets: what it is, how to compute it and how to print it."""

    name: str  # column of per-image tables
    title: str
    unit: str
    digits: int  # printed decimals
    direction: int  # 1: higher is better; -1: lower is better
    function: Callable[[Tensor, Tensor, Tensor], Tensor] | None  # result, image, mask → float64 N
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


def _ssim_in(convention: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda result, image, mask: ssim(result, image, convention)


def _learned(
    name: str, title: str, how: str, network: Callable[[], nn.Module], *needs: str
) -> Metric:
    function = learned.distance(network, needs)
    window = perceptual.SMALLEST
    return Metric(
        *(name, title, "", 4, -1, function, window),
        how=how,
        network=network,
        needs=needs,
        tolerance=0.002,
    )


def _psnr(result: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    return psnr(result, image)


def _l1(result: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    return l1(result, image)


RGB = "RGB, range 255"
IN_PERCENT = (0.0, 100.0)
# To add a metric, write its function and add a row here. Those without `needs` cost next to nothing
# and are always computed; `metrics=` asks for the others.
METRICS: tuple[Metric, ...] = (
    Metric("psnr", "PSNR", "dB", 3, 1, _psnr, range=(0, PSNR_CAP), how=f"{RGB}, mean over images"),
    *(
        Metric(
            *(f"ssim_{x}", "SSIM", "", 4, 1, _ssim_in(x), window, x),
            range=(-1, 1),
            how=x,
            tolerance=0.002,
        )
        for x, window in SSIM_WINDOWS.items()
    ),
    Metric(
        "l1", "L1", "%", 3, -1, _l1, range=IN_PERCENT, how=f"{RGB}, whole image", tolerance=0.02
    ),
    Metric("l1_hole", "L1 of the hole", "%", 3, -1, l1_hole, 1, "", False, IN_PERCENT, RGB),
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
)
_ids = functools.partial(
    _of_sets,
    unit="%",
    digits=2,
    direction=1,
    of_sets=sets.ids,
    least=2048,
    range=IN_PERCENT,
    tolerance=0.5,
)
SET_METRICS: tuple[Metric, ...] = (
    _of_sets("fid", "FID", "", 3, -1, of_sets=sets.fid, least=2048, unbiased=10_000, tolerance=0.2),
    _of_sets(
        "kid",
        "KID",
        "",
        5,
        -1,
        of_sets=sets.kid,
        least=1000,
        range=(-math.inf, math.inf),
        tolerance=2e-4,
    ),
    # So few images a linear SVM separates whatever they show.
    _ids("p_ids", "P-IDS"),
    _ids("u_ids", "U-IDS"),
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
