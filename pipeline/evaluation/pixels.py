"""PSNR, SSIM and L1 of composites, and the composites themselves: uint8 N×H×W×3 RGB.

A metric is computed per image and averaged afterwards (not PSNR of a mean error). Published SSIM
values follow different conventions. The four that occur are named here; each equals scikit-image's
`structural_similarity` with the options given:

    gauss11_rgb     gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=2
                    (Wang et al. 2004, which MSA-Net cites; MMagic, LaMa)
    uniform7_rgb    channel_axis=2 (MUSICAL's quality_test)
    uniform7_gray   of rgb2gray (MUSICAL's Paris script, which weighs B as R: here R is R)
    uniform51_gray  win_size=51, of rgb2gray (EdgeConnect's metrics.py, MANet)
"""

import functools

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

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


def _difference(result: Tensor, image: Tensor) -> Tensor:
    """Compute the absolute difference as floats, from bytes: a quarter of the memory."""
    return (torch.maximum(result, image) - torch.minimum(result, image)).float()


def psnr(result: Tensor, image: Tensor) -> Tensor:
    """Compute the peak signal-to-noise ratio in dB over all three channels, range 255, at most 100.

    result, image: uint8 N×H×W×3. Returns float64 N.
    """
    difference = _difference(result, image).flatten(2)
    squares = torch.linalg.vecdot(difference, difference).sum(1, dtype=torch.float64)
    mse = squares / result[0].numel()
    return (10 * torch.log10(255.0**2 / mse)).clamp(max=PSNR_CAP)


def l1(result: Tensor, image: Tensor) -> Tensor:
    """Compute the mean absolute difference in % of 255. uint8 N×H×W×3 → float64 N."""
    rows = _difference(result, image).flatten(2).sum(2)  # exact below 2²⁴
    return rows.sum(1, dtype=torch.float64) / result[0].numel() / 255 * 100


def l1_hole(result: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """Compute the mean absolute difference in % of 255 over the hole (mask N×H×W, 1 = hole).

    uint8 N×H×W×3 → float64 N; NaN for an image without a hole.
    """
    hole = mask.bool()
    ones = torch.ones(3, device=hole.device)
    error = (_difference(result, image) @ ones).mul_(hole)  # summed over the channels
    return error.sum((1, 2), dtype=torch.float64) / (hole.sum((1, 2)) * 3) / 255 * 100


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
    if convention.endswith("gray"):
        luma = torch.tensor(LUMA, device=a.device)
        a, b = ((x @ luma).unsqueeze(-1) for x in (a, b))
    d = a - b
    s = a.add_(b).sub_(255)  # variance ignores a shift, rounding does not
    mean_s, mean_d = _mean(s, convention), _mean(d, convention)
    mean_ss, mean_dd = _mean(s.square_(), convention), _mean(d.square_(), convention)
    window = _window(convention)
    biased = 1.0 if convention == "gauss11_rgb" else 1 - 1 / window**2  # c2 fits that variance
    c1, c2 = 2 * (0.01 * 255) ** 2, 2 * (0.03 * 255) ** 2 * biased
    lum_d = mean_d.square_()
    var_s = mean_ss.addcmul_(mean_s, mean_s, value=-1).add_(c2)  # Var a + Var b + 2 Cov + c2
    var_d = mean_dd.sub_(lum_d)  # Var a + Var b − 2 Cov
    lum_s = mean_s.add_(255).square_().add_(c1)
    score = (lum_s - lum_d).mul_(var_s - var_d)
    score.div_(lum_s.add_(lum_d).mul_(var_s.add_(var_d)))
    if score.device.type == "cpu":
        border = window // 2
        score = score[:, border:-border, border:-border]
    return score.mean((2, 3)).mean(1, dtype=torch.float64)


def _window(convention: str) -> int:
    """Return the side of the window, which is in the convention's name."""
    return int("".join(filter(str.isdigit, convention)))


def _mean(x: Tensor, convention: str) -> Tensor:
    """Compute the weighted mean over each window inside the image.

    N×H×W×C → N×(H−w+1)×(W−w+1)×C; on a CPU N×H×W×C, whose border of w // 2 pixels is invalid.
    """
    if x.device.type != "cpu":
        return _mean_torch(x, convention)
    window, means = _window(convention), torch.empty_like(x)
    for one, mean in zip(x.numpy(), means.numpy()):  # OpenCV: three times as fast as torch's sums
        if convention == "gauss11_rgb":
            cv2.sepFilter2D(one, cv2.CV_32F, _TAPS, _TAPS, dst=mean)
        else:
            cv2.boxFilter(one, cv2.CV_32F, (window, window), dst=mean)
    return means


def _mean_torch(x: Tensor, convention: str) -> Tensor:
    window = _window(convention)
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
