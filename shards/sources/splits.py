"""Which names of folders and archives look like splits, and which split each of them is.

train2017/ val2017/, places-val-000000.tar   read: the names differ in the split alone
train/ val_source/ eval_source/              refused: which is which is unclear
train_station/ airfield/ valley/             classes: one split at most, and not a whole name
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
    **dict.fromkeys(("eval", "evaluation", "evaluating"), "eval"),  # some mean val, some test
    "trainval": "trainval",
}
_NO_CLASS = {"val", "eval", "trainval"}  # "train" and "test" begin the names of classes too
_BORDER = re.compile(r"[\W\d_]+|(?<=[a-z])(?=[A-Z])")  # trainA and TRAIN_01 hold the word train
_SHOWN = 12


def _parse(name: str) -> tuple[frozenset[str], tuple[str, ...]]:
    """The splits that a name speaks of, and its other words."""
    words = [word.lower() for word in _BORDER.split(ARCHIVE.sub("", name)) if word]
    kinds = frozenset(_WORDS[word] for word in words if word in _WORDS)
    return kinds, tuple(word for word in words if word not in _WORDS)


def assign(names: Iterable[str], place: str, whole: bool = False) -> dict[str, str]:
    """The split of each name that has one; empty where these are not the names of splits.

    They are where they speak of two splits or of val; with `whole`, also where one is nothing but
    a split's name and digits. Raises ValueError where they are and it is unclear which is which.
    """
    found = {name: parsed for name in names if (parsed := _parse(name))[0]}
    kinds = {kind for spoken, _ in found.values() for kind in spoken}
    plain = {kind for spoken, rest in found.values() if not rest for kind in spoken}
    if len(kinds) < 2 and not kinds & _NO_CLASS and not (whole and plain):
        return {}
    # train_masks/ beside train/ is no second train, and val_source/ beside train/ may be its val
    taken = {n: (spoken, r) for n, (spoken, r) in found.items() if not r or not spoken <= plain}
    splits = {name: next(iter(spoken)) for name, (spoken, _) in taken.items()}
    clear = all(len(spoken) == 1 and spoken <= set(SPLITS) for spoken, _ in taken.values())
    if not clear or len({rest for _, rest in taken.values()}) > 1:
        raise unclear(found, place)
    return splits


def refuse_nested(folders: Iterable[str], place: str) -> None:
    """Raise ValueError where folders that lie in one folder speak of two splits."""
    children: dict[str, set[str]] = defaultdict(set)
    for folder in set(folders):
        while folder:
            inside = folder
            folder = folder.rpartition("/")[0]
            children[folder].add(f"{inside}/")
    for _, names in sorted(children.items()):
        spoken = {name: _parse(store.name(name))[0] for name in names}
        if len(frozenset().union(*spoken.values())) > 1:
            raise unclear([name for name, kinds in spoken.items() if kinds], place)


def unclear(names: Iterable[str], place: str) -> ValueError:
    """The error for names that look like splits and cannot be read as such."""
    ordered = sorted(names)
    if len(ordered) > _SHOWN:  # one of each kind tells enough of a thousand tars
        ordered = list({_parse(name): name for name in reversed(ordered)}.values())[::-1]
        ordered = [*ordered[:_SHOWN], "..."]
    return ValueError(
        f"{place}: these look like splits, but which is which is unclear: {', '.join(ordered)}; "
        "put what they hold into folders train/, val/ and test/ of the source (all into train/ "
        "where they are classes), or give one of them as source="
    )
