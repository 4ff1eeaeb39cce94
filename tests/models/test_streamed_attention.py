import pytest
import torch

from models.contextual_attention import ORDERS, MultiScaleAttention
from tests.support.maps import features, holes


@pytest.mark.slow
@pytest.mark.parametrize(("order", "propagation"), [("paper", 1), ("released", 1), ("paper", 4)])
def test_the_exported_module_equals_eager_for_any_batch_size_and_hole(order, propagation):
    torch.manual_seed(0)
    module = MultiScaleAttention(4, order=order, propagation=propagation).eval()
    batch, height, width = (torch.export.Dim(d, min=m) for d, m in (("n", 1), ("h", 8), ("w", 8)))
    dynamic = {0: batch, 2: height, 3: width}
    example = torch.rand(2, 4, 16, 20), holes("center", 2, 16, 20)
    with torch.no_grad():
        program = torch.export.export(module, example, dynamic_shapes=(dynamic, dynamic)).module()
        for n, h, w in ((1, 8, 8), (3, 13, 9), (4, 21, 32)):
            x = torch.rand(n, 4, h, w)
            kinds = ["center", "border", "irregular", "none"] + ["each its own"] * (n > 2)
            masks = [holes(kind, n, h, w) for kind in kinds] + [torch.ones(n, 1, h, w)]
            for mask in masks:
                torch.testing.assert_close(program(x, mask), module(x, mask), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_a_compiled_module_equals_eager_at_several_sizes_with_gradients(order):
    torch.manual_seed(0)
    module = MultiScaleAttention(4, order=order)
    compiled = torch.compile(module, backend="aot_eager", dynamic=True)
    for n, h, w in ((2, 12, 12), (3, 10, 14)):
        mask = holes("irregular", n, h, w)
        ours, theirs = (features(n, 4, h, w, torch.float32).requires_grad_() for _ in range(2))
        found, expected = compiled(ours, mask), module(theirs, mask)
        torch.testing.assert_close(found, expected)
        found.sum().backward(), expected.sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad)
