import pytest
import torch

from models import GENERATORS
from models.inpainter import Inpainter, export

SMALL = {
    "msanet": ("msanet", {"width": 0.0625}),
    "musical": ("musical", {"ngf": 4}),
    "musical released": ("musical", {"ngf": 4, "order": "released"}),
    "pconv": ("pconv", {"levels": 4, "width": 0.0625}),
    "edgeconnect": ("edgeconnect", {"width": 0.0625}),
    "deepfill": ("deepfill", {"width": 0.0625}),
}
SIZES = [(1, 64, 64), (3, 65, 41), (1, 7, 130), (2, 1, 1), (1, 40, 96)]


def build(name):
    torch.manual_seed(0)
    kind, options = SMALL[name]
    generator = GENERATORS[kind](**options)
    for norm in generator.modules():  # statistics that are not the identity
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.uniform_(-0.1, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
    return Inpainter(generator).eval()


def pair(n, height, width, dtype):
    generator = torch.Generator().manual_seed(n * height + width)
    mask = (torch.rand(n, 1, height, width, generator=generator) < 0.3).float()
    image = torch.rand(n, 3, height, width, generator=generator)
    if dtype == torch.float32:
        return image, mask
    return (image * 255).to(dtype).permute(0, 2, 3, 1).contiguous(), mask[:, 0].to(dtype)


# The form for bytes wraps the network, so those of the two papers are enough for it.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.float32) for name in SMALL] + [(n, torch.uint8) for n in list(SMALL)[:3]],
)
def test_the_exported_program_equals_eager_at_any_batch_and_size(name, dtype):
    inpainter = build(name)
    program = export(inpainter, dtype).module()
    for shape in SIZES:
        image, some = pair(*shape, dtype)
        for mask in (some, torch.ones_like(some), torch.zeros_like(some)):
            with torch.no_grad():
                eager, exported = inpainter(image, mask), program(image, mask)
            assert eager.shape == image.shape and eager.dtype == dtype
            torch.testing.assert_close(
                exported, eager, rtol=0, atol=1e-5 if dtype.is_floating_point else 1
            )


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_known_pixels_come_out_bit_for_bit_and_the_hole_is_filled(name, dtype):
    inpainter = build(name)
    image, mask = pair(2, 50, 70, dtype)
    with torch.no_grad():
        out = inpainter(image, mask)
    hole = mask.bool().unsqueeze(-1) if dtype == torch.uint8 else mask.bool()
    hole = hole.expand_as(image)
    assert torch.equal(out[~hole], image[~hole])
    assert not torch.equal(out[hole], image[hole])
    spoiled = torch.where(hole, torch.zeros_like(image), image)
    with torch.no_grad():
        assert torch.equal(inpainter(spoiled, mask)[hole], out[hole])


@pytest.mark.parametrize("name", SMALL)
def test_uint8_images_are_the_float_path_rounded(name):
    inpainter = build(name)
    image, mask = pair(2, 48, 64, torch.uint8)
    with torch.no_grad():
        bytes_out = inpainter(image, mask * 255)  # any non-zero value is hole
        floats = inpainter(image.permute(0, 3, 1, 2) / 255, mask.unsqueeze(1).float())
    expected = (floats * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    assert torch.equal(bytes_out, expected)


@pytest.mark.parametrize("name", SMALL)
def test_each_image_of_a_batch_is_filled_as_it_would_be_alone(name):
    inpainter = build(name)
    image, mask = pair(3, 48, 56, torch.float32)
    with torch.no_grad():
        together = inpainter(image, mask)
        alone = [inpainter(image[i : i + 1], mask[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda i, m: (i, m * 0.5), "0 to 0.5 other than 0 and 1"),
        (lambda i, m: (i, m[..., 1:]), "mask has shape"),
        (lambda i, m: (i, m[:1]), "one per image"),
        (lambda i, m: (i, m.to("meta")), "mask is on meta, image on cpu"),
        (lambda i, m: (i.index_fill(3, torch.tensor([1]), float("nan")), m), "NaN or infinite"),
        (lambda i, m: (i * 255, m), "divide uint8 by 255"),
        (lambda i, m: (i[..., :0], m[..., :0]), "not empty"),
        (lambda i, m: ((i * 255).to(torch.uint8), m), "expected N×H×W×3"),
        (lambda i, m: ((i * 255).to(torch.uint8).movedim(1, 3), m[:, 0]), "mask is torch.float32"),
        (lambda i, m: ((i * 255).to(torch.uint8).movedim(1, 3), m.bool()), "one mask per image"),
    ],
)
def test_bad_input_is_rejected_in_one_line(spoil, message):
    inpainter = build("msanet")
    with pytest.raises(ValueError, match=message) as error, torch.no_grad():
        inpainter(*spoil(*pair(2, 48, 56, torch.float32)))
    assert "\n" not in str(error.value)
