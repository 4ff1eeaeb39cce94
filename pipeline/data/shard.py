"""`shard`: write a data set as WebDataset tars with index and manifest; `verify`, `info`, `gc`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.common.console import live, say, table
from pipeline.common.signals import OUTSIDE_STOPS, handled
from pipeline.config.schema import ShardConfig
from pipeline.config.values import task
from shards import external, plan, store, upkeep, writer
from shards.hygiene import Policy
from shards.manifest import open_manifest
from shards.sources import source
from shards.sources.files import Loader
from shards.sources.offer import Offer

FORMAT = 1  # increase it when the same options give other bytes


def main(config: ShardConfig) -> dict[str, Any]:
    """Run the action: `write`, `verify`, `info` or `gc`."""
    if config.action == "write":
        with handled(OUTSIDE_STOPS, _stop):
            return _write(config)
    return {"verify": _verify, "info": _info, "gc": _gc}[config.action](config)


def dry_run(config: ShardConfig) -> str:
    """Describe what would be read and written, and what the publisher offers."""
    if config.action != "write":
        return f"would {config.action} {store.display(_url(config))}"
    lines = [source(config.data.layout).offer.text()]
    if config.source and config.out:
        options = ", ".join(f"{name}={value}" for name, value in _options(config).items())
        lines.append(f"would read {config.source} and write {store.display(config.out)}: {options}")
    return "\n".join(lines)


def check_inputs(config: ShardConfig, readable: Callable[[str | None], bool]) -> None:
    """Raise ValueError unless the source of a set to write exists; URLs are not looked up."""
    url = config.source if config.action == "write" else None
    if readable(url) and store.is_local(str(url)) and not store.exists(str(url)):
        raise ValueError(f"source={url} does not exist: give the folder or archive to shard")


# --- write ----------------------------------------------------------------------------------------


def _write(config: ShardConfig) -> dict[str, Any]:
    data = config.data
    layout = source(data.layout)
    if config.source is None:
        return {"offer": layout.offer.text()}
    assert config.out is not None  # `config.checks.shard`
    part = task(config.task)
    start = time.monotonic()
    if data.layout == "wds":
        try:
            finished = external.write(
                config.out, data.name, config.source, say, config.max_reject_rate, data.holdout
            )
        except external.SourceError:
            say(layout.offer.text())
            raise
        return _result(finished, start)
    planned, root = _plan(config, list_again=part[1] == 1)
    show = live(every=0.0)
    try:
        for progress in writer.write(
            config.out,
            planned,
            Loader(root, _policy(config)),
            workers=config.workers,
            task=part,
            max_reject_rate=config.max_reject_rate,
        ):
            show(_described(progress), progress.shards == progress.of_shards)
        left = writer.missing(config.out, planned)
        if left and part[1] > 1:
            say(f"{len(left)} of {len(planned.shards())} shards remain for other tasks")
            return {"url": store.display(config.out), "shards_left": len(left)}
        finished = writer.finalize(config.out, planned, max_reject_rate=config.max_reject_rate)
    except writer.TooManyRejects:
        if part[1] == 1:  # the corrected source must be listed again, so nothing partial may stay
            for name in {"plan.json", "plan.parquet", *(split for split, *_ in planned.shards())}:
                store.remove(store.join(config.out, name), recursive=True)
        raise
    return _result(finished, start)


def _described(progress: writer.Progress) -> str:
    minutes, seconds = divmod(round(progress.seconds_left), 60)
    return (
        f"shard {progress.shards}/{progress.of_shards}  "
        f"{progress.images}/{progress.of_images} images  {progress.rejected} rejected  "
        f"{progress.bytes / 2**20:.0f} MiB  {progress.rate:.0f} images/s  "
        f"{minutes}:{seconds:02d} left"
    )


def _plan(config: ShardConfig, list_again: bool) -> tuple[plan.Plan, Path]:
    """Return the plan at `out`, or a new one, and the folder that its names are relative to.

    `list_again` checks that the source still matches an existing plan; one of several tasks skips
    the check.
    """
    assert config.source is not None and config.out is not None
    path = store.local(config.source).resolve()
    root = path if path.is_dir() else path.parent
    data, options = config.data, _options(config)
    saved = plan.load(config.out, data.name, "images", options)
    if saved is not None:
        count = saved.rows.num_rows
        say(f"resuming the plan of {count} images at {store.display(config.out)}")
        if not list_again:
            return saved, root
    say(f"listing {path}")
    layout = source(data.layout)
    try:
        made = plan.make_plan(
            data.name,
            "images",
            _counted(layout.entries(path, data.holdout)),
            seed=config.seed,
            shard_bytes=data.shard_mb * 2**20,
            options=options,
        )
    except ValueError:
        say(layout.offer.text())
        raise
    if saved is None:
        say(f"{made.rows.num_rows} images in {len(made.shards())} shards")
        _compare(made, layout.offer)
    elif made.sha256 != saved.sha256:
        raise ValueError(
            f"{store.display(config.out)} was planned from {count} images, but {path} holds "
            f"{made.rows.num_rows} different ones: choose another out="
        )
    return made, root


def _counted(entries: Iterator[plan.Entry]) -> Iterator[plan.Entry]:
    for count, entry in enumerate(entries, start=1):
        if count % 200_000 == 0:
            say(f"{count:,} images so far")
        yield entry


def _compare(made: plan.Plan, offer: Offer) -> None:
    """Report splits whose number of images differs from the published number."""
    for row in made.rows["split"].value_counts().to_pylist():
        published = offer.counts.get(row["values"], row["counts"])
        if published != row["counts"]:
            say(f"note: {row['counts']:,} images in {row['values']}, published: {published:,}")


def _policy(config: ShardConfig) -> Policy:
    data = config.data
    min_side = data.min_side
    if min_side == 0 and data.resize_short is None and data.crop_mode != "resized":
        min_side = data.crop  # a smaller image could never be cropped
    return Policy(min_side=min_side, store_short=data.store_short, quality=data.quality)


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


def _result(finished: writer.Finished, start: float) -> dict[str, Any]:
    manifest = finished.manifest
    shared = {names: count for names, count in finished.shared.items() if count}
    for (split, earlier), count in shared.items():
        say(f"note: {count} images of {split} are also in {earlier}")
    return {
        "url": store.display(manifest.url),
        "digest": manifest.digest,
        "splits": {name: split.samples for name, split in manifest.splits.items()},
        "shards": sum(len(split.shards) for split in manifest.splits.values()),
        "bytes": sum(s.bytes for split in manifest.splits.values() for s in split.shards),
        "rejects": dict(finished.rejects),
        "duplicates": finished.duplicates,
        "shared": {" in ".join(names): count for names, count in shared.items()},
        "seconds": round(time.monotonic() - start, 3),
    }


def _stop(number: int, frame: object) -> None:
    say("stopped on request; re-run the same command to resume")
    raise SystemExit(os.EX_TEMPFAIL)


# --- verify, info, gc -----------------------------------------------------------------------------


def _url(config: ShardConfig) -> str:
    return str(config.url or config.out)


def _verify(config: ShardConfig) -> dict[str, Any]:
    manifest = open_manifest(_url(config))
    start = time.monotonic()
    checked = list(upkeep.verify(manifest, every_byte=config.every_byte, workers=config.workers))
    faults = [f"{each.split}/{each.shard}: {fault}" for each in checked for fault in each.faults]
    for fault in faults:
        say(fault)
    if faults:
        raise OSError(
            f"{store.display(manifest.url)}: {len(faults)} faults in {len(checked)} shards; delete "
            "the listed shards, their indexes and the manifest, and run shard again"
        )
    return {
        "url": store.display(manifest.url),
        "digest": manifest.digest,
        "shards": len(checked),
        "checked": "every byte" if config.every_byte else "sizes and indexes",
        "bytes": sum(each.bytes for each in checked),
        "seconds": round(time.monotonic() - start, 3),
    }


def _info(config: ShardConfig) -> dict[str, Any]:
    return upkeep.info(open_manifest(_url(config)))


def _gc(config: ShardConfig) -> dict[str, Any]:
    orphans = upkeep.orphans(_url(config), upkeep.parse_age(config.older_than))
    if config.delete:
        for orphan in orphans:
            upkeep.discard(orphan)
    return {
        "url": store.display(_url(config)),
        "deleted": config.delete,
        "orphans": [
            {"url": store.display(o.url), "kind": o.kind, "hours": round(o.age / 3600, 1)}
            for o in orphans
        ],
    }


# --- output ---------------------------------------------------------------------------------------


def show(result: dict[str, Any]) -> str:
    """Format the result as text."""
    if "offer" in result:
        return str(result["offer"])
    if "orphans" in result:
        rows = [(o["kind"], f"{o['hours']:.1f} h", o["url"]) for o in result["orphans"]]
        done = "deleted" if result["deleted"] else "listed only; delete=true deletes them"
        return "\n".join([*table(rows, "<><"), f"{len(rows)} left by killed writers ({done})"])
    return "\n".join(f"{name:<11} {value}" for name, value in result.items())
