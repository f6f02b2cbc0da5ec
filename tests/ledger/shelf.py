"""An object store in memory that counts deletions and can be told to fail."""

from __future__ import annotations

import hashlib
import io
from collections import Counter

import polars as pl

from streamproc.errors import DependencyError, MissingObject
from streamproc.sinks.object_store import Stored

#: Columns of the objects here.
COLUMNS = {"source_partition": pl.String(), "position": pl.Int64()}


class Shelf:
    """Objects by key. ``hopeless``: keys that arrived after their second deletion, which nobody looks for."""

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}
        self.deletions: Counter[str] = Counter()
        self.hopeless: set[str] = set()
        self._left: int | None = None

    def fail_after(self, reads: int | None) -> None:
        """Answer so many reads more; ``None``: all of them."""
        self._left = reads

    def fill(self, key: str, rows: list[tuple[str, int]]) -> Stored:
        """Put the rows as Parquet."""
        body = encode(rows)
        if self.deletions[key] > 1:
            self.hopeless.add(key)
        self.bodies[key] = body
        return Stored(key, len(body), hashlib.sha256(body).hexdigest())

    async def get(self, key: str) -> bytes:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise DependencyError("shelf", "does not answer")
        if key not in self.bodies:
            raise MissingObject(key, "is not there")
        return self.bodies[key]

    async def delete(self, key: str) -> None:
        self.deletions[key] += 1
        self.bodies.pop(key, None)


def encode(rows: list[tuple[str, int]]) -> bytes:
    """Partition and position as Parquet."""
    buffer = io.BytesIO()
    pl.DataFrame(rows, schema=COLUMNS, orient="row").write_parquet(buffer)
    return buffer.getvalue()
