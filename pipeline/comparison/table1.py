"""MSA-Net's table 1: weights of the multi-scale structures, printed and as we build them."""

from torch import nn

from models.multiscale import MultiScale
from pipeline.comparison import papers
from pipeline.comparison.table import Cell, Row, Sheet

COUNTED = "counted in the network that we build"


def weights(structure: str) -> list[int]:
    """Convolution weights of the branches, and with the 1×1 reduction, of 128 input channels."""
    none = {"channel": "none", "spatial": "none", "norm": "none"}
    built = MultiScale(128, 48, structure, gate="sigmoid", squeeze="full", **none)
    inside = [built.branches, nn.ModuleList([built.branches, built.reduce])]
    return [
        sum(m.weight.numel() for m in part.modules() if isinstance(m, nn.Conv2d)) for part in inside
    ]


def sheet() -> Sheet:
    printed = papers.table("1")
    columns = printed["columns"]
    rows = []
    for row in printed["rows"]:
        texts = [float(text.removesuffix("K")) * 1000 for text in row["printed"]]
        cells = {(c, "weights"): Cell(v, "rounded to thousands") for c, v in zip(columns, texts)}
        rows.append(Row(row["method"], "paper", cells, f"counted: {printed['counting']}"))
        counts = weights(row["structure"])
        ours = {(c, "weights"): Cell(float(v), COUNTED) for c, v in zip(columns, counts)}
        rows.append(Row(row["structure"], "ours", ours, "ours"))
    paper = papers.load()["papers"][printed["paper"]]
    title = f"{paper['name']}, table 1: {printed['caption']}"
    return Sheet(title, columns, ["weights"], rows, notes=[paper["citation"]])
