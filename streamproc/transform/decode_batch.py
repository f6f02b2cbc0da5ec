"""The records on their way through a decoder."""

from __future__ import annotations

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

    def __len__(self) -> int:
        return len(self.values)

    @property
    def text(self) -> pl.Series:
        """The records as text, null where one is not UTF-8."""
        try:
            return self.series.cast(pl.String)
        except pl.exceptions.ComputeError:  # strict=False raises as well
            return pl.Series([_decoded(value) for value in self.values], dtype=pl.String)

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
            self.values = [value for place, value in enumerate(self.values) if place not in problems]
            self._lines = None
        return keep

    def replace(self, values: Mapping[int, bytes]) -> None:
        """Put in other bytes that mean the same, by place."""
        self.values = [values.get(place, value) for place, value in enumerate(self.values)]
        self._lines = None
        self.series = pl.Series(self.values, dtype=pl.Binary)


def _decoded(value: bytes) -> str | None:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None
