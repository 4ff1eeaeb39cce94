"""`masks`: an evaluation mask set, drawn in six buckets or imported, published with a digest."""

from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import Any

from pipeline.common.console import say
from pipeline.common.inputs import protect
from pipeline.config.schema import MakeMasksConfig
from shards import manifest, mask_import, mask_sets, store
from shards.masks import FIXED, NAMES


def main(config: MakeMasksConfig) -> dict[str, Any]:
    """Makes the set. Gives out, digest, size, masks, buckets, and of an import polarity, outside.

    The same command again finds it finished. Raises ValueError for settings that cannot be, masks
    whose ratios leave the polarity open or contradict it, or an `out` of another set.
    """
    result: dict[str, Any] = {"out": store.display(config.out), "size": config.size}
    if config.source is None:
        say(f"drawing {config.per_bucket} masks of {config.size}x{config.size} a bucket")
        done = mask_sets.write_mask_set(
            config.out, config.size, config.per_bucket, config.seed, config.border, config.fixed
        )
    else:
        protect({"source": [config.source]}, {"out": [config.out]}, below=True)
        source = mask_import.open_source(config.source)
        polarity = mask_import.resolve_polarity(source, config.polarity)
        say(f"{len(source.files)} masks, {polarity} by their ratios")
        options = {
            "source": source.digest(),
            "polarity": polarity,
            "size": config.size,
            "fixed": config.per_bucket if config.fixed else 0,
            "seed": config.seed,
        }
        masks = chain(
            mask_import.import_masks(source, polarity, config.size),
            mask_sets.squares(config.size, config.per_bucket if config.fixed else 0, config.seed),
        )
        done = mask_sets.write_masks(config.out, "imported", masks, options)
    found = Counter(mask_sets.MaskSet(done.manifest).buckets)
    result["digest"] = done.manifest.digest
    result["masks"] = found.total()
    result["buckets"] = {name: found[name] for name in (*NAMES, FIXED) if found[name]}
    if config.source is not None:
        outside = len(source.files) - found.total() + found[FIXED]
        result |= {"polarity": polarity, "outside": outside}
    for line in _table(result):
        say(line)
    return result


def dry_run(config: MakeMasksConfig) -> str:
    where = store.display(config.out)
    if store.exists(store.join(config.out, manifest.FILE)):
        return f"would check that {where} is this set, and leave it as it is"
    if config.source is not None:
        protect({"source": [config.source]}, {"out": [config.out]}, below=True)
        source = mask_import.open_source(config.source)
        polarity = mask_import.resolve_polarity(source, config.polarity)
        return f"would import {len(source.files)} masks, {polarity} by their ratios, into {where}"
    count = config.per_bucket * (len(NAMES) + config.fixed)
    return f"would draw {count} masks of {config.size}x{config.size} into {where}"


def _table(result: dict[str, Any]) -> Iterator[str]:
    yield f"{result['out']}: {result['masks']} masks, digest {result['digest'][:12]}"
    for name, count in result["buckets"].items():
        yield f"  {name:>10}  {count}"
    if result.get("outside"):
        yield f"  left out    {result['outside']} with ratios outside (0.01, 0.6]"
