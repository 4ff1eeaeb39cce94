import numpy as np
import pytest
import torch
from PIL import Image

from models import GENERATORS
from models.masking import update_known
from pipeline.evaluation import figures

SIZE = 72


def network(**options):
    torch.manual_seed(0)
    return GENERATORS["msanet"](width=1 / 16, **options).eval()


def inputs(count=2):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 3, SIZE, SIZE, generator=generator)
    masks = torch.zeros(count, 1, SIZE, SIZE)
    masks[:, :, 20:50, 10:60] = 1
    return images, masks


def channel_weights(features):
    return figures.attention(features["joined"].flatten(2), features["attended"].flatten(2), 2)


def gates(module, run):
    """The outputs of the sigmoid gates of a module while `run` runs."""
    outputs = []
    hooks = [m.register_forward_hook(lambda *a: outputs.append(a[2])) for m in module]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return outputs


def test_weights_computed_from_input_and_output_equal_the_gates_output():
    net, (images, masks) = network(), inputs()
    scales = net.group[0].scales
    features = figures.first_block(net, images, masks)
    watched = [attend.gate for attend in scales.spatial] + [scales.channel.gate]
    *spatial, channel = gates(watched, lambda: figures.first_block(net, images, masks))
    assert len(spatial) == len(features["before"]) == 4
    for gate, before, after in zip(spatial, features["before"], features["after"]):
        read = figures.attention(before, after, 1)
        somewhere = ~torch.isnan(read)
        torch.testing.assert_close(read[somewhere], gate[:, 0][somewhere])
        assert somewhere.float().mean() > 0.5
    read = channel_weights(features)
    alive = ~torch.isnan(read)
    torch.testing.assert_close(read[alive], channel[:, :, 0, 0][alive])
    assert alive.float().mean() > 0.3


@pytest.mark.parametrize("kind", ["none", "cbam", "sca"])
def test_other_attention_can_be_drawn_and_none_is_one_everywhere(kind):
    net = network(spatial=kind, channel=kind)
    features = figures.first_block(net, *inputs())
    read = figures.attention(features["before"][0], features["after"][0], 1)
    weights = channel_weights(features)
    for values in (read[~torch.isnan(read)], weights[~torch.isnan(weights)]):
        assert len(values)
        if kind == "none":
            assert (values == 1).all()
        else:
            assert (values >= 0).all() and values.std() > 0


@pytest.mark.parametrize("structure", ["msau", "single", "inception_v1"])
def test_four_figures_are_drawn_of_every_structure(structure, tmp_path):
    net = network(structure=structure)
    urls = figures.draw(net, *inputs(1), str(tmp_path))
    names = [url.rsplit("/", 1)[-1] for url in urls]
    assert names == ["scales.png", "spatial.png", "channels.png", "masks.png"]
    images = [np.asarray(Image.open(url)) for url in urls]
    assert all(image.ndim == 3 and image.std() > 10 for image in images)
    columns = {"msau": 5, "single": 2, "inception_v1": 5}[structure]
    features = figures.first_block(net, *inputs())
    axes = figures.scales(features, [(torch.zeros(SIZE, SIZE, 3), "")] * 2).axes
    assert len(axes) == 2 * columns and all(axis.get_title() for axis in axes[:columns])


def test_the_mask_figure_shows_what_each_downsampling_sees():
    images, masks = inputs(1)
    figure = figures.known_masks(network(), masks, [(images[0].permute(1, 2, 0), "")])
    level = 1 - masks
    for axis in figure.axes[1:]:
        height, width = level.shape[-2:]
        assert axis.get_title() == f"known, {height}×{width}"
        np.testing.assert_array_equal(axis.images[0].get_array()[..., 0], level[0, 0])
        level = update_known(level)
    assert len(figure.axes) == 5
    assert level.mean() > (1 - masks).mean()  # the hole shrinks from level to level


def test_a_network_other_than_msanet_is_refused(tmp_path):
    with pytest.raises(ValueError, match="features= draws the figures of MSA-Net"):
        figures.draw(torch.nn.Identity(), *inputs(), str(tmp_path))
    assert not list(tmp_path.iterdir())
