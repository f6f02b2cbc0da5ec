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

#: Columns of a pane: its start, and how many of its windows (counted from the newest) are open.
PANE = ("__pane", "__open")


class Panes:
    """Assigns events to panes and panes to windows."""

    def __init__(self, table: Table) -> None:
        self.size = table.window.size
        self.hop = table.window.hop if table.window.kind == "hopping" else table.window.size
        self.lateness = table.lateness
        self.pane = math.gcd(self.size, self.hop)

    def assign(self, at: pl.Expr, watermark: pl.Expr) -> list[pl.Expr]:
        """Over events (both in Unix microseconds, no watermark is null): :data:`PANE`. ``__open`` is 0
        for a late event.
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
        """One row for each open window of each pane: ``window_start`` instead of :data:`PANE`."""
        start = self._newest(pl.col("__pane"))
        if self.pane == self.size:
            return panes.select(start.alias("window_start"), pl.exclude(PANE))
        back = pl.int_ranges(0, pl.col("__open"))
        return (
            panes.with_columns(start.alias("window_start"), back.alias("__back"))
            .explode("__back")
            .select(
                pl.col("window_start") - pl.col("__back") * self.hop,
                pl.exclude("window_start", "__back", *PANE),
            )
        )

    def _newest(self, pane: pl.Expr) -> pl.Expr:
        return pane // self.hop * self.hop
