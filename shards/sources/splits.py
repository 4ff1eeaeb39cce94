"""Infer splits from the names of folders and archives.

train2017/ val2017/, places-val-000000.tar   read: the names differ only in the split
train/ val_source/ eval_source/              rejected: ambiguous
train_station/ airfield/ valley/             classes: at most one split, and not as a whole name
train_0.jpg val_0.jpg in one folder          rejected, if most images have such names
"""

import re
from collections import defaultdict
from collections.abc import Iterable

from shards import store
from shards.plan import SPLITS

ARCHIVE = re.compile(r"(\.tar|\.zip|\.tgz|\.tar\.\w+)$", re.IGNORECASE)
_WORDS = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "valset", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "testset"), "test"),
    **dict.fromkeys(("eval", "evaluation", "evaluating"), "eval"),  # can mean val or test
    "trainval": "trainval",
}
_PARTS = ("train", "val", "dev", "test")  # one of them is in each of _WORDS
_NO_CLASS = {"val", "eval", "trainval"}  # "train" and "test" begin the names of classes too
_BORDER = re.compile(r"[\W\d_]+|(?<=[a-z])(?=[A-Z])")  # trainA and TRAIN_01 contain the word train
_SHOWN = 12


def _parse(name: str) -> tuple[frozenset[str], tuple[str, ...]]:
    """Return the splits in a name, and its other words."""
    words = [word.lower() for word in _BORDER.split(ARCHIVE.sub("", name)) if word]
    kinds = frozenset(_WORDS[word] for word in words if word in _WORDS)
    return kinds, tuple(word for word in words if word not in _WORDS)


def kinds(name: str) -> frozenset[str]:
    """Return the splits in a name, quickly if there are none."""
    lower = name.lower()
    return _parse(name)[0] if any(part in lower for part in _PARTS) else frozenset()


def assign(names: Iterable[str], place: str, whole: bool = False) -> dict[str, str]:
    """Return the split of each name that has one; empty if the names do not mean splits.

    They mean splits if they contain two splits, or val; with `whole`, also if one name is only a
    split and digits. Raises ValueError if they are names of splits but ambiguous.
    """
    candidates = {name: parsed for name in names if (parsed := _parse(name))[0]}
    kinds = {kind for named, _ in candidates.values() for kind in named}
    plain = {kind for named, rest in candidates.values() if not rest for kind in named}
    if len(kinds) < 2 and not kinds & _NO_CLASS and not (whole and plain):
        return {}
    # train_masks/ next to train/ is not a second train; val_source/ next to train/ may be its val
    taken = {n: (named, r) for n, (named, r) in candidates.items() if not r or not named <= plain}
    splits = {name: next(iter(named)) for name, (named, _) in taken.items()}
    clear = all(len(named) == 1 and named <= set(SPLITS) for named, _ in taken.values())
    if not clear or len({rest for _, rest in taken.values()}) > 1:
        raise ambiguous(candidates, place)
    return splits


def check_nested(folders: Iterable[str], place: str) -> None:
    """Raise ValueError if the folders inside one folder name two splits."""
    children: dict[str, set[str]] = defaultdict(set)
    for folder in set(folders):
        while folder:
            inside = folder
            folder = folder.rpartition("/")[0]
            children[folder].add(f"{inside}/")
    for _, names in sorted(children.items()):
        named = {name: _parse(store.name(name))[0] for name in names}
        if len(frozenset().union(*named.values())) > 1:
            raise ambiguous([name for name, kinds in named.items() if kinds], place)


def ambiguous(names: Iterable[str], place: str) -> ValueError:
    """Return the error for names that look like splits but are ambiguous."""
    ordered = sorted(names)
    if len(ordered) > _SHOWN:  # of a thousand tars, show one of each kind
        ordered = list({_parse(name): name for name in reversed(ordered)}.values())[::-1]
        ordered = [*ordered[:_SHOWN], "..."]
    return ValueError(
        f"{place}: ambiguous split names: {', '.join(ordered)}; "
        "put their images into folders train/, val/ and test/ of the source (all into train/ if "
        "they are classes), or give one of them as source="
    )
