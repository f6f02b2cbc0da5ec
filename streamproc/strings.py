"""Strings that keep nothing else in memory."""

from __future__ import annotations

from typing import TypeVar

import polars as pl

Strings = TypeVar("Strings", pl.Expr, pl.Series)


def apart(strings: Strings) -> Strings:
    """The same strings in buffers of their own; nulls stay (0.05 µs each).

    A column of polars has views into buffers, and slices, filters, gathers and ``concat`` copy views: one short string
    that is kept keeps the whole buffer, which may hold all records of its batch. polars has nothing that copies strings
    by itself; to put an empty one behind each does.
    """
    return strings + ""
