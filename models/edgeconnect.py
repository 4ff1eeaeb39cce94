"""EdgeConnect: generative image inpainting with adversarial edge learning (Nazeri et al., 2019).

G1 completes the edges of the hole, G2 paints with them (fig. 2). Each has a discriminator of
patches with spectral norm (`PatchDiscriminator`): of gray image and edges, and of the image.

The released code differs from the paper or says more
- G1 has spectral norm on every layer but the last, G2 has none; norms are instance norms without
  scales; no ReLU after a residual sum; holes are white.
- edges: Canny of σ = 2. Training takes those of the whole image times (1 − m); testing those of the
  known pixels. We always take the latter, which need no ground truth.
- testing passes G1's output on as it is; training puts it into the hole alone. `merge_edges`
  chooses; False is for the published numbers.
"""

import torch
from torch import Tensor, nn

from .canny import canny, grayscale
from .layers import Prediction, initialize, normalize_spectra, scaled
from .masking import check_pair

MULTIPLE = 4
SMALLEST = 16  # reflection needs maps larger than the dilation, 2


class Residual(nn.Module):
    """3×3 of dilation 2, then 3×3, added to the input (Johnson et al. 2016)."""

    def __init__(self, channels: int, bias: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReflectionPad2d(2),
            nn.Conv2d(channels, channels, 3, dilation=2, bias=bias),
            nn.InstanceNorm2d(channels),
            nn.ReLU(),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=bias),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Painter(nn.Module):
    """The network of G1 and G2: N×in×H×W → N×out×H×W float32, linear at its end.

    7×7; two halvings; eight residual blocks; two doublings; 7×7.
    """

    multiple = MULTIPLE
    smallest = SMALLEST

    def __init__(self, in_channels: int, out_channels: int, spectral: bool, width: float) -> None:
        super().__init__()
        a, b, c = (scaled(channels, width) for channels in (64, 128, 256))

        def normalized(layer: nn.Module, channels: int) -> tuple[nn.Module, ...]:
            return layer, nn.InstanceNorm2d(channels), nn.ReLU()

        self.body = nn.Sequential(
            nn.ReflectionPad2d(3),
            *normalized(nn.Conv2d(in_channels, a, 7), a),
            *normalized(nn.Conv2d(a, b, 4, 2, 1), b),
            *normalized(nn.Conv2d(b, c, 4, 2, 1), c),
            *(Residual(c, bias=not spectral) for _ in range(8)),
            *normalized(nn.ConvTranspose2d(c, b, 4, 2, 1), b),
            *normalized(nn.ConvTranspose2d(b, a, 4, 2, 1), a),
        )
        self.out = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(a, out_channels, 7))
        initialize(self, "normal")
        if spectral:
            normalize_spectra(self.body)

    def paint(self, *maps: Tensor) -> Tensor:
        return self.out(self.body(torch.cat(maps, 1))).float()


class EdgeGenerator(Painter):
    """G1 (eq. 1): erased N×3×H×W in [0, 1], mask → logits of edges and the known edges, N×1×H×W."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__(3, 1, True, width)

    def forward(self, erased: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        gray = grayscale(erased).masked_fill(mask.bool(), 1)
        known = canny(grayscale(erased.double()), 1 - mask).to(erased.dtype)
        return self.paint(gray, known, mask), known


class ImageGenerator(Painter):
    """G2 (eq. 6): erased N×3×H×W in [0, 1], mask, edges N×1×H×W → image N×3×H×W in [0, 1]."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__(4, 3, False, width)

    def forward(self, erased: Tensor, mask: Tensor, edges: Tensor) -> Tensor:
        image = erased.masked_fill(mask.bool(), 1)
        return (torch.tanh(self.paint(image, edges)) + 1) / 2


class EdgeConnect(nn.Module):
    """EdgeConnect's two generators, in the parts `edges` and `image`.

    forward: erased N×3×H×W float in [0, 1], mask N×1×H×W (1 = hole) → Prediction, whose features
    are `edges`, those that G2 saw, and `edge_logits`, G1's output. H and W must be multiples of
    `multiple` and at least `smallest`.
    """

    multiple = MULTIPLE
    smallest = SMALLEST

    def __init__(self, *, width: float = 1.0, merge_edges: bool = True) -> None:
        """
        width: multiplies every width.
        merge_edges: take known edges outside the hole, G1's inside (eq. 6); False: G1's alone.
        """
        super().__init__()
        self.merge_edges = merge_edges
        self.edges, self.image = EdgeGenerator(width), ImageGenerator(width)

    def forward(self, erased: Tensor, mask: Tensor, edges: Tensor | None = None) -> Prediction:
        """edges: N×1×H×W in place of G1's, for the stage that trains G2 on true edges."""
        check_pair(erased, mask, self.multiple, self.smallest)
        mask, features = mask.to(erased.dtype), {}
        if edges is None:
            logits, known = self.edges(erased, mask)
            edges = self.completed(logits, known, mask)
            features["edge_logits"] = logits
        features["edges"] = edges
        return Prediction(self.image(erased, mask, edges), features)

    def completed(self, logits: Tensor, known: Tensor, mask: Tensor) -> Tensor:
        """The edges that G2 sees, from what G1 returned: N×1×H×W."""
        edges = torch.sigmoid(logits)
        return torch.where(mask.bool(), edges, known) if self.merge_edges else edges

    def targets(self, image: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """`edges`, N×1×H×W: what G1 learns and what G2 first learns with."""
        return {"edges": canny(grayscale(image.double())).to(image.dtype)}
