"""Read an object in order and hash it in the same pass."""

import hashlib
import io
import os
from typing import Any

from shards import store

BLOCK = 16 * 2**20


class HashedStream(io.RawIOBase):
    """An object read block by block, once and in order, and hashed while reading."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.length = store.size(url)
        self._hash = hashlib.sha256()
        self._at = 0
        self._number = -1
        self._block = b""

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.length}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        if self._at >= self.length:
            return 0
        block = self._load(self._at // BLOCK)
        start = self._at % BLOCK
        part = block[start : start + len(buffer)]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)

    def sha256(self) -> str:
        """Return the sha256 of the whole object; reads the rest of it."""
        self._load(max(0, -(-self.length // BLOCK) - 1))
        return self._hash.hexdigest()

    def _load(self, number: int) -> bytes:
        if number < self._number:  # a seek back into an earlier block: do not hash it again
            return self._fetch(number)
        while self._number < number:
            self._number += 1
            self._block = self._fetch(self._number)
            self._hash.update(self._block)
        return self._block

    def _fetch(self, number: int) -> bytes:
        return store.read(self.url, number * BLOCK, min((number + 1) * BLOCK, self.length))
