"""Leaving out what visitors who asked to be forgotten have left in the source.

The ledger's list holds keyed hashes of identifying values. While it is empty nothing here is called; otherwise each
batch's distinct values are hashed, which costs some 2 µs each.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from streamproc.model import Transformed

#: By this name the events that were left out are counted among the filtered.
FILTER = "erased"

#: A word of a record that cannot be read: what an identifier may consist of.
_WORD = re.compile(rb"[0-9A-Za-z_.@+-]+")


def visitor_hash(value: str, key: bytes) -> bytes:
    """How an identifying value stands in the list."""
    return hashlib.blake2b(value.encode(), digest_size=32, key=key).digest()


@dataclass(frozen=True, slots=True)
class Erased:
    """The list: ``asked_us`` by :func:`visitor_hash` under ``key``, for the values of ``columns``.

    A record belongs to the past when the source had it at ``asked_us`` (Unix microseconds) or earlier, or when it
    is the copy of a reject.
    """

    columns: Sequence[str]
    key: bytes
    asked_us: Mapping[bytes, int]

    def leave_out(self, result: Transformed) -> None:
        """Take the visitors' events and rejects out; the events count as filtered, the rejects too."""
        if result.events.height:
            gone = self._events(result.events)
            self._count(result, result.events.filter(gone), "accepted")
            result.events = result.events.filter(~gone)
        if result.rejects.height:
            gone = self._rejects(result.rejects)
            self._count(result, result.rejects.filter(gone), "rejected")
            result.rejects = result.rejects.filter(~gone)

    def _events(self, events: pl.DataFrame) -> pl.Series:
        past = pl.lit(value=False)
        for column in self.columns:
            asked = self._known(events[column].drop_nulls().unique().to_list())
            if asked:
                since = pl.col(column).replace_strict(asked, default=None, return_dtype=pl.Int64)
                received = pl.col("received_at").dt.epoch("us")
                past |= (
                    since.is_not_null() & ((received <= since) | pl.col("redriven_from").is_not_null())
                ).fill_null(value=False)
        return events.select(past=past | pl.repeat(value=False, n=pl.len())).to_series()

    def _known(self, values: Iterable[str]) -> dict[str, int]:
        hashed = ((value, self.asked_us.get(visitor_hash(value, self.key))) for value in values)
        return {value: asked for value, asked in hashed if asked is not None}

    def _rejects(self, rejects: pl.DataFrame) -> pl.Series:
        """Those in whose bytes an erased value stands as a word. Rejects are few."""
        received = rejects["received_at"].dt.epoch("us")
        gone = []
        for original, at in zip(rejects["original"], received, strict=True):
            words = set(_WORD.findall(original or b""))
            asked = [self.asked_us.get(visitor_hash(word.decode(), self.key)) for word in words]
            gone.append(any(since is not None and at <= since for since in asked))
        return pl.Series("gone", gone, dtype=pl.Boolean)

    def _count(self, result: Transformed, gone: pl.DataFrame, was: str) -> None:
        if not gone.height:
            return
        for partition, rows in gone.group_by("source_partition").len().rows():
            counts = result.counts[partition]
            setattr(counts, was, getattr(counts, was) - rows)
            counts.filtered += rows
        result.filtered_by[FILTER] = result.filtered_by.get(FILTER, 0) + gone.height
