"""The records on their way through a decoder."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import polars as pl

from streamproc.transform.decode_rejects import Problem


class Batch:
    """The records still in the running, and the problems of those that are not.

    ``rows``: their numbers among the records given, ascending. ``values``: their bytes; ``series``: the same
    as Binary. ``problems``: by record number.
    """

    def __init__(self, values: list[bytes], series: pl.Series) -> None:
        self.values = values
        self.series = series
        self.rows = pl.int_range(len(series), dtype=pl.UInt32, eager=True)
        self.problems: dict[int, Problem] = {}
        self._lines: bytes | None = None
        self._text: pl.Series | None = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def text(self) -> pl.Series:
        """The records as text, null where one is not UTF-8."""
        if self._text is None:
            self._text = as_text(self.series)
        return self._text

    @property
    def lines(self) -> bytes:
        """The records one to a line. Built once: at this size a copy costs as much as a pass over it."""
        if self._lines is None:
            self._lines = b"\n".join(self.values)
        return self._lines

    def has(self, escape: bytes) -> bool:
        """Whether any of the records holds these bytes, which start with a backslash."""
        return b"\\" in self.lines and bool(self.series.bin.contains(escape).any())

    def drop(self, problems: Mapping[int, Problem]) -> pl.Series:
        """Take records out and give the mask of those that stay.

        ``problems``: by place among those still here.
        """
        places = pl.int_range(len(self), dtype=pl.UInt32, eager=True)
        keep = ~places.is_in(list(problems))
        if problems:
            self.problems.update((self.rows[place], problem) for place, problem in problems.items())
            self.rows = self.rows.filter(keep)
            self.series = self.series.filter(keep)
            self.values = list(itertools.compress(self.values, keep.to_list()))
            self._lines = self._text = None
        return keep

    def replace(self, values: Mapping[int, bytes]) -> None:
        """Put in other bytes that mean the same, by place."""
        for place, value in values.items():
            self.values[place] = value
        self._lines = self._text = None
        self.series = pl.Series(self.values, dtype=pl.Binary)


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
