import pytest
import torch
import torch.nn.functional as F

from models.discriminators import (
    GlobalLocal,
    PatchDiscriminator,
    StackDiscriminator,
    crop,
    hole_window,
)

GLC = (64, 128, 256, 512, 512)
GMCNN = {"act": "elu", "spectral": True}
TABLE = {  # specification, section 11, and the sizes of one map or answer
    "edgeconnect edges": (lambda: PatchDiscriminator(2, spectral=True), 2_762_752),
    "edgeconnect image": (lambda: PatchDiscriminator(3, spectral=True), 2_763_776),
    "shiftnet": (lambda: PatchDiscriminator(3, "batch"), 2_765_568),
    "lama": (lambda: PatchDiscriminator(3, "batch", deep=True), 6_962_369),
    "context encoder, 64": (
        lambda: StackDiscriminator(
            64, (64, 128, 256, 512), kernel=4, norm="batch", bias=False, head="conv"
        ),
        2_765_568,
    ),
    "context encoder, 256": (
        lambda: StackDiscriminator(
            256, (64, 64, 64, 128, 256, 512), kernel=4, norm="batch", bias=False, head="conv"
        ),
        2_896_896,
    ),
    "glc": (
        lambda: GlobalLocal(
            StackDiscriminator(256, (*GLC, 512), norm="batch", act="relu", out=1024),
            StackDiscriminator(128, GLC, norm="batch", act="relu", out=1024),
            joint=True,
        ),
        45_063_681,
    ),
    "deepfill": (
        lambda: GlobalLocal(
            StackDiscriminator(256, (64, 128, 256, 256)),
            StackDiscriminator(128, (64, 128, 256, 512)),
        ),
        7_072_770,
    ),
    "gmcnn": (
        lambda: GlobalLocal(
            StackDiscriminator(256, (64, 128, 256, 256), **GMCNN),
            StackDiscriminator(128, (64, 128, 256, 256), **GMCNN),
        ),
        5_417_730,
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_each_comparators_discriminator_has_the_weights_of_the_table(name):
    build, weights = TABLE[name]
    with torch.device("meta"):
        assert sum(p.numel() for p in build().parameters()) == weights


def test_a_patch_discriminator_judges_70_pixels_and_returns_its_five_maps():
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(width=0.1).double()
    image = torch.rand(1, 3, 104, 104, dtype=torch.float64, requires_grad=True)
    logits, features = discriminator(image)
    assert [f.shape[2] for f in features] == [52, 26, 13, 12, 11] and features[4] is logits
    (gradient,) = torch.autograd.grad(logits[0, 0, 5, 5], image)
    seen = gradient[0].abs().sum(0).nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [70, 70]


@pytest.mark.parametrize(
    "build",
    [
        lambda: PatchDiscriminator(spectral=True, width=0.1),
        lambda: StackDiscriminator(64, (64, 128), spectral=True, width=0.1),
    ],
)
def test_spectral_norm_holds_the_largest_singular_value_of_every_weight_at_1(build):
    torch.manual_seed(0)
    discriminator, image = build(), torch.rand(2, 3, 64, 64)
    for _ in range(40):  # one power iteration each
        discriminator(image)
    for layer in discriminator.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            top = torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2)
            assert top.item() == pytest.approx(1, abs=2e-2)
            assert layer.parametrizations.weight.original.std().item() == pytest.approx(
                0.02, rel=0.2
            )


def holes():
    mask = torch.zeros(6, 1, 40, 48)
    mask[0, :, 10:20, 12:20] = 1  # fits: centered
    mask[1, :, 0:3, 40:48] = 1  # fits, at a corner
    mask[2, :, 2:38:4, 5:45:3] = 1  # too large
    mask[2, :, 20:30, 30:40] = 1
    mask[3, :, 0:16, 0:16] = 1
    mask[4] = 1
    return mask  # the last has none


def test_the_window_is_centered_on_the_hole_or_where_most_of_it_is():
    mask, size = holes(), 16
    found = hole_window(mask, size).tolist()
    assert found[0] == [(10 + 20 - size) // 2, (12 + 20 - size) // 2]
    assert found[1] == [0, 48 - size]
    assert found[3] == [0, 0]
    counts = [
        [mask[2, 0, y : y + size, x : x + size].sum().item() for x in range(48 - size + 1)]
        for y in range(40 - size + 1)
    ]
    y, x = found[2]
    assert counts[y][x] == max(map(max, counts))
    assert all(0 <= y <= 40 - size and 0 <= x <= 48 - size for y, x in found)


def test_each_image_is_cropped_at_its_own_corner():
    x = torch.arange(2 * 3 * 6 * 7.0).view(2, 3, 6, 7)
    found = crop(x, torch.tensor([[0, 3], [2, 1]]), 4)
    assert torch.equal(found, torch.stack((x[0, :, 0:4, 3:7], x[1, :, 2:6, 1:5])))


def pair(local_size, head, joint=False):
    torch.manual_seed(0)
    options = {"width": 0.1, "out": 8 if joint else 1}
    whole = StackDiscriminator(48, (64, 128), **options)
    return GlobalLocal(whole, StackDiscriminator(local_size, (64,), head=head, **options), joint)


def test_the_local_critic_judges_the_crop_and_each_critic_answers_for_itself():
    critics, image = pair(24, "linear"), torch.rand(2, 3, 48, 48)
    mask = torch.zeros(2, 1, 48, 48)
    mask[0, :, 10:20, 10:30], mask[1, :, 40:, 40:] = 1, 1
    logits, features = critics(image, mask)
    windows = torch.stack((image[0, :, 3:27, 8:32], image[1, :, 24:, 24:]))
    assert logits.shape == (2, 2) and len(features) == 3
    assert torch.equal(logits[:, :1], critics.whole(image)[0])
    assert torch.equal(logits[:, 1:], critics.local(windows)[0])
    elsewhere = critics(image, mask, torch.tensor([[0, 0], [5, 6]]))[0]
    windows = torch.stack((image[0, :, :24, :24], image[1, :, 5:29, 6:30]))
    assert torch.equal(elsewhere[:, 1:], critics.local(windows)[0])


def test_a_masked_half_averages_its_map_over_the_cells_that_hold_a_hole():
    critics, image = pair(48, "masked"), torch.rand(3, 3, 48, 48)
    mask = torch.zeros(3, 1, 48, 48)
    mask[0, :, 5, 7], mask[1] = 1, 1
    logits = critics(image, mask)[0][:, 1]
    local = critics.local
    x = F.leaky_relu(local.layers[0][0](image * 2 - 1), 0.2)
    map_ = local.head(x)[:, 0]  # 12×12, four pixels a cell
    expected = torch.stack((map_[0, 1, 1], map_[1].mean(), torch.zeros(())))
    torch.testing.assert_close(logits, expected)


def test_a_pairs_sizes_are_those_that_fit_both_halves():
    assert [(d.multiple, d.smallest) for d in (pair(24, "linear"), pair(48, "masked"))] == [
        (4, 4),  # 48 / 4 and its half, 24 / 2
        (4, 4),
    ]
    whole = StackDiscriminator(96, (64, 128, 256, 256), width=0.1)
    local = StackDiscriminator(48, (64, 128, 256, 512), width=0.1)
    assert GlobalLocal(whole, local).multiple == 32


def test_joined_halves_give_one_answer_that_depends_on_both():
    discriminator = pair(24, "linear", joint=True)
    mask = torch.zeros(2, 1, 48, 48)
    mask[..., 10:20, 10:20] = 1
    logits, _ = discriminator(torch.rand(2, 3, 48, 48), mask)
    assert logits.shape == (2, 1)
    logits.sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in discriminator.whole.head.parameters())
    assert all(p.grad.abs().sum() > 0 for p in discriminator.local.head.parameters())


def test_images_are_judged_in_the_range_asked_for():
    torch.manual_seed(0)
    plain, signed = PatchDiscriminator(width=0.1), PatchDiscriminator(width=0.1, signed=True)
    signed.load_state_dict(plain.state_dict())
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(signed(image)[0], plain(image * 2 - 1)[0])


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        (lambda: PatchDiscriminator(width=0.1)(torch.rand(1, 3, 16, 16)), "at least 24×24"),
        (lambda: StackDiscriminator(72, GLC), "multiple of 32"),
        (lambda: StackDiscriminator(64, GLC, kernel=4, head="conv"), "multiple of 128"),
        (
            lambda: StackDiscriminator(64, GLC, width=0.1)(torch.rand(1, 3, 96, 96)),
            "built for 64×64",
        ),
        (lambda: StackDiscriminator(64, GLC, head="mean"), "choose one of linear"),
    ],
)
def test_a_size_or_head_that_does_not_fit_is_refused(judge, message):
    with pytest.raises(ValueError, match=message):
        judge()
