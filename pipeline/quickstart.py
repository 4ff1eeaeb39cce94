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
from pathlib import Path
from typing import Any

from pipeline.compose import ConfigError, compose
from pipeline.config import QuickstartConfig

MARK = "quickstart.json"
PYTHON = (sys.executable, "-m", "pipeline")


def main(config: QuickstartConfig) -> dict[str, Any]:
    """Do, or reuse, every step in `out`; the evaluation's result beside its yardsticks."""
    steps = Steps(Path(config.out).absolute(), config.out)
    out, said = steps.out, config.out
    steps.local("photographs", lambda: _photographs(out / "photographs"), out / "photographs")
    steps.verb(
        "shard",
        f"source={said}/photographs",
        f"out={said}/shards",
        "data.name=skimage",
        makes=out / "shards",
    )
    steps.verb("masks", f"out={said}/masks", "size=256", "per_bucket=16", makes=out / "masks")
    steps.verb(
        "train",
        "experiment=quickstart",
        f"run={said}/run",
        f"data.url={said}/shards",
        makes=out / "run",
        resumes=True,
    )
    pairs = (f"data.url={said}/shards", f"masks.url={said}/masks", "split=test")
    result = steps.verb("evaluate", f"checkpoint={said}/run", *pairs)
    yardsticks = {
        name: steps.verb(
            "evaluate", f"model={name}", *pairs, f"out={said}/{name}.parquet", label=name
        )
        for name in ("mean_colour", "telea")
    }
    registered = steps.verb("register", f"run={said}/run", "checkpoint=last")
    steps.verb("promote", registered["name"], f"run={said}/run")
    steps.local("photograph", lambda: _object_to_remove(out), out / "coffee.png")
    steps.verb(
        "predict",
        f"model=models:/{registered['name']}@champion",
        f"image={said}/coffee.png",
        f"mask={said}/coffee_mask.png",
        f"out={said}/coffee_filled.png",
        "strip=true",
    )
    return {
        **{k: result[k] for k in ("protocol", "weights", "pairs", "buckets", "mean6")},
        "yardsticks": {name: {"buckets": y["buckets"]} for name, y in yardsticks.items()},
        "strip": steps.results["predict"]["strips"][0],
        "seconds": {**steps.seconds, "total": round(sum(steps.seconds.values()), 1)},
        "peak_rss_mb": round(steps.peak_mb),
        "model_uri": registered["model_uri"],
        "tracking_uri": os.environ["MLFLOW_TRACKING_URI"],
        "reused": steps.reused,
    }


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


class Steps:
    """The steps done in one folder, as `quickstart.json` remembers them."""

    def __init__(self, out: Path, said: str) -> None:
        self.out, self.mark = out, out / MARK
        self.results: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        self.reused: list[str] = []
        self.peak_mb = 0.0
        self._before = self._open(said)
        self._now: dict[str, Any] = {}
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{out}/mlflow.db"

    def verb(
        self,
        verb: str,
        *words: str,
        label: str | None = None,
        makes: Path | None = None,
        resumes: bool = False,
    ) -> dict[str, Any]:
        """Run `python -m pipeline VERB words --json`; its result."""
        name = verb if label is None else f"{verb} {label}"
        command = [verb, *words]
        print(f"\n$ python -m pipeline {shlex.join(command)}", file=sys.stderr, flush=True)
        identity = " ".join(command) + (_recipe(words) if verb == "train" else "")
        return self._do(name, identity, lambda: _call(command), makes, resumes)

    def local(self, name: str, act: Callable[[], Any], makes: Path) -> None:
        """A step that no verb does: making photographs."""
        print(f"\n# {name}", file=sys.stderr, flush=True)
        self._do(name, name + hashlib.sha256(_source().encode()).hexdigest(), act, makes, False)

    def _do(
        self, name: str, identity: str, act: Callable[[], Any], makes: Path | None, resumes: bool
    ) -> Any:
        known = self._before.get(name)
        same = known is not None and known["identity"] == identity
        if known is not None and same and known["done"]:
            print("reused", file=sys.stderr, flush=True)
            self.reused.append(name)
            self._now[name] = known
        else:
            self._before = {}  # what follows was made from something else
            if makes is not None and makes.exists() and not (resumes and same):
                shutil.rmtree(makes) if makes.is_dir() else makes.unlink()
            self._now[name] = {"identity": identity, "done": False}
            self._write()
            began = time.monotonic()
            result = act()
            self.seconds[name] = round(time.monotonic() - began, 1)
            self._now[name] = {"identity": identity, "done": True, "result": result}
        self._write()
        children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        self.peak_mb = max(self.peak_mb, children / 1e6)
        self.results[name] = self._now[name]["result"]
        return self.results[name]

    def _open(self, said: str) -> dict[str, Any]:
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            probe = self.out / f".{MARK}.probe"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ConfigError(
                f"out={said} cannot be written ({error.strerror}): name another"
            ) from None
        if self.mark.is_file():
            steps = json.loads(self.mark.read_text())
            done = [name for name, step in steps.items() if step["done"]]
            print(f"{said} holds {', '.join(done) or 'nothing finished'}", file=sys.stderr)
            return steps
        if any(self.out.iterdir()):
            raise ConfigError(
                f"out={said} holds something else (no {MARK}): name an empty or a new folder"
            )
        return {}

    def _write(self) -> None:
        temporary = self.mark.with_suffix(".tmp")
        temporary.write_text(json.dumps({**self._before, **self._now}, indent=1) + "\n")
        os.replace(temporary, self.mark)


def _call(command: list[str]) -> Any:
    done = subprocess.run([*PYTHON, *command, "--json"], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(done.returncode)
    return json.loads(done.stdout.splitlines()[-1])


def _recipe(words: tuple[str, ...]) -> str:
    text = compose("train", words).yaml()
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
