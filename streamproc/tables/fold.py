"""Folding events into a table: partial → merge → seal, then merged into the store by its sink.

Pure polars; one :class:`TableFold` for each table of a stream. How a frame of events is cut into batches,
epochs and workers does not change what the table says in the end (see :mod:`streamproc.tables.measures`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from streamproc.tables.measures import Aggregation, state_columns
from streamproc.tables.sessions import SPAN, SessionFold, concatenate
from streamproc.tables.sketches import SKETCHED, build, estimate, union
from streamproc.tables.windows import PANE, Panes
from streamproc.topology import Measure, Table


@dataclass(frozen=True, slots=True)
class Delta:
    """What an epoch adds to a table.

    ``rows``: one for each key, sorted by it: ``window_start`` and the ``by`` columns, or the session key and
    its span; then the state columns (:func:`streamproc.tables.measures.state_columns`). Times are Unix
    microseconds. ``events``: of a session table, the events behind the rows, for runs that reach the cap.
    """

    rows: pl.DataFrame
    events: pl.DataFrame | None = None

    def __len__(self) -> int:
        return self.rows.height


class WindowFold:
    """Folds events into the rows of one tumbling or hopping table."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.keys = ["window_start", *table.by]
        self._panes = Panes(table)
        self._aggregation = Aggregation(table.measures)
        self._sketched = [m for m in table.measures if m.kind in SKETCHED]

    @property
    def columns(self) -> list[str]:
        """Columns of a delta: keys, then state."""
        return [*self.keys, *(c.name for m in self.table.measures for c in state_columns(m))]

    def partial(self, events: pl.DataFrame) -> tuple[pl.DataFrame, int]:
        """Aggregate by pane; the number is how many events were late."""
        at = pl.col("event_time").to_physical()
        frame = events.lazy()
        if self.table.where is not None:
            frame = frame.filter(pl.sql_expr(self.table.where))
        ordered = [at.alias("__at"), pl.col("position")] if self._aggregation.ordered else []
        panes = self._panes.assign(at, pl.col("watermark").to_physical())
        rows = frame.select(*panes, *self.table.by, *self._aggregation.inputs(), *ordered).collect()
        closed = pl.col("__open") <= 0
        late = int(rows.select(closed.sum()).item())
        rows = rows.filter(~closed) if late else rows
        return self._aggregation.fold(rows, [*PANE, *self.table.by]), late

    def merge(self, partials: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """One partial of several."""
        if len(partials) == 1:
            return partials[0]
        return self._aggregation.merge(pl.concat(partials), [*PANE, *self.table.by])

    def seal(self, partial: pl.DataFrame) -> Delta:
        """Panes to windows, values to sketches."""
        for measure in self._sketched:
            partial = partial.with_columns(build(measure, partial[f"{measure.name}__sketch"]))
        windows = self._panes.expand(partial)
        if self._panes.size != self._panes.pane or windows.select(self.keys).is_duplicated().any():
            windows = self._aggregation.merge(windows, self.keys)
            for measure in self._sketched:
                windows = windows.with_columns(union(measure, windows[f"{measure.name}__sketch"]))
        for measure in self._sketched:
            windows = windows.with_columns(estimate(measure, windows[f"{measure.name}__sketch"]))
        return Delta(windows.select(self.columns).sort(self.keys))


class TableFold:
    """Folds events into one table, whatever its window."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self._fold: WindowFold | SessionFold
        self._fold = SessionFold(table) if table.window.kind == "session" else WindowFold(table)

    def partial(self, events: pl.DataFrame) -> tuple[pl.DataFrame, int]:
        """The partial aggregate of some events, and how many of them were late for the table.

        ``events`` has the columns the table names, ``event_time``, ``position`` and ``watermark``
        (``Datetime("us", "UTC")``: the partition's watermark just before the event, null for none yet).
        """
        return self._fold.partial(events)

    def merge(self, partials: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """One partial of one or more."""
        if isinstance(self._fold, SessionFold):
            return concatenate(partials)
        return self._fold.merge(partials)

    def seal(self, partial: pl.DataFrame) -> Delta:
        """What the epoch adds to the table, ready for the store."""
        if isinstance(self._fold, SessionFold):
            return Delta(*self._fold.seal(partial))
        return self._fold.seal(partial)


__all__ = ["SPAN", "Delta", "Measure", "TableFold", "WindowFold"]
