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


def gates(module, run):
    """What the sigmoid gates of a module give while `run` runs."""
    found = []
    hooks = [m.register_forward_hook(lambda *a: found.append(a[2])) for m in module]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return found


def test_weights_read_off_input_and_output_are_the_gates_own():
    net, (images, masks) = network(), inputs()
    scales = net.group[0].scales
    seen = figures.look(net, images, masks)
    watched = [attend.gate for attend in scales.spatial] + [scales.channel.gate]
    *spatial, channel = gates(watched, lambda: figures.look(net, images, masks))
    assert len(spatial) == len(seen["before"]) == 4
    for gate, before, after in zip(spatial, seen["before"], seen["after"]):
        read = figures.spatial_map(before, after)
        somewhere = ~torch.isnan(read)
        torch.testing.assert_close(read[somewhere], gate[:, 0][somewhere])
        assert somewhere.float().mean() > 0.5
    read = figures.channel_weights(seen["joined"], seen["attended"])
    alive = ~torch.isnan(read)
    torch.testing.assert_close(read[alive], channel[:, :, 0, 0][alive])
    assert alive.float().mean() > 0.3


@pytest.mark.parametrize("kind", ["none", "cbam", "sca"])
def test_other_attention_can_be_looked_into_and_none_is_one_everywhere(kind):
    net = network(spatial=kind, channel=kind)
    seen = figures.look(net, *inputs())
    read = figures.spatial_map(seen["before"][0], seen["after"][0])
    weights = figures.channel_weights(seen["joined"], seen["attended"])
    for values in (read[~torch.isnan(read)], weights[~torch.isnan(weights)]):
        assert len(values)
        if kind == "none":
            assert (values == 1).all()
        else:
            assert (values >= 0).all() and values.std() > 0


@pytest.mark.parametrize("structure", ["msau", "single", "inception_v1"])
def test_four_pictures_are_drawn_of_every_structure(structure, tmp_path):
    net = network(structure=structure)
    urls = figures.draw(net, *inputs(), str(tmp_path))
    names = [url.rsplit("/", 1)[-1] for url in urls]
    assert names == ["scales.png", "spatial.png", "channels.png", "masks.png"]
    pictures = [np.asarray(Image.open(url)) for url in urls]
    assert all(p.ndim == 3 and p.std() > 10 for p in pictures)
    columns = {"msau": 5, "single": 2, "inception_v1": 5}[structure]
    assert pictures[0].shape[1] == columns * (figures.SIDE + figures.GAP)


def test_the_mask_page_shows_what_each_downsampling_sees(tmp_path):
    images, masks = inputs(1)
    figures.draw(network(), images, masks, str(tmp_path))
    page = np.asarray(Image.open(tmp_path / "masks.png"))
    level = 1 - masks
    for column in range(1, 5):
        left = column * (figures.SIDE + figures.GAP)
        panel = page[figures.HEAD :, left : left + figures.SIDE, 0][: figures.SIDE] > 127
        assert panel.mean() == pytest.approx(level.mean().item(), abs=0.02)
        level = update_known(level)
    assert level.mean() > (1 - masks).mean()  # the hole shrinks from level to level


def test_a_network_that_is_no_msanet_is_refused(tmp_path):
    with pytest.raises(ValueError, match="features= draws what MSA-Net's figures show"):
        figures.draw(torch.nn.Identity(), *inputs(), str(tmp_path))
    assert not list(tmp_path.iterdir())
