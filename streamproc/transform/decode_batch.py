"""The records on their way through a decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import polars as pl

from streamproc.transform.decode_rejects import Problem


class Batch:
    """The records still in the running, and the problems of those that are not.

    ``records``: the bytes of all records given; ``series``: those still here, as Binary; ``rows``: their numbers
    among the records given, ascending, all of which have bytes. ``problems``: by record number.
    """

    def __init__(
        self, records: Sequence[bytes | None], series: pl.Series, rows: pl.Series | None = None
    ) -> None:
        self._records = records
        self.series = series
        self.rows = pl.int_range(len(series), dtype=pl.UInt32, eager=True) if rows is None else rows
        self.problems: dict[int, Problem] = {}
        self._lines: bytes | None = None
        self._has_escapes: bool | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> bytes:
        return cast(bytes, self._records[self.rows[place]])

    @property
    def values(self) -> Sequence[bytes]:
        """The bytes of the records still here."""
        if len(self) == len(self._records):
            return cast(Sequence[bytes], self._records)
        return self._of(self.rows)

    def at(self, places: pl.Series) -> Sequence[bytes]:
        """The bytes of some of the records still here."""
        return self._of(self.rows.gather(places))

    def _of(self, rows: pl.Series) -> Sequence[bytes]:
        return cast(Sequence[bytes], list(map(self._records.__getitem__, rows.to_list())))

    @property
    def text(self) -> pl.Series:
        """The records still here as text, null where one is not UTF-8. Looked at anew each time."""
        return as_text(self.series)

    @property
    def lines(self) -> bytes:
        """The records one to a line. Built once: at this size a copy costs as much as a pass over it."""
        if self._lines is None:
            self._lines = b"\n".join(self.values)
        return self._lines

    @property
    def has_escapes(self) -> bool:
        """Whether there is a backslash in any record; most batches have none."""
        if self._has_escapes is None:
            if self._lines is not None:  # one search over all of them
                self._has_escapes = b"\\" in self._lines
            else:
                self._has_escapes = bool(self.series.bin.contains(b"\\").any())
        return self._has_escapes

    def holding(self, escape: bytes) -> pl.Series | None:
        """Which records hold these bytes, which start with a backslash; ``None`` when none does."""
        if not self.has_escapes:
            return None
        found = self.series.bin.contains(escape)
        return found if found.any() else None

    def drop(self, problems: Mapping[int, Problem]) -> pl.Series:
        """Take records out and give the mask of those that stay.

        ``problems``: by place among those still here.
        """
        keep = pl.repeat(True, len(self), dtype=pl.Boolean, eager=True)
        if problems:
            places = list(problems)
            keep = keep.scatter(places, False)
            self.problems.update(zip(self.rows.gather(places), problems.values(), strict=True))
            self.rows = self.rows.filter(keep)
            self.series = self.series.filter(keep)
            self._lines = None
        return keep

    def replace(self, values: Mapping[int, bytes]) -> None:
        """Put in other bytes that mean the same, by place."""
        records = list(self._records)
        for place, value in values.items():
            records[self.rows[place]] = value
        self._records = records
        self._lines = self._has_escapes = None
        changed = pl.Series(list(values.values()), dtype=pl.Binary)
        self.series = self.series.clone().scatter(list(values), changed)  # in place: the original stays


#: Fewer records than this are decoded one by one sooner than halved further.
_FEW = 256


def as_text(series: pl.Series) -> pl.Series:
    """Binary as String, null where it is not UTF-8."""
    try:
        return series.cast(pl.String)
    except pl.exceptions.ComputeError:  # with strict=False as well
        if len(series) <= _FEW:
            return pl.Series(map(_as_text, series.to_list()), dtype=pl.String)
    middle = len(series) // 2  # a cast only looks at the bytes, so halving finds the few bad ones soonest
    return as_text(series[:middle]).append(as_text(series[middle:]))


def _as_text(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None
