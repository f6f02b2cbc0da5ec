"""Tumbling and hopping windows, by way of panes.

Windows are ``[start, end)``, starts are multiples of ``hop`` since the Unix epoch (a tumbling window hops by
its size), all in integer microseconds. With ``size = 5m, hop = 1m`` an event at 10:07:30 is in the windows
that start at 10:03, 10:04, 10:05, 10:06 and 10:07; one at 10:08:00.000000 is in 10:04 to 10:08.

Events are aggregated once per *pane* (the greatest common divisor of size and hop; Li et al., "No pane, no
gain", 2005) and panes are copied to the windows that hold them when the epoch is sealed, so a hopping
window costs about as much as a tumbling one.

Lateness is judged per event and window: a window is closed to an event when ``end + lateness <= watermark``
(the watermark just before the event). An event is *late* when all its windows are closed; one that finds
some open is folded into those only and is not counted as late.
"""

from __future__ import annotations

import math

import polars as pl

from streamproc.topology import Table


class Panes:
    """Assigns events to panes and panes to windows."""

    def __init__(self, table: Table) -> None:
        self.size = table.window.size
        self.hop = table.window.hop if table.window.kind == "hopping" else table.window.size
        self.lateness = table.lateness
        self.pane = math.gcd(self.size, self.hop)
        self.overlap = self.size > self.hop
        #: A pane's start and, where it is in several windows, how many of them (from the newest) are open.
        self.columns = ("__pane", "__open") if self.overlap else ("__pane",)

    def assign(self, at: pl.Expr, watermark: pl.Expr) -> list[pl.Expr]:
        """Over events (both in Unix microseconds, no watermark is null): ``__pane`` and ``__open``,
        which is 0 for a late event.
        """
        pane = at // self.pane * self.pane
        newest = self._newest(pane)
        windows = (self.size - (pane - newest) + self.hop - 1) // self.hop
        open_ = (newest + self.size + self.lateness - watermark + self.hop - 1) // self.hop
        open_ = pl.min_horizontal(windows, pl.max_horizontal(open_, pl.lit(0))).fill_null(0)
        return [
            pane.alias("__pane"),
            pl.when(watermark.is_null()).then(windows).otherwise(open_).cast(pl.Int32).alias("__open"),
        ]

    def expand(self, panes: pl.DataFrame) -> pl.DataFrame:
        """One row for each open window of each pane: ``window_start`` instead of :attr:`columns`."""
        start = self._newest(pl.col("__pane")).alias("window_start")
        if not self.overlap:
            return panes.select(start, pl.exclude(self.columns))
        return (
            panes.with_columns(start, pl.int_ranges(0, pl.col("__open")).alias("__back"))
            .explode("__back")
            .select(
                pl.col("window_start") - pl.col("__back") * self.hop,
                pl.exclude("window_start", "__back", *self.columns),
            )
        )

    def _newest(self, pane: pl.Expr) -> pl.Expr:
        return pane // self.hop * self.hop
