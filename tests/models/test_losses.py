import numpy as np
import pytest
import torch

from models import losses


def maps(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(shape, generator=generator) for shape in shapes]


def test_pixel_losses_are_means_over_all_pixels():
    a, b = maps((2, 3, 4, 5), (2, 3, 4, 5))
    difference = a.numpy().astype(float) - b.numpy().astype(float)
    assert losses.l1(a, b).item() == pytest.approx(np.abs(difference).mean(), rel=1e-6)
    assert losses.l2(a, b).item() == pytest.approx((difference**2).mean(), rel=1e-6)


def test_l1_in_the_hole_still_divides_by_the_whole_image():
    a, b = torch.ones(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)
    hole = torch.zeros(1, 1, 4, 4)
    hole[..., 0] = 1
    assert losses.l1(a, b, hole).item() == pytest.approx(0.25)


def test_perceptual_loss_sums_means_over_maps():
    ours, theirs = maps((2, 4, 6, 6), (2, 8, 3, 3)), maps((2, 4, 6, 6), (2, 8, 3, 3), seed=1)
    gaps = [(x - y).double().numpy() for x, y in zip(ours, theirs)]
    assert losses.perceptual(ours, theirs).item() == pytest.approx(
        sum((g**2).mean() for g in gaps), rel=1e-6
    )
    assert losses.perceptual(ours, theirs, "l1").item() == pytest.approx(
        sum(np.abs(g).mean() for g in gaps), rel=1e-6
    )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gram_matrices_follow_equations_13_to_15(layout):
    (x,) = maps((2, 5, 4, 6))
    vectors = x.numpy().astype(float).reshape(2, 5, 24).transpose(0, 2, 1)  # γ(F): HW × C
    expected = np.stack([v.T @ v for v in vectors]) / (5 * 24)
    np.testing.assert_allclose(losses.gram(x.to(memory_format=layout)).numpy(), expected, rtol=1e-5)


def test_style_loss_is_the_mean_absolute_difference_of_gram_matrices():
    (a,), (b,) = maps((3, 4, 5, 5)), maps((3, 4, 5, 5), seed=1)
    u, v = (x.double().numpy().reshape(3, 4, 25) for x in (a, b))
    gap = (np.einsum("ncp,ndp->ncd", u, u) - np.einsum("ncp,ndp->ncd", v, v)) / (4 * 25)
    assert losses.style([a], [b]).item() == pytest.approx(np.abs(gap).sum() / (3 * 16), rel=1e-5)


def test_gram_matrices_stay_in_float32_under_bf16_autocast():
    x = torch.full((1, 2, 64, 64), 1.0) + torch.arange(2)[None, :, None, None] * 1e-3
    with torch.autocast("cpu", torch.bfloat16):
        found = losses.gram(x)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found[0, 1, 1].item(), 1.001**2 / 2, rtol=1e-5)


def test_features_of_the_target_get_no_gradient():
    ours, theirs = (torch.rand(1, 4, 5, 5, requires_grad=True) for _ in range(2))
    (losses.perceptual([ours], [theirs]) + losses.style([ours], [theirs])).backward()
    assert theirs.grad is None and ours.grad.abs().sum() > 0


def test_total_variation_of_a_ramp_is_its_slope():
    ramp = torch.arange(8.0).expand(2, 3, 6, 8) * 0.25
    assert losses.tv(ramp).item() == pytest.approx(0.25)
    assert losses.tv(ramp.transpose(2, 3)).item() == pytest.approx(0.25)


def test_adversarial_losses_are_cross_entropy_and_least_squares():
    real, fake = maps((2, 3, 4, 4))[0] * 4 - 2, maps((2, 3, 4, 4), seed=1)[0] * 4 - 2
    p, q = (1 / (1 + np.exp(-x.double().numpy())) for x in (real, fake))
    assert losses.adversarial_generator(fake, "vanilla").item() == pytest.approx(
        -np.log(q).mean(), rel=1e-5
    )
    assert losses.adversarial_discriminator(real, fake, "vanilla").item() == pytest.approx(
        (-np.log(p).mean() - np.log(1 - q).mean()) / 2, rel=1e-5
    )
    r, f = real.double().numpy(), fake.double().numpy()
    assert losses.adversarial_generator(fake, "lsgan").item() == pytest.approx(
        ((f - 1) ** 2).mean(), rel=1e-5
    )
    assert losses.adversarial_discriminator(real, fake, "lsgan").item() == pytest.approx(
        (((r - 1) ** 2).mean() + (f**2).mean()) / 2, rel=1e-5
    )


def test_an_unknown_adversarial_loss_is_refused():
    with pytest.raises(ValueError, match="vanilla, lsgan"):
        losses.adversarial_generator(torch.zeros(1), "hinge")
