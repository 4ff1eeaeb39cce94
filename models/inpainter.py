"""The exported module: erase → generator → composite, for images of any size."""

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as symbolic_shapes

from . import masking


class Inpainter(nn.Module):
    """Fill holes in images of any height and width.

    Image and mask are padded below and to the right, by repeating their edges, to a size that the
    generator takes, and the result is cropped. This is part of the graph, so that the exported
    program takes any size too.
    """

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator
        self.multiple = int(generator.multiple)  # type: ignore[arg-type]
        self.smallest = int(generator.smallest)  # type: ignore[arg-type]

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """Either of

        - image N×3×H×W float in [0, 1], mask N×1×H×W (1 = hole) → N×3×H×W float in [0, 1];
        - image uint8 N×H×W×3, mask uint8 N×H×W (0 = known, else hole) → uint8 N×H×W×3.

        Known pixels are returned bit for bit. Raises ValueError for other shapes, devices and
        values (not checked when compiled or exported).
        """
        if not torch.compiler.is_compiling():
            (masking.check_bytes if image.dtype == torch.uint8 else masking.check)(image, mask)
        if image.dtype == torch.uint8:
            floats = image.permute(0, 3, 1, 2).to(torch.float32) / 255
            holes = mask.ne(0).unsqueeze(1)
            filled = self._fill(floats, holes.float()).clamp(0, 1).mul(255).round()
            filled = filled.to(torch.uint8).permute(0, 2, 3, 1)
            return torch.where(holes.permute(0, 2, 3, 1), filled, image)
        return masking.composite(self._fill(image, mask).clamp(0, 1), image, mask)

    def _fill(self, image: Tensor, mask: Tensor) -> Tensor:
        """The generator's image at the size of the input."""
        height, width = image.shape[2:]
        down = torch.arange(self._padded(height), device=image.device)
        right = torch.arange(self._padded(width), device=image.device)
        image, mask = (
            x.index_select(2, down.clamp(max=height - 1)).index_select(
                3, right.clamp(max=width - 1)
            )
            for x in (image, mask)
        )
        filled = self.generator(masking.erase(image, mask), mask).image
        down = torch.arange(height, device=image.device)
        right = torch.arange(width, device=image.device)
        return filled.index_select(2, down).index_select(3, right)

    def _padded(self, size: int) -> int:
        size = torch.sym_max(size, self.smallest)
        return (size + self.multiple - 1) // self.multiple * self.multiple


def export(inpainter: Inpainter, dtype: torch.dtype = torch.float32) -> ExportedProgram:
    """Export the inpainter as an ATen graph with batch, height and width of any size ≥ 1.

    dtype: torch.float32 or torch.uint8, the form of `forward` that is traced.
    """
    inpainter.eval()
    device = next(inpainter.parameters()).device
    size = 2 * inpainter.smallest + 2 * inpainter.multiple
    batch, height, width = Dim("batch", min=1), Dim("height", min=1), Dim("width", min=1)
    if dtype == torch.uint8:
        image = torch.zeros(2, size, size + 8, 3, dtype=dtype, device=device)
        mask, dynamic = image[..., 0].contiguous(), {0: batch, 1: height, 2: width}
    else:
        image = torch.zeros(2, 3, size, size + 8, dtype=dtype, device=device)
        mask, dynamic = image[:, :1].contiguous(), {0: batch, 2: height, 3: width}
    # A map of a single cell is a size like any other (Shift-Net, Context Encoder).
    one_cell = symbolic_shapes.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with torch.no_grad(), one_cell:
        return torch.export.export(inpainter, (image, mask), dynamic_shapes=(dynamic, dynamic))
