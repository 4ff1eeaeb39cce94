import pytest
import torch

from models.densenet import DenseNetDiscriminator, torchvision_names


def test_it_is_densenet_121_below_a_head_of_256_maps():
    with torch.device("meta"):
        discriminator = DenseNetDiscriminator()
        logits = discriminator(torch.rand(1, 3, 256, 256))
    # DenseNet-121 has 7,978,856 parameters, 1024·1000 + 1000 of them in its classifier.
    features = sum(p.numel() for p in discriminator.features.parameters())
    assert features == 7_978_856 - 1_025_000
    assert sum(p.numel() for p in discriminator.head.parameters()) == 9 * 1024 * 256 + 256
    assert logits.shape == (1, 256, 6, 6)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("features.conv0.weight", (64, 3, 7, 7)),
        ("features.norm0.running_mean", (64,)),
        ("features.denseblock1.denselayer1.norm1.weight", (64,)),
        ("features.denseblock1.denselayer1.conv1.weight", (128, 64, 1, 1)),
        ("features.denseblock1.denselayer1.conv2.weight", (32, 128, 3, 3)),
        ("features.transition2.conv.weight", (256, 512, 1, 1)),
        ("features.denseblock3.denselayer24.norm2.bias", (128,)),
        ("features.denseblock4.denselayer16.conv1.weight", (128, 992, 1, 1)),
        ("features.norm5.bias", (1024,)),
    ],
)
def test_parameters_are_named_and_shaped_as_torchvisions(name, shape):
    with torch.device("meta"):
        state = DenseNetDiscriminator().state_dict()
    assert tuple(state[name].shape) == shape


def test_names_of_the_published_file_are_brought_up_to_date():
    one = torch.ones(1)
    old = {
        "features.denseblock1.denselayer2.norm.1.weight": one,
        "features.denseblock4.denselayer16.conv.2.weight": one,
        "features.transition1.norm.running_var": one,
        "features.norm5.bias": one,
        "classifier.weight": one,
    }
    assert list(torchvision_names(old)) == [
        "features.denseblock1.denselayer2.norm1.weight",
        "features.denseblock4.denselayer16.conv2.weight",
        "features.transition1.norm.running_var",
        "features.norm5.bias",
    ]


def test_initializing_the_head_leaves_the_backbone_alone():
    discriminator = DenseNetDiscriminator(growth=4, blocks=(1, 1, 1, 1))
    before = {k: v.clone() for k, v in discriminator.state_dict().items()}
    discriminator.initialize_head()
    after = discriminator.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items() if k.startswith("features."))
    assert not torch.equal(after["head.weight"], before["head.weight"])
    assert after["head.weight"].std().item() == pytest.approx(0.02, rel=0.05)


def test_a_image_off_its_grid_is_refused():
    with pytest.raises(ValueError, match="multiples of 32, at least 96×96"):
        DenseNetDiscriminator(growth=4, blocks=(1, 1, 1, 1))(torch.rand(1, 3, 80, 96))
