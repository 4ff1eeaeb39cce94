"""Keys of older runs and commands."""

# Keys in the config.yaml of older runs that training never read.
RETIRED = (
    "objective.name",
    *(f"data.{x}" for x in ("layout", "holdout", "shard_mb", "min_side", "store_short", "quality")),
)
# Former names of keys, which files of older runs and commands may still use; a hash of keys takes
# the former name, so that it is the one of older runs.
RENAMED = {"objective.vgg_normalise": "objective.vgg_normalize", "pictures": "images"}
FORMER = {new: old for old, new in RENAMED.items()}
