"""The model card: what a registered version is, what it was measured to do, where it ends."""

from collections.abc import Mapping
from typing import Any

LIMITS = """\
- Pictures are RGB of 8 bits; the network saw square crops of training pictures, with holes drawn at
  random. It continues texture and structure; it does not know what stood in the hole.
- Memory grows with the picture: the archive is meant for up to 512×512. `predict` cuts larger ones
  into tiles.
- Known pixels come out bit for bit. The hole is where the mask is white (above 127).
"""


def text(facts: Mapping[str, str], evaluation: Mapping[str, Any] | None = None) -> str:
    """Markdown. `evaluation` is what `evaluate` returned for these weights, where it did."""
    lines = [
        f"# {facts['name']}",
        "",
        f"Fills holes in photographs: {facts['network']}, after {int(facts['images_seen']):,} "
        f"images ({facts['weights']} weights).",
        "",
        "| | |",
        "|---|---|",
    ]
    for key, label in (
        ("dataset", "training data (sha256 of its manifest)"),
        ("run", "run"),
        ("run_id", "MLflow run"),
        ("commit", "code"),
        ("sha256", "sha256 of inpainter.pt2"),
        ("weights_sha256", "sha256 of the weights"),
        ("registered_by", "registered by"),
    ):
        if key in facts:
            lines.append(f"| {label} | `{facts[key]}` |")
    lines += ["", "## Measured", "", *_measured(evaluation)]
    lines += ["", "## Limits", "", LIMITS]
    lines += [
        "## Licence",
        "",
        "The code is Apache-2.0. The weights are as free as the pictures they were trained on: see "
        "the licence of the data set.",
        "",
    ]
    return "\n".join(lines)


def _measured(evaluation: Mapping[str, Any] | None) -> list[str]:
    if not evaluation:
        return ["Nothing yet: `python -m pipeline evaluate` measures, `promote` asks for it."]
    lines = [
        f"Protocol {evaluation['protocol']}, {evaluation['pairs']} pairs, on the composite.",
        "",
        "| hole ratio | n | PSNR dB [95 %] | SSIM | L1 % |",
        "|---|---|---|---|---|",
    ]
    for name, row in evaluation["buckets"].items():
        low, high = row["psnr_ci"]
        ssim = f"{row['ssim']:.4f}" if "ssim" in row else "-"
        lines.append(
            f"| {name} | {row['n']} | {row['psnr']:.3f} [{low:.3f}, {high:.3f}] | {ssim} "
            f"| {row['l1']:.3f} |"
        )
    return lines
