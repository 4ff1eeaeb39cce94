"""Compare inputs with outputs before any work, so that no command overwrites what it reads."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

from shards import store

Urls = Mapping[str, Sequence[str | None]]  # by the key that names them


def protect(inputs: Urls, outputs: Urls, below: bool = False) -> None:
    """Raise ValueError for an output that is one of the inputs, file or folder.

    Files are compared, not names: hard and symbolic links, `./`, `file://` and the case of letters,
    where the disk ignores it, are resolved. below: an output must not be inside an input either,
    because the command reads that folder with all its subfolders.
    """
    sources = {place(url): (key, url) for key, urls in inputs.items() for url in urls if url}
    for key, urls in outputs.items():
        for url in filter(None, urls):
            for parent in (url, *_parents(url)) if below else (url,):
                if (source := sources.get(place(parent))) is None:
                    continue
                what = "would overwrite" if parent == url else "lies inside"
                raise ValueError(
                    f"{key}: {store.display(url)} {what} the input {source[0]}="
                    f"{store.display(source[1])}; give another {key}="
                )


def place(url: str) -> tuple[int, int] | str:
    """Return one value for all names of a file or folder, whether it exists or not."""
    if not store.is_local(url):
        return url.rstrip("/").replace("s3a://", "s3://", 1)
    try:
        stat = store.local(url).stat()
    except OSError:
        return os.path.realpath(store.local(url))
    return stat.st_dev, stat.st_ino


def _parents(url: str) -> Iterator[str]:
    if store.is_local(url):
        yield from map(str, store.local(os.path.realpath(store.local(url))).parents)
        return
    scheme, _, path = url.rstrip("/").partition("://")
    while "/" in path:
        path = path.rpartition("/")[0]
        yield f"{scheme}://{path}"
