import pytest
import torch
import torch.nn.functional as F

from models import masking


def irregular(n=2, height=64, width=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 1, height // 8, width // 8, generator=generator)
    return (F.interpolate(coarse, (height, width), mode="bilinear") > 0.55).float()


def test_known_pixels_survive_compositing_bit_for_bit():
    image = torch.rand(2, 3, 64, 64)
    mask = irregular()
    prediction = torch.randn(2, 3, 64, 64) * 1e30
    prediction[:, :, :8] = float("nan")
    filled = masking.composite(prediction, image, mask)
    known = (mask == 0).expand_as(image)
    assert torch.equal(filled[known].view(torch.int32), image[known].view(torch.int32))
    hole = ~known
    assert torch.equal(filled[hole].view(torch.int32), prediction[hole].view(torch.int32))


def test_erasing_leaves_zero_in_the_hole_whatever_stood_there():
    image = torch.full((1, 3, 4, 4), float("nan"))
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    erased = masking.erase(image, mask)
    assert torch.equal(erased[..., :2], torch.zeros(1, 3, 4, 2))
    assert erased[..., 2:].isnan().all()


def test_a_center_hole_of_128_shrinks_to_63_31_and_15_cells():
    # By hand: a stride-2 3×3 window centered at 2i stays in hole while it lies in [64, 191].
    known = torch.ones(1, 1, 256, 256)
    known[..., 64:192, 64:192] = 0
    for cells in (63, 31, 15):
        known = masking.update_known(known)
        assert int((known == 0).sum()) == cells**2


def test_a_cell_is_known_exactly_where_its_convolution_window_saw_a_known_pixel():
    known = 1 - irregular()
    for _ in range(3):
        seen = F.conv2d(known, torch.ones(1, 1, 3, 3), stride=2, padding=1) > 0
        known = masking.update_known(known)
        assert torch.equal(known.bool(), seen)


def good():
    return torch.rand(2, 3, 16, 24), irregular(2, 16, 24)


def test_good_input_is_accepted():
    masking.check(*good())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda i, m: (i, m * 0.5), "0 to 0.5 other than 0 and 1"),
        (lambda i, m: (i, m * 255), "threshold it"),
        (lambda i, m: (i, m[..., 1:]), r"\(2, 1, 16, 24\)"),
        (lambda i, m: (i, m[:1]), "one per image"),
        (lambda i, m: (i, m.to("meta")), "mask is on meta, image on cpu"),
        (lambda i, m: (i.index_fill(3, torch.tensor([1]), float("nan")), m), "96 NaN or infinite"),
        (lambda i, m: (i * 255, m), "divide uint8 by 255"),
        (lambda i, m: (i[:, :1], m), "N×3×H×W"),
        (lambda i, m: ((i * 255).to(torch.uint8), m), "torch.uint8"),
        (lambda i, m: (i.double(), m), "torch.float64 .*; expected float32"),
        (lambda i, m: (i[:0], m[:0]), "not empty"),
        (lambda i, m: (i, m * float("nan")), "other than 0 and 1"),
    ],
)
def test_bad_input_is_rejected_in_one_line_with_the_fix(spoil, message):
    with pytest.raises(ValueError, match=message) as error:
        masking.check(*spoil(*good()))
    assert "\n" not in str(error.value)
