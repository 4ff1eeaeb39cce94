import pytest
import torch
import torch.nn.functional as F

from models.vgg import PLAIN, VGG16Features, VGG19Features

# torchvision's vgg16.features up to pool3: index → (in, out)
CONVOLUTIONS = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128)}
CONVOLUTIONS |= {10: (128, 256), 12: (256, 256), 14: (256, 256)}


def test_parameters_are_named_and_shaped_as_torchvisions():
    found = {k: tuple(v.shape) for k, v in VGG16Features().state_dict().items()}
    expected = {}
    for i, (inside, out) in CONVOLUTIONS.items():
        expected[f"features.{i}.weight"] = (out, inside, 3, 3)
        expected[f"features.{i}.bias"] = (out,)
    assert found == expected


@pytest.mark.parametrize("normalize", [True, False])
def test_the_maps_are_those_behind_each_of_three_poolings(normalize):
    vgg, image = VGG16Features(normalize), torch.rand(2, 3, 24, 16)
    x = image * 2 - 1
    if normalize:
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        x = ((image.movedim(1, -1) - mean) / std).movedim(-1, 1)
    expected, state = [], vgg.state_dict()
    for i in CONVOLUTIONS:
        x = F.conv2d(x, state[f"features.{i}.weight"], state[f"features.{i}.bias"], padding=1)
        x = x.relu()
        if i in (2, 7, 14):
            x = F.max_pool2d(x, 2)
            expected.append(x)
    for ours, theirs in zip(vgg(image), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_it_is_frozen_but_lets_gradients_through_to_the_image():
    vgg = VGG16Features().train()
    image = torch.rand(1, 3, 16, 16, requires_grad=True)
    vgg(image)[2].sum().backward()
    assert not vgg.training and all(p.grad is None for p in vgg.parameters())
    assert image.grad.abs().sum() > 0


def test_a_image_too_small_for_three_poolings_is_refused():
    with pytest.raises(ValueError, match="at least 8×8"):
        VGG16Features()(torch.rand(1, 3, 7, 16))


def test_vgg19_has_its_published_size_to_relu5_2_and_runs_no_further_than_it_must():
    vgg = VGG19Features(PLAIN)
    assert sum(p.numel() for p in vgg.parameters()) == 15_304_768
    # torchvision's vgg19.features: four convolutions in the third block.
    shapes = {k: tuple(v.shape) for k, v in vgg.state_dict().items() if k.endswith("weight")}
    assert shapes["features.16.weight"] == (256, 256, 3, 3)
    assert shapes["features.19.weight"] == (512, 256, 3, 3)
    assert shapes["features.30.weight"] == (512, 512, 3, 3)
    image = torch.rand(1, 3, 16, 16)
    maps = vgg(image, ("relu1_1", "relu3_4", "relu5_2"))
    assert [tuple(x.shape[1:]) for x in maps.values()] == [(64, 16, 16), (256, 4, 4), (512, 1, 1)]
    torch.testing.assert_close(maps["relu3_4"], vgg.features[:18](image))
    assert vgg(image[..., :4, :4], ("relu3_1",))["relu3_1"].shape[2:] == (1, 1)
    with pytest.raises(ValueError, match="at least 16×16 for relu5_1"):
        vgg(image[..., :8], ("relu5_1",))
