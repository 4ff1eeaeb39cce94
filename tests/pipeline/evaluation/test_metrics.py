from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data
from skimage.color import rgb2gray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from pipeline.config.groups import SSIM_WINDOWS
from pipeline.evaluation import intervals, metrics, pixels

WANG = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}


def skimage_ssim(a, b, convention):
    if convention == "gauss11_rgb":
        return structural_similarity(a, b, data_range=255, channel_axis=2, **WANG)
    if convention == "uniform7_rgb":
        return structural_similarity(a, b, data_range=255, channel_axis=2)
    window = 7 if convention == "uniform7_gray" else 51
    return structural_similarity(rgb2gray(a), rgb2gray(b), data_range=1, win_size=window)


def image_pairs():
    """Real, flat and bright, black, and pure noise, with errors in a hole and all over."""
    rng = np.random.default_rng(3)
    image = np.stack(
        [
            data.astronaut()[100:196, 150:280],
            data.coffee()[40:136, 60:190],
            np.full((96, 130, 3), 250, np.uint8),
            np.zeros((96, 130, 3), np.uint8),
            rng.integers(0, 256, (96, 130, 3), dtype=np.uint8),
        ]
    )
    result = image.astype(int)
    result[0, 20:60, 30:90] += rng.integers(-60, 60, (40, 60, 3))
    result[1] += 3
    result[2] += rng.integers(-2, 3, (96, 130, 3))
    result[3, ::5] = 255
    result[4] = 255 - result[4]
    return np.clip(result, 0, 255).astype(np.uint8), image


@pytest.mark.parametrize("convention", SSIM_WINDOWS)
def test_ssim_equals_scikit_image_in_each_convention(convention):
    result, image = image_pairs()
    ours = pixels.ssim(torch.from_numpy(result), torch.from_numpy(image), convention)
    theirs = [skimage_ssim(a, b, convention) for a, b in zip(result, image)]
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("convention", SSIM_WINDOWS)
def test_the_sums_that_run_on_an_accelerator_equal_opencv_s(convention):
    channels = 1 if convention.endswith("gray") else 3
    x = torch.rand(2, 60, 70, channels, generator=torch.Generator().manual_seed(0)) * 255
    border = SSIM_WINDOWS[convention] // 2
    on_cpu = pixels._mean(x, convention)[:, border:-border, border:-border]
    summed = pixels._mean_torch(x, convention)
    assert summed.shape == (2, 60 - 2 * border, 70 - 2 * border, channels)
    torch.testing.assert_close(on_cpu.double(), summed.double(), atol=2e-4, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("convention", SSIM_WINDOWS)
def test_on_an_accelerator_ssim_equals_scikit_image_too(convention):
    result, image = image_pairs()
    ours = pixels.ssim(torch.from_numpy(result).cuda(), torch.from_numpy(image).cuda(), convention)
    theirs = [skimage_ssim(a, b, convention) for a, b in zip(result, image)]
    np.testing.assert_allclose(ours.cpu().numpy(), theirs, atol=1e-6, rtol=0)


def test_psnr_equals_scikit_image_and_is_capped_for_identical_images():
    result, image = image_pairs()
    ours = pixels.psnr(torch.from_numpy(result), torch.from_numpy(image))
    theirs = [peak_signal_noise_ratio(b, a, data_range=255) for a, b in zip(result, image)]
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-7)
    same = torch.from_numpy(image)
    assert pixels.psnr(same, same).tolist() == [100.0] * len(same)


def test_mean_l1_is_percent_of_the_range_over_the_image_and_over_the_hole():
    image = torch.zeros(2, 4, 5, 3, dtype=torch.uint8)
    result = image.clone()
    mask = torch.zeros(2, 4, 5, dtype=torch.uint8)
    mask[0, :2] = 1  # half of the image
    result[0, :2] = 51  # a fifth of the range
    assert pixels.l1(result, image).tolist() == pytest.approx([10.0, 0.0])
    hole = pixels.l1_hole(result, image, mask)
    assert hole[0].item() == pytest.approx(20.0)
    assert torch.isnan(hole[1])


def test_the_composite_keeps_known_bytes_and_takes_the_prediction_in_the_hole():
    image = torch.randint(0, 256, (1, 6, 6, 3), dtype=torch.uint8)
    mask = torch.zeros(1, 6, 6)
    mask[:, 2:4, 1:5] = 1
    prediction = pixels.to_bytes(torch.full((1, 3, 6, 6), 1.5))
    result = pixels.composite_bytes(prediction, image, mask)
    assert (result[:, 2:4, 1:5] == 255).all()
    known = mask == 0
    assert torch.equal(result[known], image[known])


def test_bytes_survive_the_way_through_float():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    there = levels.permute(0, 3, 1, 2).float() / 255
    assert torch.equal(pixels.to_bytes(there), levels)


def test_an_image_smaller_than_the_window_is_blank_in_a_table():
    small = torch.zeros(1, 32, 40, 3, dtype=torch.uint8)
    values = metrics.measure(small, small, torch.ones(1, 32, 40))
    assert tuple(values) == tuple(m.name for m in metrics.METRICS if not m.needs)
    assert torch.isnan(values["ssim_uniform51_gray"]).all()
    assert values["ssim_gauss11_rgb"].item() == 1.0


def test_the_bootstrap_interval_of_a_normal_sample_has_the_width_theory_gives():
    values = np.random.default_rng(1).normal(25.0, 4.0, 2000)
    low, high = intervals.bootstrap(values)
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_pairing_sees_a_difference_that_two_intervals_do_not():
    rng = np.random.default_rng(2)
    theirs = rng.normal(25.0, 4.0, 500)
    ours = theirs + rng.normal(0.1, 0.2, 500)
    assert intervals.bootstrap(ours)[0] < intervals.bootstrap(theirs)[1]
    verdict = intervals.paired_bootstrap(ours, theirs)
    assert verdict["ci"][0] > 0.05 and verdict["p"] < 0.01
    with pytest.raises(ValueError, match="500 with 499"):
        intervals.paired_bootstrap(ours, theirs[1:])


def test_without_a_difference_one_comparison_in_twenty_looks_significant():
    draws = np.random.default_rng(5).normal(0, 1, (200, 100))
    p = [intervals.paired_bootstrap(values, np.zeros(100))["p"] for values in draws]
    assert 0.01 < np.mean(np.array(p) < 0.05) < 0.11


def test_the_benchmark_times_what_agrees_with_scikit_image():
    from pipeline.bench import metrics as bench

    result = bench.run(images=2, repetitions=1, pairs=2)
    assert result["ratios"]["largest difference of a number"] < 1e-6
    assert {row["name"]: row["items"] for row in result["rows"]} == {
        **dict.fromkeys(("ours", "scikit-image", "evaluate", "network and metrics"), 2),
        **dict.fromkeys(("LPIPS (VGG)", "its network"), 2),
    }
    assert [goal["target"] for goal in result["targets"].values()] == [5.0, 1.15, 1.2]


def test_the_benchmark_of_prediction_is_compared_with_the_printed_time():
    from pipeline.bench import predict as bench

    result = bench.run(images=2, repetitions=1, width=1 / 16)
    assert [row["name"] for row in result["rows"]] == ["batch 1", "batch 2"]
    assert result["work"]["printed"]["seconds an image"] == 0.026
    known = Path("/proc/cpuinfo")
    if known.exists() and "model name" in known.read_text():
        assert f": {result['device']['cpu']}\n" in known.read_text()
    batch_1 = result["rows"][0]["seconds"][0]
    ratio = result["ratios"]["batch 1, of the printed 0.026 s"]
    assert ratio == pytest.approx(batch_1 / 2 / 0.026)


@pytest.mark.parametrize(
    ("logged", "better"),
    [
        ("val/psnr", 1),
        ("best/ssim", 1),
        ("val/l1", -1),
        ("eval/msanet/l1 0.1_0.2", -1),
        ("eval/msanet/psnr 0.1_0.2", 1),
        ("g/style", -1),
        ("d/loss", -1),
        ("perf/images_per_s", 1),
    ],
)
def test_what_is_better_is_known_of_every_logged_name(logged, better):
    assert metrics.direction(logged) == better
