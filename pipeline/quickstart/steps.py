"""`quickstart`: the whole path, from photographs on disk to a promoted model that inpaints.

Each step is an ordinary command, printed and run as a user would run it; this file only sets its
arguments and reads its `--json` result. Re-running skips completed steps. A step whose command or
recipe changed is run again, with every step after it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from pipeline.common import locks
from pipeline.common.console import say, table
from pipeline.common.errors import ConfigError
from pipeline.config.compose import compose
from pipeline.config.schema import QuickstartConfig
from pipeline.data import photographs
from pipeline.launch.topology import visible_gpus
from pipeline.launch.workers import attended
from shards import store

RECORD = "quickstart.json"
LOCK = ".quickstart.lock"
MODEL = "inpaint-msanet"
BASELINES = {"mean_color": "mean color", "harmonic": "harmonic", "telea": "Telea"}
PAIRS = "data.url={out}/shards masks.url={out}/masks split=test"


class Step(NamedTuple):
    """One command, or one function of the output folder, and the files that it makes there.

    The files are removed before the step runs again, unless it `resumes`: the same command then
    continues them. `identity` is all that the result depends on, besides the steps before it.
    """

    name: str
    makes: tuple[str, ...]
    identity: str
    words: tuple[str, ...] = ()
    function: Callable[[Path], Any] | None = None
    resumes: bool = False

    @property
    def shown(self) -> str:
        return f"python -m pipeline {shlex.join(self.words)}" if self.words else self.name

    def is_complete(self, out: Path, entry: dict[str, Any]) -> bool:
        """Return whether the recorded step finished, is unchanged, and its files exist."""
        finished = entry.get("done") and entry["identity"] == self.identity
        return bool(finished) and all((out / name).exists() for name in self.makes)


def steps(given: str) -> list[Step]:
    """Return the steps in order. `given` is `out=` as the user wrote it."""

    def command(name: str, words: str, *makes: str, resumes: bool = False) -> Step:
        words = f"{name.split()[0]} {words}"
        arguments = tuple(word.format(out=given) for word in words.split())
        return Step(name, makes, words + (_recipe() if resumes else ""), arguments, None, resumes)

    train = "experiment=quickstart run={out}/run data.url={out}/shards"
    train += " processes=auto" if visible_gpus() == 1 else ""  # NCCL needs a GPU per process
    predict = f"model=models:/{MODEL}@champion image={{out}}/coffee.png "
    predict += "mask={out}/coffee_mask.png out={out}/coffee_filled.png strip=true"
    return [
        Step("photographs", ("photographs",), "", function=_photographs),
        command("shard", "source={out}/photographs out={out}/shards data.name=skimage", "shards"),
        command("masks", "out={out}/masks size=256 per_bucket=24", "masks"),
        command("train", train, "run", "mlflow.db", "mlartifacts", resumes=True),
        command("evaluate", f"checkpoint={{out}}/run {PAIRS}"),
        *(
            command(f"evaluate {b}", f"model={b} {PAIRS} out={{out}}/{b}.parquet", f"{b}.parquet")
            for b in BASELINES
        ),
        command("register", "run={out}/run checkpoint=last"),
        command("promote", f"{MODEL} run={{out}}/run"),
        Step("photograph", ("coffee.png", "coffee_mask.png"), "", function=_object_to_remove),
        command("predict", predict, "coffee_filled.png", "coffee_filled_strip.png"),
    ]


def main(config: QuickstartConfig) -> dict[str, Any]:
    """Run or skip every step; return the evaluation of the network and of the baselines."""
    out = Path(config.out).absolute()
    with lock(out, config.out):
        done, seconds, peak_mb = run(steps(config.out), out, config.out)
    baselines = {name: {"buckets": done[f"evaluate {name}"]["buckets"]} for name in BASELINES}
    return {
        **{k: done["evaluate"][k] for k in ("protocol", "weights", "pairs", "buckets", "mean6")},
        "baselines": baselines,
        # Former names, kept for one release.
        "yardsticks": {**baselines, "mean_colour": baselines["mean_color"]},
        "strip": done["predict"]["strips"][0],
        "seconds": {**seconds, "total": round(sum(seconds.values()), 1)},
        "peak_rss_mb": round(peak_mb),
        "model_uri": done["register"]["model_uri"],
        "promoted": done["promote"]["version"],
        "tracking_uri": tracking_uri(out),
        "reused": [name for name in done if name not in seconds],
    }


def dry_run(config: QuickstartConfig) -> str:
    """List each step's command, and whether it would run."""
    out = Path(config.out).absolute()
    before = recorded(out, config.out)
    lines = []
    for step in steps(config.out):
        complete = step.is_complete(out, before.get(step.name, {}))
        before = before if complete else {}
        lines.append(f"would {'skip' if complete else 'run '}  {step.shown}")
    return "\n".join(lines)


def show(result: dict[str, Any]) -> str:
    """Return the table of scores, the image's path and how to continue."""
    from pipeline.tracking.client import ui_command

    network = result["buckets"]
    baselines = {name: result["baselines"][name]["buckets"] for name in BASELINES}
    rows = [["hole ratio", "pairs", "MSA-Net ", *(f"{title} " for title in BASELINES.values())]]
    for bucket, row in network.items():
        scores = [row["psnr"], *(buckets[bucket]["psnr"] for buckets in baselines.values())]
        cells = [f"{score:.2f}{'*' if score == max(scores) else ' '}" for score in scores]
        rows.append([bucket, row["n"], *cells])
    wins = []
    for name, title in BASELINES.items():
        won = sum(row["psnr"] > baselines[name][b]["psnr"] for b, row in network.items())
        wins.append(f"{title} in {won}")
    lines = "\n".join(table(rows, "<>"))
    minutes = f"{result['seconds']['total'] / 60:.1f} minutes"
    if result["reused"]:
        minutes += f", {len(result['reused'])} steps skipped"
    model = f"{result['model_uri']} is registered, and promoted as champion {MODEL}"
    return f"""
PSNR in dB on the composite, held-out photographs (best of a row: *)

{lines}

The trained network is better than {", ".join(wins)} of {len(network)} rows.

{minutes}; {model}/{result["promoted"]}
original, mask, result:  {result["strip"]}
the run in MLflow:       {ui_command(result["tracking_uri"])}
to continue by hand:     export MLFLOW_TRACKING_URI={result["tracking_uri"]}"""


def run(
    todo: Sequence[Step], out: Path, given: str
) -> tuple[dict[str, Any], dict[str, float], float]:
    """Run each step unless it and all steps before it are complete.

    Returns the results of all steps, the seconds of those that ran, and their peak memory in MB.
    """
    before, record = recorded(out, given), {}
    seconds, peak_mb = {}, 0.0
    for step in todo:
        say(f"\n{'$' if step.words else '#'} {step.shown}")
        entry = before.get(step.name, {})
        if step.is_complete(out, entry):
            say("already complete, skipped")
            record[step.name] = entry
            continue
        if not (step.resumes and entry.get("identity") == step.identity):
            for path in (out / name for name in step.makes if (out / name).exists()):
                say(f"removing {path}, made by another command")
                store.remove(str(path), recursive=True)
        before = {}  # later steps were made from another result
        record[step.name] = {"identity": step.identity, "done": False}
        _write(out, record)
        start = time.monotonic()
        if step.function:
            result = step.function(out)
        else:
            result, peak = _call(step.words, out)
            peak_mb = max(peak_mb, peak)
        seconds[step.name] = round(time.monotonic() - start, 1)
        record[step.name] |= {"done": True, "result": result}
        _write(out, record)
    return {name: entry["result"] for name, entry in record.items()}, seconds, peak_mb


def _call(words: tuple[str, ...], out: Path) -> tuple[Any, float]:
    """Run a command as a user would; SystemExit with its status if it fails."""
    environment = {**os.environ, "MLFLOW_TRACKING_URI": tracking_uri(out)}
    command = [sys.executable, "-m", "pipeline", *words, "--json"]
    with tempfile.TemporaryFile("w+") as stdout:
        status, peak_mb = attended(command, environment, stdout)
        if status:
            raise SystemExit(status)
        stdout.seek(0)
        return json.loads(stdout.read().splitlines()[-1]), peak_mb


def _write(out: Path, record: dict[str, Any]) -> None:
    store.write(out / RECORD, (json.dumps(record, indent=1) + "\n").encode())


def lock(out: Path, given: str) -> TextIO:
    """Lock the folder until the file is closed; ConfigError if it cannot be used."""
    recorded(out, given)
    return locks.hold(out / LOCK, f"out={given}", "used")


def tracking_uri(out: Path) -> str:
    """Return the folder's own MLflow database, whatever server the environment names."""
    return f"sqlite:///{out}/mlflow.db"


def recorded(out: Path, given: str) -> dict[str, Any]:
    """Read the recorded steps of `out`; ConfigError if the folder holds other files."""
    if (out / RECORD).is_file():
        try:
            return json.loads((out / RECORD).read_text())
        except ValueError:
            raise ConfigError(f"out={given}: {RECORD} cannot be read; remove the folder") from None
    if out.is_file() or set(store.names(out)) - {LOCK}:
        raise ConfigError(
            f"out={given} holds other files (no {RECORD}): choose an empty or a new folder"
        )
    return {}


def _recipe() -> str:
    text = compose("train", ["experiment=quickstart"]).yaml()
    return " " + hashlib.sha256(text.encode()).hexdigest()


def _photographs(out: Path) -> dict[str, int]:
    counts = photographs.write_crops(out / "photographs")
    for split, names in photographs.SPLITS.items():
        say(f"{split}: {counts[split]} crops of {', '.join(names)}")
    return counts


def _object_to_remove(out: Path) -> None:
    image, mask = photographs.spoon()
    image.save(out / "coffee.png")
    mask.save(out / "coffee_mask.png")
