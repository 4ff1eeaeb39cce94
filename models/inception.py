"""Inception v3 as Google's FID code of 2015 runs it: images to 2048 features.

Szegedy et al., Rethinking the Inception Architecture, 2016. Names as torch-fidelity's conversion of
the TensorFlow graph, whose published weights load. Where that graph differs from torchvision's
network, it is followed: average pools leave out the padding, the last block pools by maximum, and
images are resized bilinearly without antialiasing or half-pixel centers.
"""

import re

import torch
from torch import Tensor, nn
from torch.nn import functional

SIDE = 299

# Branches of a block: a pool if any, the name, and convolutions as CHANNELS:HEIGHTxWIDTH/STRIDE;
# those joined by + are side by side.
A = (
    "branch1x1 64:1x1 | branch5x5 48:1x1 64:5x5 | branch3x3dbl 64:1x1 96:3x3 96:3x3"
    " | avg branch_pool {}:1x1"
)
C = (
    "branch1x1 192:1x1 | branch7x7 {0}:1x1 {0}:1x7 192:7x1"
    " | branch7x7dbl {0}:1x1 {0}:7x1 {0}:1x7 {0}:7x1 192:1x7 | avg branch_pool 192:1x1"
)
E = (
    "branch1x1 320:1x1 | branch3x3 384:1x1 384:1x3+384:3x1"
    " | branch3x3dbl 448:1x1 384:3x3 384:1x3+384:3x1 | {} branch_pool 192:1x1"
)
MIXED = {
    "5b": A.format(32),
    "5c": A.format(64),
    "5d": A.format(64),
    "6a": "branch3x3 384:3x3/2 | branch3x3dbl 64:1x1 96:3x3 96:3x3/2 | down branch_pool",
    "6b": C.format(128),
    "6c": C.format(160),
    "6d": C.format(160),
    "6e": C.format(192),
    "7a": "branch3x3 192:1x1 320:3x3/2 | branch7x7x3 192:1x1 192:1x7 192:7x1 192:3x3/2"
    " | down branch_pool",
    "7b": E.format("avg"),
    "7c": E.format("max"),
}
POOLS = {
    "avg": nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    "max": nn.MaxPool2d(3, 1, 1),
    "down": nn.MaxPool2d(3, 2),
}


class _Conv(nn.Module):
    """Convolution, batch norm, ReLU; padded to keep the size, but not where it strides."""

    def __init__(self, inputs: int, shape: str, padded: bool = True) -> None:
        super().__init__()
        self.width, height, width, stride = (int(x) for x in re.split("[:x/]", f"{shape}/1")[:4])
        padding = (height // 2, width // 2) if padded and stride == 1 else 0
        self.conv = nn.Conv2d(inputs, self.width, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(self.width, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)), inplace=True)


class _Mixed(nn.Module):
    """Branches side by side, their outputs concatenated: `width` channels."""

    def __init__(self, inputs: int, text: str) -> None:
        super().__init__()
        self.branches: list[tuple[str, list[list[str]]]] = []  # pool; names of convolutions
        self.width = 0
        for branch in text.split(" | "):
            words = branch.split()
            pool = words.pop(0) if words[0] in POOLS else ""
            name, *steps = words
            width, names = inputs, []
            for i, step in enumerate(steps, 1):
                stem, shapes = f"{name}_{i}" if len(steps) > 1 else name, step.split("+")
                names.append([f"{stem}{x}" for x in ("ab" if len(shapes) > 1 else [""])])
                convs = [_Conv(width, shape) for shape in shapes]
                for key, conv in zip(names[-1], convs):
                    self.add_module(key, conv)
                width = sum(conv.width for conv in convs)
            self.branches.append((pool, names))
            self.width += width

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for pool, steps in self.branches:
            y = POOLS[pool](x) if pool else x
            for names in steps:
                y = torch.cat([self.get_submodule(name)(y) for name in names], 1)
            outputs.append(y)
        return torch.cat(outputs, 1)


class Inception(nn.Module):
    """uint8 N×H×W×3 → float N×2048; frozen, in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, "32:3x3/2")
        self.Conv2d_2a_3x3 = _Conv(32, "32:3x3", padded=False)
        self.Conv2d_2b_3x3 = _Conv(32, "64:3x3")
        self.Conv2d_3b_1x1 = _Conv(64, "80:1x1")
        self.Conv2d_4a_3x3 = _Conv(80, "192:3x3", padded=False)
        width = 192
        for name, text in MIXED.items():
            block = _Mixed(width, text)
            self.add_module(f"Mixed_{name}", block)
            width = block.width
        self.requires_grad_(False)
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        x = (resize(image.permute(0, 3, 1, 2).float()) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(POOLS["down"](x)))
        x = POOLS["down"](x)
        for name in MIXED:
            x = self.get_submodule(f"Mixed_{name}")(x)
        return x.mean((2, 3))


def resize(x: Tensor) -> Tensor:
    """Resize N×C×H×W to 299×299 as TensorFlow 1 did: pixel i is read at i · H / 299."""
    for dim in (3, 2):
        size = x.shape[dim]
        place = torch.arange(SIDE, device=x.device) * torch.tensor(size / SIDE)
        low = place.long()
        part = (place - low).view([-1 if i == dim else 1 for i in range(4)])
        a, b = x.index_select(dim, low), x.index_select(dim, (low + 1).clamp(max=size - 1))
        x = a + (b - a) * part
    return x
