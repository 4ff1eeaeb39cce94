"""`shard`: a dataset into WebDataset tars, index and manifest; `verify`, `info`, `gc` of a set."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.common.console import live, say
from pipeline.common.inputs import protect
from pipeline.config.schema import ShardConfig
from shards import external, plan, store, upkeep, writer
from shards.hygiene import Policy
from shards.manifest import open_manifest
from shards.sources import source
from shards.sources.files import Loader
from shards.sources.offer import Offer

FORMAT = 1  # raised when the same options would give other bytes


def main(config: ShardConfig) -> dict[str, Any]:
    """Does the verb's action; see `show` for what comes back."""
    return {"write": _write, "verify": _verify, "info": _info, "gc": _gc}[config.action](config)


def dry_run(config: ShardConfig) -> str:
    """What would be read, and what the publisher offers."""
    if config.action != "write":
        return f"would {config.action} {store.display(_url(config))}"
    lines = [source(config.data.layout).offer.text()]
    if config.source and config.out:
        protect({"source": [config.source]}, {"out": [config.out]}, below=True)
        options = ", ".join(f"{name}={value}" for name, value in _options(config).items())
        lines.append(f"would read {config.source} and write {store.display(config.out)}: {options}")
    return "\n".join(lines)


# --- write ----------------------------------------------------------------------------------------


def _write(config: ShardConfig) -> dict[str, Any]:
    layout = source(config.data.layout)
    if config.source is None:
        return {"offer": layout.offer.text()}
    if config.out is None:
        raise ValueError("shard needs out=, a folder or s3:// URL that is new, empty or its own")
    task = _task(config.task)
    protect({"source": [config.source]}, {"out": [config.out]}, below=True)
    begun = time.monotonic()
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _stop)
    if config.data.layout == "wds":
        if task[1] > 1 or config.workers > 1:
            raise ValueError(
                f"data=wds with task={config.task} workers={config.workers}: tars that are there "
                "are indexed by one process; leave both out"
            )
        try:
            finished = external.write(
                config.out, config.data.name, config.source, say, config.max_reject_rate
            )
        except external.SourceError:
            print(layout.offer.text(), file=sys.stderr)
            raise
        return _result(finished, time.monotonic() - begun)
    planned, root = _plan(config, listed_anew=task[1] == 1)
    try:
        return _fill(config, planned, root, task, begun)
    except writer.TooManyRejects:
        if task[1] == 1:  # nothing half-made stays, and a mended source is listed anew
            for name in (
                "plan.json",
                "plan.parquet",
                *dict.fromkeys(s for s, *_ in planned.shards()),
            ):
                store.remove(store.join(config.out, name), recursive=True)
        raise


def _fill(
    config: ShardConfig, planned: plan.Plan, root: Path, task: tuple[int, int], begun: float
) -> dict[str, Any]:
    assert config.out is not None
    loader = Loader(root, _policy(config))
    show = live(every=0.0)
    for progress in writer.write(
        config.out,
        planned,
        loader,
        workers=max(1, config.workers),
        task=task,
        max_reject_rate=config.max_reject_rate,
    ):
        show(_described(progress), progress.shards == progress.of_shards)
    left = writer.missing(config.out, planned)
    if left and task[1] > 1:
        say(f"{len(left)} of {len(planned.shards())} shards are left to other tasks")
        return {"url": store.display(config.out), "shards_left": len(left)}
    finished = writer.finalize(config.out, planned, max_reject_rate=config.max_reject_rate)
    return _result(finished, time.monotonic() - begun)


def _described(progress: writer.Progress) -> str:
    minutes, seconds = divmod(round(progress.seconds_left), 60)
    return (
        f"shard {progress.shards}/{progress.of_shards}  "
        f"{progress.images}/{progress.of_images} images  {progress.rejected} rejected  "
        f"{progress.bytes / 2**20:.0f} MiB  {progress.rate:.0f} images/s  "
        f"{minutes}:{seconds:02d} left"
    )


def _plan(config: ShardConfig, listed_anew: bool) -> tuple[plan.Plan, Path]:
    """The plan at `out`, or a new one; and the folder that its names are relative to.

    One of several tasks trusts the plan that is there; else the source must still be what it says.
    """
    assert config.source is not None and config.out is not None
    given = store.local(config.source).expanduser().resolve()
    root = given if given.is_dir() else given.parent
    data, options = config.data, _options(config)
    saved = plan.load(config.out, data.name, "images", options)
    if saved is not None:
        count = saved.rows.num_rows
        say(f"going on with the plan of {count} images at {store.display(config.out)}")
        if not listed_anew:
            return saved, root
    say(f"listing {given}")
    layout = source(data.layout)
    try:
        made = plan.make_plan(
            data.name,
            "images",
            _counted(layout.entries(given, data.holdout)),
            seed=config.seed,
            shard_bytes=data.shard_mb * 2**20,
            options=options,
        )
    except ValueError:
        print(layout.offer.text(), file=sys.stderr)
        raise
    if saved is not None:
        if made.sha256 != saved.sha256:
            raise ValueError(
                f"{store.display(config.out)} was begun from {count} images, {given} holds "
                f"{made.rows.num_rows} and not the same: give another out="
            )
        return saved, root
    say(f"{made.rows.num_rows} images in {len(made.shards())} shards")
    _compare(made, layout.offer)
    return made, root


def _counted(entries: Iterator[plan.Entry]) -> Iterator[plan.Entry]:
    for count, entry in enumerate(entries, start=1):
        if count % 200_000 == 0:
            say(f"{count:,} images so far")
        yield entry


def _compare(made: plan.Plan, offer: Offer) -> None:
    """Says where the source holds another number of images than its publisher's."""
    for row in made.rows["split"].value_counts().to_pylist():
        published = offer.counts.get(row["values"], row["counts"])
        if published != row["counts"]:
            say(f"note: {row['counts']:,} images for {row['values']}, published {published:,}")


def _policy(config: ShardConfig) -> Policy:
    data = config.data
    least = data.min_side
    if least == 0 and data.resize_short is None and data.crop_mode != "resized":
        least = data.crop  # a smaller picture could never be cropped
    return Policy(min_side=least, store_short=data.store_short, quality=data.quality)


def _options(config: ShardConfig) -> dict[str, Any]:
    data = config.data
    return {
        "format": FORMAT,
        "layout": data.layout,
        "holdout": data.holdout,
        "seed": config.seed,
        "shard_bytes": data.shard_mb * 2**20,
        **_policy(config).options(),
    }


def _task(text: str | None) -> tuple[int, int]:
    if text is None:
        return 0, 1
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ValueError(f"task={text} must be I/N with 0 <= I < N, for example task=0/8")
    return int(index), int(count)


def _result(finished: writer.Finished, seconds: float) -> dict[str, Any]:
    manifest = finished.manifest
    return {
        "url": store.display(manifest.url),
        "digest": manifest.digest,
        "splits": {name: split.samples for name, split in manifest.splits.items()},
        "shards": sum(len(split.shards) for split in manifest.splits.values()),
        "bytes": sum(s.bytes for split in manifest.splits.values() for s in split.shards),
        "rejects": dict(finished.rejects),
        "duplicates": finished.duplicates,
        "seconds": round(seconds, 3),
    }


def _stop(number: int, frame: object) -> None:
    say("stopped on request; the same command goes on from here")
    raise SystemExit(75)


# --- verify, info, gc -----------------------------------------------------------------------------


def _url(config: ShardConfig) -> str:
    url = config.url or config.out
    if url is None:
        raise ValueError(f"shard {config.action} needs the URL of a sharded set")
    return url


def _verify(config: ShardConfig) -> dict[str, Any]:
    manifest = open_manifest(_url(config))
    begun, faults, count, read = time.monotonic(), [], 0, 0
    for checked in upkeep.verify(
        manifest, every_byte=config.every_byte, workers=max(1, config.workers)
    ):
        count, read = count + 1, read + checked.bytes
        faults += [f"{checked.split}/{checked.shard}: {fault}" for fault in checked.faults]
    for fault in faults:
        say(fault)
    if faults:
        raise OSError(
            f"{store.display(manifest.url)}: {len(faults)} faults in {count} shards; "
            "remove the named shards with their indexes and the manifest, and shard again"
        )
    return {
        "url": store.display(manifest.url),
        "digest": manifest.digest,
        "shards": count,
        "checked": "every byte" if config.every_byte else "sizes and indexes",
        "bytes": read,
        "seconds": round(time.monotonic() - begun, 3),
    }


def _info(config: ShardConfig) -> dict[str, Any]:
    return upkeep.info(open_manifest(_url(config)))


def _gc(config: ShardConfig) -> dict[str, Any]:
    found = upkeep.orphans(_url(config), upkeep.parse_age(config.older_than))
    if config.delete:
        for orphan in found:
            upkeep.discard(orphan)
    return {
        "url": store.display(_url(config)),
        "deleted": config.delete,
        "orphans": [
            {"url": store.display(o.url), "kind": o.kind, "hours": round(o.age / 3600, 1)}
            for o in found
        ],
    }


# --- what a person sees ---------------------------------------------------------------------------


def show(result: dict[str, Any]) -> str:
    """The result as text."""
    if "offer" in result:
        return str(result["offer"])
    if "orphans" in result:
        rows = [f"  {o['kind']:<7}{o['hours']:>9.1f} h  {o['url']}" for o in result["orphans"]]
        end = "deleted" if result["deleted"] else "listed only; delete=true removes them"
        return "\n".join([*rows, f"{len(rows)} left behind by killed writers ({end})"])
    return "\n".join(f"{name:<11} {value}" for name, value in result.items())
