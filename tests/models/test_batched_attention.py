"""The oracle is a CPU's form, which equals patches that are cut out and pasted."""

import pytest
import torch

from models import batched_attention
from models.contextual_attention import ORDERS, MultiScaleAttention, contextual_attention
from tests.support.maps import features, holes

OPTIONS = [
    {},
    {"order": "released"},
    {"propagation": 3, "keys": "cell"},
    {"renormalize": "all", "blend": "none"},
    {"order": "released", "propagation": 2},
]


def as_on_a_gpu(patch):
    patch.setattr(batched_attention, "fits", lambda *_: True)


def filled_and_gradient(mask, options):
    f = features(len(mask), 4, *mask.shape[2:]).requires_grad_()
    filled = torch.cat(contextual_attention(f, mask, (1, 3), **options))
    (filled * features(*filled.shape, seed=1)).sum().backward()
    return filled, f.grad


@pytest.mark.parametrize("together", [1, 1 << 30], ids=["image by image", "all together"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_equals_the_streamed_form_in_values_and_gradients(options, together, monkeypatch):
    monkeypatch.setattr(batched_attention, "MAP_BYTES", together)
    for kind in ("border", "each its own", "no clean window"):
        mask = holes(kind, 4, 9, 12)
        expected = filled_and_gradient(mask, options)
        with monkeypatch.context() as patch:
            as_on_a_gpu(patch)
            found = filled_and_gradient(mask, options)
        assert not all(map(torch.equal, found, expected))  # else it was the same form
        for ours, theirs in zip(found, expected):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("order", ORDERS)
def test_between_both_passes_only_features_are_kept(order, monkeypatch):
    as_on_a_gpu(monkeypatch)
    kept = {}

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    f = features(2, 8, 24, 24, torch.float32).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        contextual_attention(f, holes("border", 2, 24, 24), order=order)
    one_map = 4 * (24 * 24) ** 2
    assert 0 < sum(kept.values()) < one_map / 4


def test_a_map_that_is_too_large_for_the_device_takes_the_streamed_form():
    small, large = (torch.zeros(1, 8, side, side, device="meta") for side in (64, 128))
    assert batched_attention.fits(small, small) and not batched_attention.fits(large, large)
    cpu = torch.zeros(1, 8, 64, 64)
    assert not batched_attention.fits(cpu, cpu)


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_a_compiled_module_takes_it_into_its_one_graph(order, monkeypatch):
    module = MultiScaleAttention(4, order=order)
    mask = holes("irregular", 2, 12, 10)
    ours, theirs = (features(2, 4, 12, 10, torch.float32).requires_grad_() for _ in range(2))
    expected = module(theirs, mask)
    as_on_a_gpu(monkeypatch)
    found = torch.compile(module, backend="aot_eager", fullgraph=True)(ours, mask)
    torch.testing.assert_close(found, expected)
    found.sum().backward(), expected.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
