"""The whole path, from photographs on disk to a promoted model that inpaints.

Every step is the command that a user would give, run as one and printed; this file only chooses
its arguments and reads its `--json`. A second run reuses what stands; a step whose command or
recipe has changed is done anew with all that follow it.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.compose import ConfigError, compose
from pipeline.config import QuickstartConfig

MARK = "quickstart.json"
MODEL = "inpaint-msanet"
YARDSTICKS = ("mean_colour", "telea")
PYTHON = (sys.executable, "-m", "pipeline")


@dataclass(frozen=True)
class Step:
    """A verb with its words, or what no verb does: making photographs."""

    name: str
    words: tuple[str, ...] = ()
    act: Callable[[], Any] | None = None
    makes: Path | None = None  # removed before the step is done anew
    resumes: bool = False  # the same command continues what it made

    @property
    def shown(self) -> str:
        return f"python -m pipeline {shlex.join(self.words)}" if self.words else self.name

    @property
    def identity(self) -> str:
        """What the result depends on, beside the steps before."""
        if self.words:
            return " ".join(self.words) + (_recipe(self.words) if self.resumes else "")
        return self.name + hashlib.sha256(_source().encode()).hexdigest()


def main(config: QuickstartConfig) -> dict[str, Any]:
    """Do, or reuse, every step in `out`; the evaluation's result beside its yardsticks."""
    out = Path(config.out).absolute()
    record = Record(out, config.out)
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{out}/mlflow.db"
    for step in steps(out, config.out):
        record.do(step)
    done = record.results
    return {
        **{k: done["evaluate"][k] for k in ("protocol", "weights", "pairs", "buckets", "mean6")},
        "yardsticks": {
            name: {"buckets": done[f"evaluate {name}"]["buckets"]} for name in YARDSTICKS
        },
        "strip": done["predict"]["strips"][0],
        "seconds": {**record.seconds, "total": round(sum(record.seconds.values()), 1)},
        "peak_rss_mb": round(record.peak_mb),
        "model_uri": done["register"]["model_uri"],
        "tracking_uri": os.environ["MLFLOW_TRACKING_URI"],
        "reused": record.reused,
    }


def dry_run(config: QuickstartConfig) -> str:
    """Each step's command, and whether it would be done or reused."""
    out = Path(config.out).absolute()
    before = remembered(out, config.out)
    lines = []
    for step in steps(out, config.out):
        known = before.get(step.name)
        reused = known is not None and known["done"] and known["identity"] == step.identity
        before = before if reused else {}
        lines.append(f"would {'reuse' if reused else 'do   '}  {step.shown}")
    return "\n".join(lines)


def steps(out: Path, said: str) -> list[Step]:
    """The path, in order. `said` is `out` as the user wrote it."""
    pairs = (f"data.url={said}/shards", f"masks.url={said}/masks", "split=test")
    folder = out / "photographs"
    return [
        Step("photographs", act=lambda: _photographs(folder), makes=folder),
        Step(
            "shard",
            ("shard", f"source={said}/photographs", f"out={said}/shards", "data.name=skimage"),
            makes=out / "shards",
        ),
        Step(
            "masks",
            ("masks", f"out={said}/masks", "size=256", "per_bucket=16"),
            makes=out / "masks",
        ),
        Step(
            "train",
            ("train", "experiment=quickstart", f"run={said}/run", f"data.url={said}/shards"),
            makes=out / "run",
            resumes=True,
        ),
        Step("evaluate", ("evaluate", f"checkpoint={said}/run", *pairs)),
        *(
            Step(
                f"evaluate {name}",
                ("evaluate", f"model={name}", *pairs, f"out={said}/{name}.parquet"),
            )
            for name in YARDSTICKS
        ),
        Step("register", ("register", f"run={said}/run", "checkpoint=last")),
        Step("promote", ("promote", MODEL, f"run={said}/run")),
        Step("photograph", act=lambda: _object_to_remove(out), makes=out / "coffee.png"),
        Step(
            "predict",
            (
                "predict",
                f"model=models:/{MODEL}@champion",
                f"image={said}/coffee.png",
                f"mask={said}/coffee_mask.png",
                f"out={said}/coffee_filled.png",
                "strip=true",
            ),
        ),
    ]


def show(result: dict[str, Any]) -> str:
    """The table, the picture's path and what to do next."""
    from pipeline.server import ui_command

    network, rows = result["buckets"], result["yardsticks"]
    lines = ["", "PSNR in dB on the composite, held-out photographs (best of a row: *)", ""]
    names = ("MSA-Net", "mean colour", "Telea")
    lines.append(f"{'hole ratio':<12}{'pairs':>6}" + "".join(f"{n:>14}" for n in names))
    for bucket, row in network.items():
        found = [
            row["psnr"],
            *(rows[n]["buckets"][bucket]["psnr"] for n in ("mean_colour", "telea")),
        ]
        cells = "".join(f"{v:>13.2f}{'*' if v == max(found) else ' '}" for v in found)
        lines.append(f"{bucket:<12}{row['n']:>6}" + cells)
    lines += ["", _verdict(network, rows)]
    minutes = result["seconds"]["total"] / 60
    reused = f", {len(result['reused'])} steps reused" if result["reused"] else ""
    lines += [
        "",
        f"{minutes:.1f} minutes{reused}; {result['model_uri']} is registered and promoted",
        f"original, mask, result:  {result['strip']}",
        f"the run in MLflow:       {ui_command(result['tracking_uri'])}",
        f"to go on by hand:        export MLFLOW_TRACKING_URI={result['tracking_uri']}",
    ]
    return "\n".join(lines)


def _verdict(network: dict[str, Any], rows: dict[str, Any]) -> str:
    """In words, how many buckets the network wins against each yardstick."""
    said = []
    for key, name in (("mean_colour", "the mean colour"), ("telea", "Telea")):
        theirs = rows[key]["buckets"]
        won = sum(row["psnr"] > theirs[bucket]["psnr"] for bucket, row in network.items())
        said.append(f"better than {name} in {won} of {len(network)} rows")
    return "The trained network is " + ", ".join(said) + "."


class Record:
    """What was done in one folder, as `quickstart.json` remembers it."""

    def __init__(self, out: Path, said: str) -> None:
        self.mark = out / MARK
        self.results: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        self.reused: list[str] = []
        self.peak_mb = 0.0
        self._before = remembered(out, said)
        self._now: dict[str, Any] = {}
        _writable(out, said)
        if self._before:
            done = [name for name, step in self._before.items() if step["done"]]
            print(f"{said} holds {', '.join(done) or 'nothing finished'}", file=sys.stderr)

    def do(self, step: Step) -> None:
        """Do a step, or take over its result where it and all before it stand."""
        print(f"\n{'$' if step.words else '#'} {step.shown}", file=sys.stderr, flush=True)
        known, identity = self._before.get(step.name), step.identity
        same = known is not None and known["identity"] == identity
        if known is not None and same and known["done"]:
            print("reused", file=sys.stderr, flush=True)
            self.reused.append(step.name)
            self._now[step.name] = known
        else:
            self._before = {}  # what follows was made from something else
            made = step.makes
            if made is not None and made.exists() and not (step.resumes and same):
                shutil.rmtree(made) if made.is_dir() else made.unlink()
            self._now[step.name] = {"identity": identity, "done": False}
            self._write()
            began = time.monotonic()
            result = step.act() if step.act else _call(step.words)
            self.seconds[step.name] = round(time.monotonic() - began, 1)
            self._now[step.name] = {"identity": identity, "done": True, "result": result}
        self._write()
        children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        self.peak_mb = max(self.peak_mb, children / 1e6)
        self.results[step.name] = self._now[step.name]["result"]

    def _write(self) -> None:
        temporary = self.mark.with_suffix(".tmp")
        temporary.write_text(json.dumps({**self._before, **self._now}, indent=1) + "\n")
        os.replace(temporary, self.mark)


def remembered(out: Path, said: str) -> dict[str, Any]:
    """The steps of `out`; ConfigError where it is no quickstart's folder."""
    if (out / MARK).is_file():
        return json.loads((out / MARK).read_text())
    if out.is_dir() and any(out.iterdir()) or out.is_file():
        raise ConfigError(
            f"out={said} holds something else (no {MARK}): name an empty or a new folder"
        )
    return {}


def _writable(out: Path, said: str) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".{MARK}.probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"out={said} cannot be written ({error.strerror}): name another"
        ) from None


def _call(words: tuple[str, ...]) -> Any:
    done = subprocess.run([*PYTHON, *words, "--json"], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(done.returncode)
    return json.loads(done.stdout.splitlines()[-1])


def _recipe(words: tuple[str, ...]) -> str:
    text = compose("train", words[1:]).yaml()
    return " " + hashlib.sha256(text.encode()).hexdigest()


def _source() -> str:
    from pipeline import photographs

    return Path(photographs.__file__).read_text()


def _photographs(folder: Path) -> dict[str, int]:
    from pipeline.photographs import SPLITS, write_crops

    counts = write_crops(folder)
    for split, names in SPLITS.items():
        print(f"{split}: {counts[split]} crops of {', '.join(names)}", file=sys.stderr)
    return counts


def _object_to_remove(out: Path) -> str:
    """The held-out cup of coffee at an odd size, and a mask over the spoon on its saucer."""
    from PIL import Image, ImageDraw

    from pipeline.photographs import photograph

    picture = photograph("coffee.png").crop((0, 0, 597, 389))
    mask = Image.new("L", picture.size)
    draw = ImageDraw.Draw(mask)
    draw.ellipse((316, 236, 416, 336), fill=255)
    draw.polygon([(368, 250), (402, 64), (428, 64), (394, 250)], fill=255)
    picture.save(out / "coffee.png")
    mask.save(out / "coffee_mask.png")
    return str(out / "coffee.png")
