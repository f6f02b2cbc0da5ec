"""Enrich by distinct value: what a column's values say is worked out once per value, not once per event.

A batch of 20,000 events holds perhaps 3,000 different user agents or URLs, and the next batch mostly the
same ones. Joining the answers back costs about 0.04 µs an event.
"""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

#: From a series of distinct, non-null values to a frame of answers, row by row.
Describe = Callable[[pl.Series], pl.DataFrame]
_KEY = "distinct value"
_KNOWN = "is known"


def describe_each(frame: pl.DataFrame, column: str, describe: Describe) -> pl.DataFrame:
    """``frame`` with the columns ``describe`` gives for the distinct values of ``column``; null for null."""
    values = frame[column].unique().drop_nulls()
    answers = describe(values).with_columns(values.alias(_KEY))
    return frame.join(answers, left_on=column, right_on=_KEY, how="left", maintain_order="left")


class Remembered:
    """Like :func:`describe_each`, but answers are kept from batch to batch.

    For work that is much dearer than a join (a user agent: 50 µs). At most ``bound`` values are kept: when
    they would be more, those of the current batch stay and the others are forgotten.
    """

    def __init__(self, column: str, describe: Describe, bound: int = 20_000) -> None:
        self._column = column
        self._describe = describe
        self._bound = bound
        self._known = self._answers(pl.Series(_KEY, [], dtype=pl.String))

    def __call__(self, frame: pl.DataFrame) -> pl.DataFrame:
        """``frame`` with the answers' columns."""
        joined = self._join(frame)
        missing = joined.filter(pl.col(_KNOWN).is_null() & pl.col(self._column).is_not_null())
        if missing.height:
            self._learn(frame, missing[self._column].unique())
            joined = self._join(frame)
        return joined.drop(_KNOWN)

    def _join(self, frame: pl.DataFrame) -> pl.DataFrame:
        return frame.join(self._known, left_on=self._column, right_on=_KEY, how="left", maintain_order="left")

    def _learn(self, frame: pl.DataFrame, values: pl.Series) -> None:
        known = self._known
        if known.height + len(values) > self._bound:
            known = known.join(frame.select(self._column), left_on=_KEY, right_on=self._column, how="semi")
        self._known = pl.concat([known, self._answers(values)])

    def _answers(self, values: pl.Series) -> pl.DataFrame:
        return self._describe(values).with_columns(values.alias(_KEY), pl.lit(True).alias(_KNOWN))
