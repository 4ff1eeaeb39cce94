"""Run the small study of MSA-Net's tables 2 to 5: `python .ci/study.py SOURCE [FOLDER] [CELL ...]`.

SOURCE is a folder of photographs; FOLDER (`study`) takes shards and runs. Results go to
docs/small-study/<cell>.json seed by seed, and are skipped when the command is given again, on any
machine; docs/small-study.md is written from them after each. Without SOURCE only that is done.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

ROOT = Path(__file__).resolve().parents[1]
RESULTS, REPORT = ROOT / "docs/small-study", ROOT / "docs/small-study.md"
SEEDS, SIDE, SHORT = 8, 72, 384
BUCKETS = ["(0.01,0.1]", "(0.1,0.2]", "(0.2,0.3]", "(0.3,0.4]", "(0.4,0.5]", "(0.5,0.6]"]
SHARED = (
    f"data.crop={SIDE} data.crop_mode=resized data.resize_short=null validate.size={SIDE} "
    "model.width=0.25 batch=16 ema=0 objective.style=0 objective.perceptual=0 masks.low=0.05 "
    "masks.high=0.6 validate.pairs=8 tracking.enabled=false processes=1 threads=1 precision=fp32"
)


class Cell(NamedTuple):
    recipe: str
    images: int = 4800
    words: str = ""

    def train(self, seed: int) -> str:
        ends = [self.images * share // 16 * 2 for share in (5, 7)]  # 5/8 and 7/8 of the run
        phases = f"[{{until:{ends[0]},lr:3e-3}},{{until:{ends[1]},lr:1e-3}},{{lr:2.5e-4}}]"
        return (
            f"experiment=msanet/{self.recipe} {SHARED} max_images={self.images} seed={seed} "
            f"validate.every_images={self.images} checkpoint.every_images={self.images} "
            f"objective.phases={phases} {self.words}"
        ).strip()


CELLS = {
    "A-mum": Cell("table4/none"),
    "A-c": Cell("table4/ca"),
    "A-s": Cell("table4/sa"),
    "A-cs": Cell("table4/csa"),
    "A-full": Cell("table4/ca_sa_csa"),
    "A-composite": Cell("table4/none", words="objective.loss_on=composite"),
    "B-msag": Cell("table3/no_mum", 19_200),
    "B-mum": Cell("table3/mum", 19_200),
}
# Fixed before any result: first cell minus second, and the sign that the paper prints.
HYPOTHESES = [
    ("table 4: C-A helps", "A-c", "A-mum", 1),
    ("table 4: S-A helps", "A-s", "A-mum", 1),
    ("table 4: CS-A helps", "A-cs", "A-mum", 1),
    ("table 4: all three help", "A-full", "A-mum", 1),
    ("table 3: the mask update helps", "B-mum", "B-msag", 1),
    ("losses on the composite change PSNR", "A-composite", "A-mum", 0),
]


def pipeline(words: str) -> dict[str, Any]:
    """Run a command; returns its result."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *words.split(), "--json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def prepare(source: Path, folder: Path) -> str:
    """Shard photographs, each fifth for testing; returns the hash of their files."""
    from PIL import Image

    names = sorted(p for p in source.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    digest = hashlib.sha256()
    for i, path in enumerate(names):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
        if (folder / "set").exists():
            continue
        image = Image.open(path).convert("RGB")
        held = i % 5 == 2
        out = folder / "photographs" / ("test" if held else "train")
        out.mkdir(parents=True, exist_ok=True)
        width, height = image.size
        short = min(image.size)
        if held:
            left, top = (width - short) // 2, (height - short) // 2
            square = image.crop((left, top, left + short, top + short))
            square.resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(out / f"{i:03}.png")
        else:
            scale = min(1.0, SHORT / short)
            size = round(width * scale), round(height * scale)
            image.resize(size, Image.Resampling.LANCZOS).save(out / f"{i:03}.jpg", quality=95)
    if not (folder / "set").exists():
        pipeline(f"shard source={folder}/photographs out={folder}/set data.crop_mode=resized")
        pipeline(f"masks out={folder}/masks size={SIDE} per_bucket=40")
    return digest.hexdigest()


def run(name: str, seed: int, folder: Path) -> list[float]:
    """Train and evaluate; returns the mean PSNR of each photograph's pairs, six buckets equally."""
    import pyarrow.parquet as pq

    words = CELLS[name].train(seed)
    out = folder / "runs" / f"{name}-{seed}"
    pipeline(f"train {words} data.url={folder}/set run={out}")
    pipeline(
        f"evaluate checkpoint={out}/checkpoints/last data.url={folder}/set split=test weights=raw "
        f"masks.url={folder}/masks protocol.size={SIDE} protocol.buckets={json.dumps(BUCKETS)} "
        f"out={out}/test.parquet images=0 processes=1 tracking.enabled=false".replace(", ", ",")
    )
    table = pq.read_table(f"{out}/test.parquet", columns=["key", "psnr"]).sort_by("key")
    scores = np.array(table["psnr"]).reshape(-1, len(BUCKETS))  # a key is a photograph
    return [round(float(score), 4) for score in scores.mean(1)]


def stored(name: str) -> dict[str, Any]:
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return {k: v for k, v in found.items() if v["command"] == CELLS[name].train(int(k))}


def scores(name: str) -> NDArray[Any] | None:
    """Seeds × photographs, of a cell that is complete."""
    found = stored(name)
    if len(found) < SEEDS or len({v["photographs"] for v in found.values()}) > 1:
        return None
    return np.array([found[str(seed)]["psnr"] for seed in range(SEEDS)])


def differs(ours: NDArray[Any], theirs: NDArray[Any]) -> dict[str, Any]:
    """Difference of two cells, whose seeds share photographs, crops and masks.

    t: 95 % interval over seeds, and its two-sided p. both: interval of 10,000 resamples of seeds
    and photographs.
    """
    d = ours - theirs
    test = stats.ttest_1samp(d.mean(1), 0)
    rng = np.random.default_rng(0)
    means = []
    for _ in range(10_000):
        seeds, photographs = (rng.integers(0, n, n) for n in d.shape)
        means.append(d[np.ix_(seeds, photographs)].mean())
    low, high = test.confidence_interval(0.95)
    return {
        "mean": float(d.mean()),
        "t": [float(low), float(high)],
        "both": [float(x) for x in np.percentile(means, [2.5, 97.5])],
        "p": float(test.pvalue),
    }


def holm(p: list[float]) -> list[float]:
    """Adjusted p-values (Holm 1979)."""
    order, adjusted, worst = np.argsort(p), [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = worst
    return adjusted


def conclusion(sign: int, found: dict[str, Any], p: float) -> str:
    low, high = (f([found["t"][i], found["both"][i]]) for i, f in enumerate((min, max)))
    if p >= 0.05 or low <= 0 <= high:
        return "cannot be told"
    if not sign:
        return "yes"
    return "the sign holds" if found["mean"] * sign > 0 else "the opposite sign"


def report() -> str:
    """The page, from the results that there are."""
    held = {name: scores(name) for name in CELLS}
    lines = [
        "# A small study: which signs of MSA-Net's tables 2 to 5 hold at small scale",
        "",
        "Networks of a quarter of the width on photographs at 72×72 pixels, L2 loss alone,",
        f"{SEEDS} seeds a cell. This is not Places2: it says what holds here, in PSNR (mean of six",
        "hole-ratio buckets) of photographs that were not trained on. Generated from",
        "`docs/small-study/` by `python .ci/study.py`; a cell has the same photographs, crops and",
        "masks for a seed as every other.",
        "",
        "## Cells",
        "",
        "| cell | recipe | images | mean, dB | s.d. over seeds |",
        "|---|---|---|---|---|",
    ]
    for name, cell in CELLS.items():
        x = held[name]
        done = f"pending ({len(stored(name))} of {SEEDS} seeds) | "
        if x is not None:
            done = f"{x.mean():.2f} | {x.mean(1).std(ddof=1):.2f}"
        recipe = f"`{f'msanet/{cell.recipe} {cell.words}'.strip()}`"
        lines.append(f"| {name} | {recipe} | {cell.images:,} | {done} |")
    lines += ["", "## Hypotheses", ""]
    tested = [
        (text, a, b, sign, differs(held[a], held[b]))
        for text, a, b, sign in HYPOTHESES
        if held[a] is not None and held[b] is not None
    ]
    waiting = [f"- {t}: pending" for t, a, b, _ in HYPOTHESES if held[a] is None or held[b] is None]
    if tested:
        lines += [
            "The t-interval is over seeds, the other resamples seeds and photographs; p by Holm",
            f"over all {len(HYPOTHESES)}. A sign holds if both intervals exclude 0 and p < 0.05.",
            "",
            "| hypothesis | difference, dB | t, 95 % | seeds and photographs, 95 % | p | |",
            "|---|---|---|---|---|---|",
        ]
    untested = [1.0] * len(waiting)  # counted, so that results do not change with what is pending
    adjusted = holm([found["p"] for *_, found in tested] + untested)
    for (text, a, b, sign, found), p in zip(tested, adjusted):
        t, both = (f"[{low:+.2f}, {high:+.2f}]" for low, high in (found["t"], found["both"]))
        says = conclusion(sign, found, p)
        difference = f"{found['mean']:+.2f} | {t} | {both} | {p:.3f}"
        lines.append(f"| {text} ({a} − {b}) | {difference} | {says} |")
    facts = [v for name in CELLS for v in stored(name).values()]
    if facts:
        kept = {k: sorted({f[k] for f in facts}) for k in ("machine", "commit", "photographs")}
        lines += [*([""] if tested else []), *waiting, "", "## Where", ""]
        lines += [f"- {key}: {', '.join(value)}" for key, value in kept.items()]
    else:
        lines += waiting
    return "\n".join(lines) + "\n"


def main(source: str, folder: str = "study", *names: str) -> None:
    where = Path(folder).absolute()
    photographs = prepare(Path(source), where)[:16]
    commit = ["git", "describe", "--always", "--dirty"]
    facts = {
        "photographs": photographs,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "commit": subprocess.run(commit, cwd=ROOT, capture_output=True, text=True).stdout.strip(),
    }
    lock = Lock()
    RESULTS.mkdir(exist_ok=True)

    def measure(task: tuple[str, int]) -> None:
        name, seed = task
        found = {"command": CELLS[name].train(seed), "psnr": run(name, seed, where), **facts}
        with lock:
            done = dict(sorted({**stored(name), str(seed): found}.items()))
            (RESULTS / f"{name}.json").write_text(json.dumps(done, indent=1) + "\n")
            REPORT.write_text(report())
        print(f"{name}, seed {seed}: {np.mean(found['psnr']):.2f} dB", flush=True)

    tasks = [(n, s) for s in range(SEEDS) for n in names or CELLS if str(s) not in stored(n)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(measure, tasks))


if __name__ == "__main__":
    if sys.argv[1:]:
        main(*sys.argv[1:])
    REPORT.write_text(report())
