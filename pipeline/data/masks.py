"""`masks`: write an evaluation mask set, drawn or imported, in six hole-ratio buckets."""

from collections import Counter
from itertools import chain
from typing import Any

from pipeline.common.console import say, table
from pipeline.config.schema import MakeMasksConfig
from shards import field_masks, manifest, mask_import, mask_sets, store
from shards.masks import FIXED, NAMES


def main(config: MakeMasksConfig) -> dict[str, Any]:
    """Write the set. Returns out, digest, size, masks, buckets; for imports polarity and outside.

    Re-running the same command changes nothing. Raises ValueError for invalid settings, for masks
    whose hole ratios do not determine or contradict the polarity, or for an `out` of another set.
    """
    result: dict[str, Any] = {"out": store.display(config.out), "size": config.size}
    if config.source is None:
        say(f"drawing {config.per_bucket} masks of {config.size}x{config.size} per bucket")
    if config.kind != "irregular":
        shape = (config.kind, config.size, config.per_bucket, config.seed)
        done = mask_sets.write_field_set(config.out, *shape)
    elif config.source is None:
        done = mask_sets.write_mask_set(
            config.out,
            config.size,
            config.per_bucket,
            config.seed,
            config.border,
            config.fixed is not False,
        )
    else:
        source = mask_import.open_source(config.source)
        polarity = mask_import.resolve_polarity(source, config.polarity)
        say(f"{len(source.files)} masks, {polarity} by their ratios")
        squares = config.per_bucket if config.fixed else 0
        options = {
            "source": source.digest(),
            "polarity": polarity,
            "size": config.size,
            "fixed": squares,
            "seed": config.seed,
        }
        masks = chain(
            mask_import.import_masks(source, polarity, config.size),
            mask_sets.squares(config.size, squares, config.seed),
        )
        done = mask_sets.write_masks(config.out, "imported", masks, options)
    counts = Counter(mask_sets.MaskSet(done.manifest).buckets)
    result["digest"] = done.manifest.digest
    result["masks"] = counts.total()
    names = (*NAMES, FIXED, *field_masks.KINDS.get((config.kind, config.size), ()))
    result["buckets"] = {name: counts[name] for name in names if counts[name]}
    if config.source is not None:
        outside = len(source.files) - counts.total() + counts[FIXED]
        result |= {"polarity": polarity, "outside": outside}
    say(f"{result['out']}: {result['masks']} masks, digest {result['digest']}")
    rows = list(result["buckets"].items())
    if result.get("outside"):
        rows.append(("left out", f"{result['outside']} with ratios outside (0.01, 0.6]"))
    for line in table(rows, "><"):
        say(line)
    return result


def dry_run(config: MakeMasksConfig) -> str:
    out = store.display(config.out)
    if store.exists(store.join(config.out, manifest.FILE)):
        return f"would check that {out} is this set, and change nothing"
    if config.source is not None:
        source = mask_import.open_source(config.source)
        polarity = mask_import.resolve_polarity(source, config.polarity)
        return f"would import {len(source.files)} masks, {polarity} by their ratios, into {out}"
    irregular = len(NAMES) + (config.fixed is not False)
    buckets = len(field_masks.KINDS.get((config.kind, config.size), ())) or irregular
    count = config.per_bucket * buckets
    return f"would draw {count} masks of {config.size}x{config.size} into {out}"
