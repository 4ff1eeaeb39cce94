import pytest
import torch
import torch.nn.functional as F

from models.pconv import PartialConv, PConv, smooth_fill


def small(levels=5):
    torch.manual_seed(0)
    return PConv(levels=levels, width=0.1)


def hole(n, size, kind="center"):
    mask = torch.zeros(n, 1, size, size)
    if kind == "center":
        mask[:, :, size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 1
    else:
        mask = (torch.rand(n, 1, size, size) < 0.4).float()
    return mask


@pytest.mark.parametrize(("levels", "weights"), [(7, 25_779_796), (8, 32_859_732)])
def test_the_generator_has_the_size_of_its_layer_table(levels, weights):
    with torch.device("meta"):
        assert sum(p.numel() for p in PConv(levels=levels).parameters()) == weights


def windows(x, known, weight, bias, stride, padding):
    """Eq. 1 and 2 of the paper, window by window; `known` has a channel for each of x's."""
    n, _, height, width = x.shape
    out, _, k, _ = weight.shape
    rows, columns = ((s + 2 * padding - k) // stride + 1 for s in (height, width))
    x, known = (F.pad(t, (padding,) * 4) for t in (x, known))
    y, updated = torch.zeros(n, out, rows, columns, dtype=x.dtype), torch.zeros(n, rows, columns)
    for i in range(n):
        for r in range(rows):
            for c in range(columns):
                here = (i, slice(None), slice(r * stride, r * stride + k))
                here = (*here, slice(c * stride, c * stride + k))
                window, m = x[here], known[here]
                if m.sum() > 0:
                    scaled = window * m * (m.numel() / m.sum())
                    y[i, :, r, c] = (weight * scaled).sum((1, 2, 3)) + bias
                    updated[i, r, c] = 1
    return y, updated


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 2), (7, 2)])
def test_a_partial_convolution_is_the_papers_formula_in_every_window(kernel, stride):
    torch.manual_seed(kernel)
    conv = PartialConv(5, 4, kernel, stride, kernel // 2).double()
    a, b = (torch.randn(2, c, 9, 12, dtype=torch.float64) for c in (2, 3))
    mine = (torch.rand(2, 1, 9, 12) < 0.2).double()
    skip = (torch.rand(2, 1, 9, 12) < 0.1).double()
    mine[0, :, :, :8], skip[0, :, :, :8] = 0, 0  # windows that see nothing
    channels = torch.cat((mine.expand_as(a), skip.expand_as(b)), 1)
    with torch.no_grad():
        found, known = conv((a, mine), (b, skip))
        y, updated = windows(
            torch.cat((a, b), 1), channels, conv.weight, conv.bias, stride, kernel // 2
        )
    torch.testing.assert_close(found, y, rtol=0, atol=1e-12)
    assert torch.equal(known[:, 0], updated.double()) and 0 < updated.mean() < 1


def test_where_all_is_known_it_is_a_plain_convolution():
    conv, x = PartialConv(3, 4, 5, 1, 2), torch.rand(1, 3, 12, 12)
    found, known = conv((x, torch.ones(1, 1, 12, 12)))
    torch.testing.assert_close(
        found[..., 2:-2, 2:-2], conv._conv_forward(x, conv.weight, conv.bias)[..., 2:-2, 2:-2]
    )
    assert known.all()


def test_the_scale_makes_up_for_what_is_missing_in_a_constant_image():
    conv = PartialConv(1, 1, 3, 1, 1, bias=False)
    torch.nn.init.constant_(conv.weight, 1 / 9)
    mask = hole(1, 16)
    found, known = conv((torch.full((1, 1, 16, 16), 0.7), 1 - mask))
    torch.testing.assert_close(found[known.bool()], torch.full_like(found[known.bool()], 0.7))
    assert (found[~known.bool()] == 0).all() and known.sum() == 256 - 36


def test_the_hole_shrinks_level_by_level():
    generator, sides = PConv(width=0.07).eval(), []
    for block in (*generator.encoder, generator.out):
        block.register_forward_hook(
            lambda _m, _a, out: sides.append((1 - out[1]).sum().sqrt().item())
        )
    with torch.no_grad():
        generator(torch.rand(1, 3, 256, 256), hole(1, 256))
    assert sides == [61, 29, 13, 5, 1, 0, 0, 0]


def test_the_network_is_its_layer_table():
    generator = PConv(width=1 / 16).eval()
    shapes = [
        (b.conv.kernel_size[0], b.conv.stride[0], b.conv.in_channels, b.conv.out_channels)
        for b in (*generator.encoder, *generator.decoder)
    ]
    assert shapes == [
        (7, 2, 3, 4),
        (5, 2, 4, 8),
        (5, 2, 8, 16),
        (3, 2, 16, 32),
        (3, 2, 32, 32),
        (3, 2, 32, 32),
        (3, 2, 32, 32),
        (3, 1, 64, 32),
        (3, 1, 64, 32),
        (3, 1, 64, 32),
        (3, 1, 48, 16),
        (3, 1, 24, 8),
        (3, 1, 12, 4),
    ]
    assert generator.out.weight.shape == (3, 4 + 3, 3, 3)
    leaks = [b.activate.negative_slope for b in (*generator.encoder, *generator.decoder)]
    assert leaks == [0.0] * 7 + [0.2] * 6


@pytest.mark.parametrize("kind", ["center", "irregular"])
@pytest.mark.parametrize("training", [False, True])
def test_the_output_does_not_change_when_hole_pixels_change(kind, training):
    generator, mask, image = small().train(training), hole(2, 64, kind), torch.rand(2, 3, 64, 64)
    other = torch.where(mask.bool(), torch.rand_like(image), image)
    with torch.no_grad():
        assert torch.equal(generator(image, mask).image, generator(other, mask).image)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_masks_of_nothing_and_of_everything_give_finite_images_and_gradients(value):
    generator = small()
    generator(torch.rand(2, 3, 64, 64), torch.full((2, 1, 64, 64), value)).image.sum().backward()
    assert all(p.grad.isfinite().all() for p in generator.parameters())


@pytest.mark.parametrize("size", [32, 80])
def test_a_size_off_the_grid_is_refused(size):
    with pytest.raises(ValueError, match="multiples of 32, at least 64×64"):
        small()(torch.rand(1, 3, size, size), torch.zeros(1, 1, size, size))


@pytest.mark.parametrize("kind", ["center", "irregular"])
def test_a_smooth_fill_is_close_to_the_solution_of_laplaces_equation(kind):
    """Solved directly by scipy, in `baselines`. Known pixels are kept."""
    from pipeline.inference.baselines import harmonic

    torch.manual_seed(1)
    image = F.interpolate(torch.rand(2, 3, 8, 8), size=64, mode="bicubic").clamp(0, 1)
    mask = hole(2, 64, kind)
    filled, exact = smooth_fill(image, 1 - mask, 5), harmonic(image, mask)
    assert torch.equal(filled * (1 - mask), image * (1 - mask))
    error, spread = (((x - exact) * mask).square().mean().sqrt() for x in (filled, constant(image)))
    assert error < spread / 3, "a constant differs by the spread"


def constant(image):
    return image.mean((2, 3), keepdim=True)


def test_an_untrained_network_that_corrects_the_fill_returns_it_and_learns():
    torch.manual_seed(0)
    generator = PConv(levels=5, width=0.1, fill=True)
    image, mask = torch.rand(2, 3, 64, 64), hole(2, 64)
    erased = image * (1 - mask)
    expected = smooth_fill(erased * 2 - 1, 1 - mask, 5) / 2 + 0.5
    made = generator(erased, mask).image
    torch.testing.assert_close(made, expected)
    made.square().mean().backward()
    assert generator.out.weight.grad.abs().max() > 0


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_smooth_fill_of_nothing_and_of_everything_is_finite(value):
    mask = torch.full((1, 1, 64, 64), value)
    filled = smooth_fill(torch.zeros(1, 3, 64, 64), 1 - mask, 5)
    assert torch.equal(filled, torch.zeros(1, 3, 64, 64))
