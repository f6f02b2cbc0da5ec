"""Enrich by distinct value: what a column's values say is worked out once per value, not once per event.

A batch of 20,000 events holds perhaps 3,000 different user agents or URLs, and the next batch mostly the
same ones. Joining the answers back costs about 0.05 µs an event.
"""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

#: From a series of distinct, non-null values to a frame of answers, row by row.
Describe = Callable[[pl.Series], pl.DataFrame]
#: What one enrichment may remember, whatever length its values have.
MAX_BYTES = 32 * 2**20
_KEY = "distinct value"
_KNOWN = "is known"


class Remembered:
    """A step that adds ``describe``'s answers for the values of ``column``; null for null.

    Answers are kept from batch to batch, ``bound`` values and :data:`MAX_BYTES` at most: when they would be
    more, those that the current batch uses stay and the others are forgotten. What is remembered changes the
    cost only, never an answer. A batch with more distinct values than fit is answered all the same.
    """

    def __init__(self, column: str, describe: Describe, bound: int = 20_000) -> None:
        self._column = column
        self._describe = describe
        self._bound = bound
        self._known = self._answers(pl.Series(_KEY, [], dtype=pl.String))

    def __call__(self, frame: pl.DataFrame) -> pl.DataFrame:
        """``frame`` with the answers' columns."""
        joined = self._join(frame)
        missing = joined.lazy().filter(pl.col(_KNOWN).is_null()).select(pl.col(self._column).unique())
        values = missing.collect().to_series().drop_nulls()
        if len(values):
            self._learn(frame, values)
            joined = self._join(frame)
        return joined.drop(_KNOWN)

    def _join(self, frame: pl.DataFrame) -> pl.DataFrame:
        return frame.join(self._known, left_on=self._column, right_on=_KEY, how="left", maintain_order="left")

    def _learn(self, frame: pl.DataFrame, values: pl.Series) -> None:
        known = self._known
        if known.height + len(values) > self._bound or known.estimated_size() > MAX_BYTES:
            known = known.join(frame.select(self._column), left_on=_KEY, right_on=self._column, how="semi")
        self._known = pl.concat([known, self._answers(values)], rechunk=True)

    def _answers(self, values: pl.Series) -> pl.DataFrame:
        return self._describe(values).with_columns(values.alias(_KEY), pl.lit(True).alias(_KNOWN))
