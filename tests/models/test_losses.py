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
    with pytest.raises(ValueError, match="vanilla, lsgan, hinge, wgan"):
        losses.adversarial_generator(torch.zeros(1), "ralsgan")


def scene(n=2, size=12):
    """Output, image and mask, each image with its own hole, as tensors and as float64 arrays."""
    output, image = maps((n, 3, size, size), (n, 3, size, size))
    mask = torch.zeros(n, 1, size, size)
    for i in range(n):
        mask[i, :, 2 : 7 + i, 1 + 2 * i : 9] = 1
    return (output, image, mask), [x.double().numpy() for x in (output, image, mask)]


def test_means_per_region_are_those_of_edgeconnect_and_deepfill():
    (output, image, mask), (o, x, m) = scene()
    whole = [np.abs(o[i] - x[i]).mean() / m[i].mean() for i in range(2)]  # EdgeConnect's L1
    assert losses.l1(output, image, per=mask).item() == pytest.approx(np.mean(whole), rel=1e-6)
    known = [(np.abs(o[i] - x[i]) * (1 - m[i])).mean() / (1 - m[i]).mean() for i in range(2)]
    found = losses.l1(output, image, 1 - mask, per=1 - mask)  # DeepFill's auto-encoding loss
    assert found.item() == pytest.approx(np.mean(known), rel=1e-6)
    nothing = losses.l1(output, image, torch.zeros_like(mask), per=torch.zeros_like(mask))
    assert nothing.item() == 0


def test_total_variation_of_a_region_is_pconvs_equation_8():
    (output, _, mask), (o, _, m) = scene()
    expected = 0.0
    for h, w in ((1, 0), (0, 1)):
        pairs = [
            abs(o[i, c, y + h, x + w] - o[i, c, y, x])
            if m[i, 0, y + h, x + w] and m[i, 0, y, x]
            else 0.0
            for i in range(2)
            for c in range(3)
            for y in range(12 - h)
            for x in range(12 - w)
        ]
        expected += np.mean(pairs)
    assert losses.tv(output, mask).item() == pytest.approx(expected, rel=1e-6)


def test_distances_to_the_known_part_are_those_of_a_search():
    _, (_, _, m) = scene()
    m[1, 0, 0, 10:] = 1
    found = losses.hole_distance(torch.from_numpy(m), reach=3).numpy()
    for i in range(2):
        known = np.argwhere(m[i, 0] == 0)
        for y in range(12):
            for x in range(12):
                distance = np.abs(known - (y, x)).max(1).min()
                assert found[i, 0, y, x] == min(distance, 3)


def test_the_discount_in_a_box_is_deepfills_but_for_its_far_sides():
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 4:24, 6:30] = 1
    found = losses.discount(mask, 0.9)[0, 0].double().numpy()
    expected = np.zeros((32, 32))
    for y in range(20):
        for x in range(24):  # their code, whose far sides are one pixel late
            expected[4 + y, 6 + x] = max(0.9 ** min(y, 19 - y), 0.9 ** min(x, 23 - x))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_feature_matching_is_the_l1_of_the_discriminators_maps():
    ours, theirs = maps((2, 4, 6, 6), (2, 8, 3, 3)), maps((2, 4, 6, 6), (2, 8, 3, 3), seed=1)
    expected = sum(torch.nn.L1Loss()(a, b).item() for a, b in zip(ours, theirs))
    assert losses.perceptual(ours, theirs, "l1").item() == pytest.approx(expected, rel=1e-6)


def test_hinge_and_wasserstein_losses_are_their_papers():
    real, fake = (x.double() * 6 - 3 for x in maps((4, 2), (4, 2)))
    r, f = real.numpy(), fake.numpy()
    for kind in ("hinge", "wgan"):
        assert losses.adversarial_generator(fake, kind).item() == pytest.approx(-f.mean(), rel=1e-6)
    hinge = np.maximum(0, 1 - r).mean() + np.maximum(0, 1 + f).mean()
    found = losses.adversarial_discriminator(real, fake, "hinge")
    assert found.item() == pytest.approx(hinge, rel=1e-6)
    found = losses.adversarial_discriminator(real, fake, "wgan")
    assert found.item() == pytest.approx(f.mean() - r.mean(), rel=1e-5)


@pytest.mark.parametrize("inside", [False, True])
def test_the_penalty_of_a_linear_critic_has_a_closed_form(inside):
    (fake, real, mask), (_, _, m) = scene()
    weight = maps((3, 12, 12), seed=3)[0] - 0.5

    def critic(image):  # judges in [−1, 1]
        return ((image * 2 - 1) * weight).sum((1, 2, 3))

    where = mask if inside else None
    found = losses.gradient_penalty(critic, real, fake, torch.rand(2, 1, 1, 1), where)
    w = weight.double().numpy()
    slopes = [np.sqrt(((w * m[i]) ** 2).sum() if inside else (w**2).sum()) for i in range(2)]
    expected = np.mean([(slope - 1) ** 2 for slope in slopes])
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_the_penalty_is_taken_between_the_images_and_trains_the_critic():
    torch.manual_seed(0)
    (fake, real, _), _ = scene()
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ELU(), torch.nn.Conv2d(4, 1, 3))
    noise = torch.tensor([0.25, 0.8]).view(2, 1, 1, 1)

    def slopes(parameters):
        def one(point):
            return torch.func.functional_call(layers, parameters, point[None]).sum()

        points = noise * real + (1 - noise) * fake
        return torch.func.vmap(torch.func.grad(one))(points).flatten(1).norm(dim=1)

    def penalty(parameters):
        return (slopes(parameters) - 1).square().mean()

    expected = torch.func.grad(penalty)(dict(layers.named_parameters()))
    found = losses.gradient_penalty(layers, real, fake, noise, span=1.0)
    torch.testing.assert_close(found, penalty(dict(layers.named_parameters())))
    found.backward()
    for name, parameter in layers.named_parameters():
        if "bias" not in name:
            torch.testing.assert_close(parameter.grad, expected[name])
    assert layers[0].weight.grad.abs().sum() > 0
