"""The oracle is a loop over images that cuts patches out and follows the papers to the letter."""

import math

import pytest
import torch
import torch.nn.functional as F

from models import streamed_attention
from models.contextual_attention import MultiScaleAttention, contextual_attention
from tests.support.maps import features, holes

ORDERS = ["paper", "released"]


def patches_of(x, p):
    """C×H×W → (H·W)×(C·p²) zero-padded windows."""
    return F.unfold(x[None], p, padding=p // 2)[0].t()


def naive(f, hole, p, order, temperature, k, keys="window", renormalize="copyable"):
    """One image, C×H×W and H×W bool."""
    c, h, w = f.shape
    n = h * w
    if bool(hole.all()) or not bool(hole.any()):
        return f.clone()
    background = f * ~hole
    queries, raw = patches_of(f, p), patches_of(background, p)

    def grid(scores):
        return scores.view(h, w, h, w)

    def shifted(scores, i, j, coupled):
        out = torch.zeros_like(scores)
        for y in range(h):
            for x in range(w):
                if not (0 <= y + i < h and 0 <= x + j < w):
                    continue
                source = scores[y + i, x + j]
                if coupled:
                    moved = torch.zeros_like(source)
                    ys, xs = max(0, -i), max(0, -j)
                    ye, xe = h - max(0, i), w - max(0, j)
                    moved[ys:ye, xs:xe] = source[ys + i : ye + i, xs + j : xe + j]
                    source = moved
                out[y, x] = source
        return out

    def propagate(scores, coupled):
        shifts = range(-k, k + 1)
        return sum(shifted(grid(scores), i, j, coupled) for i in shifts for j in shifts).view(n, n)

    if order == "paper":
        norms = queries.norm(dim=1).clamp(min=1e-7)[:, None] * raw.norm(dim=1).clamp(min=1e-7)
        scores = temperature * (queries @ raw.t()) / norms
        dirty = patches_of(hole[None].to(f.dtype), p).sum(1) > 0
        if keys == "all":
            dirty = torch.zeros_like(dirty)
        elif keys == "cell" or bool(dirty.all()):
            dirty = hole.flatten()
        weights = propagate(scores.masked_fill(dirty, -math.inf).softmax(1), True)
        if renormalize == "copyable":
            weights = weights.masked_fill(dirty, 0)
        weights, pasted = weights / weights.sum(1, keepdim=True), raw
    else:
        pasted = raw + 1e-7
        pasted = pasted / pasted.norm(dim=1, keepdim=True)
        weights = propagate(queries @ pasted.t(), False).softmax(1)

    def fold(patches):
        return F.fold((weights @ patches).t()[None], (h, w), p, padding=p // 2)[0]

    copies = p**2
    if order == "paper" and renormalize == "copyable":  # those of patches that have a value there
        valued = torch.ones_like(hole) if keys == "all" else ~hole
        copies = fold(patches_of(valued[None].to(f.dtype), p))
    return torch.where(hole, fold(pasted) / copies, f)


@pytest.fixture(params=[1, 1 << 20], ids=["blocks of the fewest rows", "one block"])
def blocks(request, monkeypatch):
    monkeypatch.setitem(streamed_attention.BLOCK_BYTES, "cpu", request.param)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "kind", ["center", "border", "irregular", "each its own", "no clean window", "none"]
)
@pytest.mark.parametrize(("height", "width"), [(11, 11), (9, 12)])
def test_it_equals_patches_cut_out_and_pasted(order, kind, height, width, blocks):
    f, mask = features(4, 5, height, width), holes(kind, 4, height, width)
    found = contextual_attention(f, mask, (1, 3), order=order)
    for p, out in zip((1, 3), found):
        for image, hole, ours in zip(f, mask[:, 0] > 0, out):
            expected = naive(image, hole, p, order, 10.0, 1)
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("p", "k"), [(1, 0), (3, 0), (3, 2), (5, 1)])
def test_any_patch_size_and_propagation_equals_the_oracle(order, p, k, blocks):
    f, mask = features(1, 4, 10, 9), holes("border", 1, 10, 9)
    (found,) = contextual_attention(f, mask, (p,), order=order, propagation=k, temperature=3.0)
    expected = naive(f[0], mask[0, 0] > 0, p, order, 3.0, k)
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("keys", ["window", "cell", "all"])
@pytest.mark.parametrize("kind", ["border", "each its own", "no clean window"])
def test_weights_of_earlier_versions_include_holes_and_the_border(keys, kind, blocks):
    mask, options = holes(kind, 3, 9, 8), {"keys": keys, "renormalize": "all"}
    ours, theirs = (features(3, 4, 9, 8).requires_grad_() for _ in range(2))
    weight = features(3, 4, 9, 8, seed=1)
    (found,) = contextual_attention(ours, mask, (3,), **options)
    expected = torch.stack(
        [naive(f, m, 3, "paper", 10.0, 1, **options) for f, m in zip(theirs, mask[:, 0] > 0)]
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    for out in (found, expected):
        (out * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("keys", ["cell", "all"])
def test_which_keys_may_be_copied_is_a_choice(keys):
    f, mask = features(1, 4, 9, 9), holes("irregular", 1, 9, 9)
    (found,) = contextual_attention(f, mask, (3,), keys=keys)
    expected = naive(f[0], mask[0, 0] > 0, 3, "paper", 10.0, 1, keys)
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-10)


def test_without_blending_every_cell_is_replaced():
    f, mask = features(1, 4, 8, 8), holes("center", 1, 8, 8)
    (blended,), (whole,) = (contextual_attention(f, mask, (3,), blend=b) for b in ("hole", "none"))
    hole = mask.bool().expand_as(f)
    torch.testing.assert_close(whole[hole], blended[hole])
    assert torch.equal(blended[~hole], f[~hole]) and not torch.equal(whole[~hole], f[~hole])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", ["center", "irregular", "each its own"])
def test_gradients_equal_those_of_the_oracle(order, kind, blocks):
    mask = holes(kind, 3, 9, 10)
    weight = features(6, 4, 9, 10, seed=1).to(memory_format=torch.channels_last)
    ours, theirs = (features(3, 4, 9, 10).requires_grad_() for _ in range(2))
    torch.cat(contextual_attention(ours, mask, (1, 3), order=order)).mul(weight).sum().backward()
    expected = [
        naive(f, m, p, order, 10.0, 1) for p in (1, 3) for f, m in zip(theirs, mask[:, 0] > 0)
    ]
    torch.stack(expected).mul(weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("order", ORDERS)
def test_gradients_agree_with_finite_differences(order):
    f, mask = features(2, 2, 4, 4).requires_grad_(), holes("irregular", 2, 4, 4)
    assert torch.autograd.gradcheck(
        lambda x: tuple(contextual_attention(x, mask, (1, 3), order=order)), f
    )


@pytest.mark.parametrize("order", ORDERS)
def test_each_image_of_a_batch_is_treated_as_if_alone(order):
    f, mask = features(4, 6, 12, 12), holes("each its own", 4, 12, 12)
    together = contextual_attention(f, mask, order=order)
    for i in range(4):
        alone = contextual_attention(f[i : i + 1], mask[i : i + 1], order=order)
        for a, b in zip(alone, together):
            torch.testing.assert_close(a[0], b[i], rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_with_no_hole_or_nothing_but_hole_the_input_comes_back(order, value):
    f = features(2, 4, 8, 8).requires_grad_()
    for out in contextual_attention(f, torch.full((2, 1, 8, 8), value), order=order):
        assert torch.equal(out, f)
        (gradient,) = torch.autograd.grad(out.sum(), f, retain_graph=True)
        assert torch.equal(gradient, torch.ones_like(f))


@pytest.mark.parametrize(
    "kind", ["center", "border", "irregular", "each its own", "no clean window"]
)
@pytest.mark.parametrize(("p", "k"), [(1, 0), (1, 1), (3, 0), (3, 1), (5, 2)])
def test_the_hole_of_a_constant_map_is_filled_with_the_constant(kind, p, k, blocks):
    """To the border and into its corners, and where every patch has a hole."""
    f, mask = torch.full((3, 2, 9, 11), 2.0, dtype=torch.float64), holes(kind, 3, 9, 11)
    for keys in ("window", "cell"):
        (found,) = contextual_attention(f, mask, (p,), propagation=k, keys=keys)
        torch.testing.assert_close(found, f, rtol=0, atol=1e-12)


def propagated(hole, f, p, k, temperature=10.0):
    """By loops over cells: each hole cell's weights after propagation, and the keys to copy.

    f: C×H×W. Returns {cell: {key: weight}} and a set of keys.
    """
    _, h, w = f.shape
    cells, r = [(y, x) for y in range(h) for x in range(w)], p // 2

    def window(y, x):
        return [(y + i, x + j) for i in range(-r, r + 1) for j in range(-r, r + 1)]

    def inside(cell):
        return 0 <= cell[0] < h and 0 <= cell[1] < w

    def patch(cell, with_holes):
        values = [
            f[:, a, b] if inside((a, b)) and (with_holes or not hole[a, b]) else f[:, 0, 0] * 0
            for a, b in window(*cell)
        ]
        return torch.cat(values)

    copyable = [t for t in cells if not any(inside(c) and hole[c] for c in window(*t))]
    keys = torch.stack([patch(t, False) for t in copyable])
    first = {}
    for q in cells:
        query = patch(q, True)
        cosine = keys @ query / (keys.norm(dim=1) * query.norm())
        first[q] = dict(zip(copyable, (temperature * cosine).softmax(0).tolist()))
    shifts = [(i, j) for i in range(-k, k + 1) for j in range(-k, k + 1)]
    second = {
        (y, x): {
            (u, v): sum(first.get((y + i, x + j), {}).get((u + i, v + j), 0.0) for i, j in shifts)
            for u, v in cells
        }
        for y, x in cells
        if hole[y, x]
    }
    return second, set(copyable)


@pytest.mark.parametrize(("kind", "p"), [("center", 1), ("center", 3), ("irregular", 1)])
def test_after_propagation_all_weight_is_on_keys_that_may_be_copied(kind, p):
    """With more channels than cells, the weights can be read off a filled cell."""
    h, w = 7, 6
    generator = torch.Generator().manual_seed(3)
    f = torch.rand(h * w, h, w, generator=generator, dtype=torch.float64)
    hole = holes(kind, 1, h, w)[0, 0] > 0
    second, copyable = propagated(hole, f, p, 1)
    lost = [
        1 - sum(v for t, v in weights.items() if t in copyable) / sum(weights.values())
        for weights in second.values()
    ]
    assert max(lost) > 0.02  # else nothing was to be corrected
    mask = hole[None, None].float()
    (found,) = contextual_attention(f[None], mask, (p,))
    basis = (f * ~hole).flatten(1)  # filled cell = basis @ weights of all cells
    for cell in second:
        mass = torch.linalg.lstsq(basis, found[0, :, *cell][:, None], driver="gelsd").solution[:, 0]
        clean = torch.tensor([not hole[y, x] for y in range(h) for x in range(w)])
        assert mass[clean].sum().item() == pytest.approx(1, abs=1e-8)
        if p == 1:
            total = sum(second[cell][t] for t in copyable)
            for t in copyable:
                assert mass[t[0] * w + t[1]].item() == pytest.approx(
                    second[cell][t] / total, abs=1e-7
                )


def test_the_result_is_that_of_float32_under_autocast_and_keeps_the_inputs_dtype():
    f, mask = features(1, 8, 12, 12, torch.float32), holes("center", 1, 12, 12)
    half = f.bfloat16()
    expected = contextual_attention(half.float(), mask)
    with torch.autocast("cpu", torch.bfloat16):
        found = contextual_attention(half, mask)
    for a, b in zip(found, expected):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a, b.bfloat16())


def test_the_mask_may_have_the_images_size():
    f, mask = features(2, 4, 8, 8), holes("irregular", 2, 8, 8)
    large = mask.repeat_interleave(4, 2).repeat_interleave(4, 3)
    for a, b in zip(contextual_attention(f, large), contextual_attention(f, mask)):
        assert torch.equal(a, b)


def test_little_is_kept_for_the_backward_pass():
    kept = {}

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    f = features(1, 128, 64, 64, torch.float32).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        contextual_attention(f, holes("center", 1, 64, 64))
    assert 2**21 < sum(kept.values()) < 70 * 2**20  # the features are 2 MiB, one map is 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "sideways"}, "paper, released"),
        ({"keys": "some"}, "window, cell, all"),
        ({"renormalize": "some"}, "copyable, all"),
        ({"blend": "all"}, "hole, none"),
        ({"temperature": 0.0}, "temperature above 0"),
        ({"temperature": math.nan}, "temperature above 0"),
        ({"propagation": -1}, "propagation of 0 or more"),
        ({"patches": (2,)}, "odd patch sizes"),
        ({"patches": ()}, "odd patch sizes"),
    ],
)
def test_unknown_choices_are_refused_when_called_and_when_built(options, message):
    with pytest.raises(ValueError, match=message):
        contextual_attention(features(1, 4, 8, 8), holes("center", 1, 8, 8), **options)
    if not options.keys() & {"keys", "blend"}:
        chosen = options.keys() & {"order", "renormalize"}
        with pytest.raises(ValueError, match="choose one of" if chosen else message):
            MultiScaleAttention(4, **options)


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (2, 3, 8, 8), (2, 1, 8)])
def test_a_mask_of_another_batch_or_without_its_one_channel_is_refused(shape):
    with pytest.raises(ValueError, match="N×1×h×w"):
        contextual_attention(features(2, 4, 8, 8), torch.zeros(shape))


@pytest.mark.parametrize(("order", "parameters"), [("paper", 344_960), ("released", 459_520)])
def test_the_module_costs_what_equation_3_and_the_released_code_imply(order, parameters):
    module = MultiScaleAttention(128, order=order)
    assert sum(p.numel() for p in module.parameters()) == parameters


@pytest.mark.parametrize("order", ORDERS)
def test_the_module_weighs_joins_and_merges_as_equation_3_and_the_released_code_do(order):
    module, mask = MultiScaleAttention(4, order=order).double(), holes("irregular", 2, 7, 9)
    f = features(2, 4, 7, 9)
    first, _, last = module.excite.excite
    filled = contextual_attention(f, mask, (1, 3), order=order)
    maps = torch.cat((f, *filled) if order == "paper" else tuple(filled), 1)

    def dense(layer, x):
        return torch.einsum("oc,nc...->no...", layer.weight[:, :, 0, 0], x) + layer.bias.view(
            -1, *[1] * (x.ndim - 2)
        )

    weight = dense(last, dense(first, maps.mean((2, 3))).clamp(min=0)).sigmoid()
    expected = dense(module.merge, maps * weight[:, :, None, None])
    if order == "released":
        joined = torch.cat((f, expected), 1)
        expected = F.conv2d(joined, module.join.weight, module.join.bias, padding=1)
    torch.testing.assert_close(module(f, mask), expected)


def test_the_released_single_scale_joins_map_and_filled_map_directly():
    module = MultiScaleAttention(4, (3,), "released", direct=True).double()
    f, mask = features(2, 4, 7, 9), holes("irregular", 2, 7, 9)
    filled = [naive(x, m, 3, "released", 10.0, 1) for x, m in zip(f, mask[:, 0] > 0)]
    joined = torch.cat((f, torch.stack(filled)), 1)
    expected = F.conv2d(joined, module.join.weight, module.join.bias, padding=1)
    torch.testing.assert_close(module(f, mask), expected)
    assert set(module.state_dict()) == {"join.weight", "join.bias"}


@pytest.mark.parametrize("options", [{"order": "paper"}, {"patches": (1, 3)}])
def test_only_the_released_single_scale_is_direct(options):
    with pytest.raises(ValueError, match="choose order=released and one size"):
        MultiScaleAttention(4, **{"patches": (3,), "order": "released", **options}, direct=True)


@pytest.mark.parametrize("order", ORDERS)
def test_the_module_drops_into_any_network(order):
    module = MultiScaleAttention(6, order=order)
    before, after = torch.nn.Conv2d(3, 6, 3, 2, 1), torch.nn.Conv2d(6, 3, 3, 1, 1)
    image, mask = torch.rand(2, 3, 20, 26), holes("center", 2, 20, 26)
    out = after(module(before(image), mask))
    assert out.shape == (2, 3, 10, 13)
    out.sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in before.parameters())
