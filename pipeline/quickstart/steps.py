"""The whole path, from photographs on disk to a promoted model that inpaints.

Every step is the command that a user would give, run as one and printed; this file only chooses
its arguments and reads its `--json`. A second run reuses what stands; a step whose command or
recipe has changed is done anew with all that follow it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common.errors import ConfigError
from pipeline.config.compose import compose
from pipeline.config.schema import QuickstartConfig
from pipeline.data import photographs
from pipeline.launch.topology import visible_gpus
from pipeline.launch.workers import attended
from shards import store

MARK = "quickstart.json"
MODEL = "inpaint-msanet"
BASELINES = ("mean_colour", "telea")


@dataclass(frozen=True)
class Step:
    """A verb with its words, or what no verb does: making photographs.

    `identity`: what its result depends on, beside the steps before. `makes` is removed before it
    is done anew, unless `resumes`: the same command then continues what it made.
    """

    name: str
    identity: str
    makes: tuple[Path, ...]
    words: tuple[str, ...] = ()
    act: Callable[[], Any] | None = None
    resumes: bool = False

    @property
    def shown(self) -> str:
        return f"python -m pipeline {shlex.join(self.words)}" if self.words else self.name

    def stands(self, known: dict[str, Any] | None) -> bool:
        """True where it was done as it would be now, and what it made is there."""
        same = known is not None and known["done"] and known["identity"] == self.identity
        return same and all(path.exists() for path in self.makes)


def main(config: QuickstartConfig) -> dict[str, Any]:
    """Do, or reuse, every step in `out`; the evaluation's result beside its yardsticks."""
    out = folder(config.out)
    with record_of(out, config.out) as record:
        for step in steps(out, config.out):
            record.do(step)
    done = record.results
    return {
        **{k: done["evaluate"][k] for k in ("protocol", "weights", "pairs", "buckets", "mean6")},
        "yardsticks": {
            name: {"buckets": done[f"evaluate {name}"]["buckets"]} for name in BASELINES
        },
        "strip": done["predict"]["strips"][0],
        "seconds": {**record.seconds, "total": round(sum(record.seconds.values()), 1)},
        "peak_rss_mb": round(record.peak_mb),
        "model_uri": done["register"]["model_uri"],
        "promoted": done["promote"]["version"],
        "tracking_uri": tracking_uri(out),
        "reused": record.reused,
    }


def dry_run(config: QuickstartConfig) -> str:
    """Each step's command, and whether it would be done or reused."""
    out = folder(config.out)
    before = remembered(out, config.out)
    lines = []
    for step in steps(out, config.out):
        reused = step.stands(before.get(step.name))
        before = before if reused else {}
        lines.append(f"would {'reuse' if reused else 'do   '}  {step.shown}")
    return "\n".join(lines)


def steps(out: Path, said: str) -> list[Step]:
    """The path, in order. `said` is `out` as the user wrote it."""

    def verb(name: str, words: str, *makes: str, resumes: bool = False) -> Step:
        identity = words + (_recipe() if resumes else "")
        given = tuple(word.format(out=said) for word in words.split())
        return Step(name, identity, tuple(out / m for m in makes), given, resumes=resumes)

    def local(name: str, act: Callable[[Path], Any], *makes: str) -> Step:
        source = hashlib.sha256(Path(photographs.__file__).read_bytes()).hexdigest()
        return Step(name, source, tuple(out / m for m in makes), act=lambda: act(out))

    shard = "shard source={out}/photographs out={out}/shards data.name=skimage"
    pairs = "data.url={out}/shards masks.url={out}/masks split=test"
    run = "train experiment=quickstart run={out}/run data.url={out}/shards"
    run += " processes=auto" if visible_gpus() == 1 else ""  # NCCL wants a GPU for each
    picture = "image={out}/coffee.png mask={out}/coffee_mask.png out={out}/coffee_filled.png"
    return [
        local("photographs", _photographs, "photographs"),
        verb("shard", shard, "shards"),
        verb("masks", "masks out={out}/masks size=256 per_bucket=24", "masks"),
        verb("train", run, "run", "mlflow.db", "mlartifacts", resumes=True),
        verb("evaluate", f"evaluate checkpoint={{out}}/run {pairs}"),
        *(
            verb(
                f"evaluate {name}",
                f"evaluate model={name} {pairs} out={{out}}/{name}.parquet",
                f"{name}.parquet",
            )
            for name in BASELINES
        ),
        verb("register", "register run={out}/run checkpoint=last"),
        verb("promote", f"promote {MODEL} run={{out}}/run"),
        local("photograph", _object_to_remove, "coffee.png", "coffee_mask.png"),
        verb(
            "predict",
            f"predict model=models:/{MODEL}@champion {picture} strip=true",
            "coffee_filled.png",
            "coffee_filled_strip.png",
        ),
    ]


def show(result: dict[str, Any]) -> str:
    """The table, the picture's path and what to do next."""
    from pipeline.tracking.client import ui_command

    network, rows = result["buckets"], result["yardsticks"]
    lines = ["", "PSNR in dB on the composite, held-out photographs (best of a row: *)", ""]
    names = ("MSA-Net", "mean colour", "Telea")
    lines.append(f"{'hole ratio':<12}{'pairs':>6}" + "".join(f"{n:>14}" for n in names))
    for bucket, row in network.items():
        found = [row["psnr"], *(rows[n]["buckets"][bucket]["psnr"] for n in BASELINES)]
        cells = "".join(f"{v:>13.2f}{'*' if v == max(found) else ' '}" for v in found)
        lines.append(f"{bucket:<12}{row['n']:>6}" + cells)
    lines += ["", _verdict(network, rows)]
    minutes = result["seconds"]["total"] / 60
    reused = f", {len(result['reused'])} steps reused" if result["reused"] else ""
    lines += [
        "",
        f"{minutes:.1f} minutes{reused}; {result['model_uri']} is registered, and promoted as "
        f"champion {MODEL}/{result['promoted']}",
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


class StepRecord:
    """What was done in one folder, as `quickstart.json` remembers it."""

    def __init__(self, out: Path, said: str) -> None:
        self.out = out
        self.results: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        self.reused: list[str] = []
        self.peak_mb = 0.0
        self._before = remembered(out, said)
        self._now: dict[str, Any] = {}
        if self._before:
            done = [name for name, step in self._before.items() if step["done"]]
            print(f"{said} holds {', '.join(done) or 'nothing finished'}", file=sys.stderr)

    def do(self, step: Step) -> None:
        """Do a step, or take over its result where it and all before it stand."""
        print(f"\n{'$' if step.words else '#'} {step.shown}", file=sys.stderr, flush=True)
        known = self._before.get(step.name)
        if known is not None and step.stands(known):
            print("reused", file=sys.stderr, flush=True)
            self.reused.append(step.name)
            self._now[step.name] = known
        else:
            if not (step.resumes and known is not None and known["identity"] == step.identity):
                _remove(step.makes)
            self._before = {}  # what follows was made from something else
            self._now[step.name] = {"identity": step.identity, "done": False}
            self._write()
            began = time.monotonic()
            result = step.act() if step.act else self._call(step.words)
            self.seconds[step.name] = round(time.monotonic() - began, 1)
            self._now[step.name] = {"identity": step.identity, "done": True, "result": result}
        self._write()
        self.results[step.name] = self._now[step.name]["result"]

    def _call(self, words: tuple[str, ...]) -> Any:
        """Run a verb as a user would; SystemExit with its status where it does not end well."""
        environment = {**os.environ, "MLFLOW_TRACKING_URI": tracking_uri(self.out)}
        command = [sys.executable, "-m", "pipeline", *words, "--json"]
        with tempfile.TemporaryFile("w+") as answer:
            status, peak = attended(command, environment, answer)
            self.peak_mb = max(self.peak_mb, peak)
            if status:
                raise SystemExit(status)
            answer.seek(0)
            return json.loads(answer.read().splitlines()[-1])

    def _write(self) -> None:
        text = json.dumps({**self._before, **self._now}, indent=1) + "\n"
        store.write(self.out / MARK, text.encode())


@contextmanager
def record_of(out: Path, said: str) -> Iterator[StepRecord]:
    """The folder's record, held: a second quickstart there is refused."""
    remembered(out, said)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = open(out / ".quickstart.lock", "w")  # noqa: SIM115
    except OSError as error:
        raise ConfigError(
            f"out={said} cannot be written ({error.strerror}): name another"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another quickstart works in out={said}: wait for it, or name another"
            ) from None
        yield StepRecord(out, said)


def folder(said: str) -> Path:
    """`out=` as an absolute path; ConfigError for a URL."""
    if "://" in said or not said:
        raise ConfigError(f"out={said} is no folder: quickstart works in a folder of this machine")
    return Path(said).absolute()


def tracking_uri(out: Path) -> str:
    """Quickstart's own record, whatever server the environment names."""
    return f"sqlite:///{out}/mlflow.db"


def remembered(out: Path, said: str) -> dict[str, Any]:
    """The steps of `out`; ConfigError where it is no quickstart's folder."""
    if (out / MARK).is_file():
        try:
            found = json.loads((out / MARK).read_text())
            if all({"identity", "done"} <= set(step) for step in found.values()):
                return found
        except (ValueError, AttributeError, TypeError):
            pass
        raise ConfigError(f"out={said} holds a {MARK} that cannot be read: remove the folder")
    if out.is_file() or out.is_dir() and [n for n in os.listdir(out) if n != ".quickstart.lock"]:
        raise ConfigError(
            f"out={said} holds something else (no {MARK}): name an empty or a new folder"
        )
    return {}


def _remove(made: tuple[Path, ...]) -> None:
    for path in made:
        if path.exists():
            print(f"removes {path}, made by another command", file=sys.stderr, flush=True)
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _recipe() -> str:
    text = compose("train", ["experiment=quickstart"]).yaml()
    return " " + hashlib.sha256(text.encode()).hexdigest()


def _photographs(out: Path) -> dict[str, int]:
    counts = photographs.write_crops(out / "photographs")
    for split, names in photographs.SPLITS.items():
        print(f"{split}: {counts[split]} crops of {', '.join(names)}", file=sys.stderr)
    return counts


def _object_to_remove(out: Path) -> None:
    picture, mask = photographs.spoon()
    picture.save(out / "coffee.png")
    mask.save(out / "coffee_mask.png")
