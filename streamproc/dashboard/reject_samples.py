"""The newest rejects: how many by reason, and what some of them look like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import polars as pl
from psycopg import sql

from streamproc.dashboard.reading import Question, Reader
from streamproc.errors import MissingObject
from streamproc.sinks.object_store import ObjectStore

#: Objects that are looked into: the newest.
OBJECTS = 20
#: Larger ones are left alone: somebody's page must not fetch a gigabyte.
LARGEST = 8 * 1024 * 1024
#: Samples of a reason, and characters of one.
SAMPLES, CHARACTERS = 3, 240

_NEWEST = """
    SELECT key, rows, size, committed_at FROM streamproc.objects
    WHERE stream = %(stream)s AND kind = 'rejects' AND state = 'committed'
    ORDER BY committed_at DESC LIMIT %(objects)s
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """A reject. ``original``: the beginning of its bytes, as text."""

    field: str
    detail: str
    original: str
    place: str


@dataclass(frozen=True, slots=True)
class RejectSamples:
    """Rejects of the newest objects, committed since ``since``, by reason, most first.

    ``unread``: rejects in those of them that are too large to be looked into.
    """

    since: datetime | None
    reasons: Sequence[tuple[str, int, Sequence[Sample]]]
    unread: int = 0


class RejectReader:
    """Reads a stream's newest rejects from ``store``, each object once; it is opened when there is one to read."""

    def __init__(self, stream: str, reader: Reader, store: ObjectStore) -> None:
        self._stream = stream
        self._reader = reader
        self._store = store
        self._opened = False
        self._known: dict[str, tuple[Counter[str], dict[str, list[Sample]]]] = {}

    async def look(self) -> RejectSamples:
        """Raises :class:`DependencyError` when database or store do not answer."""
        parameters = {"stream": self._stream, "objects": OBJECTS}
        question = Question(sql.SQL(_NEWEST).format(), parameters, "look for rejects")
        found = (await self._reader.ask(question)).rows
        self._known = {key: self._known[key] for key, *_ in found if key in self._known}
        counts: Counter[str] = Counter()
        samples: dict[str, list[Sample]] = {}
        unread = 0
        for key, rows, size, _ in found:
            if size > LARGEST:
                unread += rows
                continue
            if key not in self._known:
                try:
                    self._known[key] = _read(await self._get(key))
                except MissingObject:  # old data that somebody deleted
                    continue
            these, some = self._known[key]
            counts.update(these)
            for reason, of_it in some.items():
                kept = samples.setdefault(reason, [])
                kept += of_it[: SAMPLES - len(kept)]
        return RejectSamples(
            found[-1][-1] if found else None,
            [(reason, count, samples.get(reason, [])) for reason, count in counts.most_common()],
            unread,
        )

    async def _get(self, key: str) -> bytes:
        if not self._opened:
            await self._store.open()
            self._opened = True
        return await self._store.get(key)


def _read(body: bytes) -> tuple[Counter[str], dict[str, list[Sample]]]:
    frame = pl.read_parquet(body)
    counts = Counter(dict(frame.group_by("reason").len().iter_rows()))
    newest = frame.sort("position", descending=True).group_by("reason", maintain_order=True).head(SAMPLES)
    samples: dict[str, list[Sample]] = {}
    for row in newest.iter_rows(named=True):
        samples.setdefault(row["reason"], []).append(_sample(row))
    return counts, samples


def _sample(row: dict[str, Any]) -> Sample:
    text = (row["original"] or b"")[: 4 * CHARACTERS].decode("utf-8", "backslashreplace")
    shown = text if len(text) <= CHARACTERS else text[:CHARACTERS] + "…"
    place = f"partition {row['source_partition']}, position {row['position']}"
    return Sample(row["field"] or "", row["detail"] or "", shown, place)
