"""Feature maps and holes for tests of attention."""

import torch


def holes(kind, n, h, w):
    mask = torch.zeros(n, 1, h, w)
    if kind == "center":
        mask[:, :, h // 3 : 2 * h // 3, w // 3 : 2 * w // 3] = 1
    elif kind == "border":
        mask[:, :, : h // 2, w - 3 :] = 1
        mask[:, :, -1, 0] = 1
    elif kind == "irregular":
        generator = torch.Generator().manual_seed(h * w)
        mask = (torch.rand(n, 1, h, w, generator=generator) < 0.15).float()
    elif kind == "each its own":
        mask[0, :, 1:3, 2:5] = 1
        mask[1] = 1
        mask[2:, :, -2:, :] = 1
    elif kind == "no clean window":
        mask[:, :, ::2, ::2] = 1
    return mask


def features(n, c, h, w, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, c, h, w, generator=generator, dtype=dtype)
