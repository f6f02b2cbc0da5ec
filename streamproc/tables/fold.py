"""Folding events into a table: partial → merge → seal, then merged into the store by its sink.

Pure polars; one :class:`TableFold` for each table of a stream. How a frame of events is cut into batches,
epochs and workers does not change what the table says in the end (see :mod:`streamproc.tables.measures`).
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

import polars as pl

from streamproc.tables.hyperloglog import with_coupons
from streamproc.tables.measures import Aggregation, state_columns
from streamproc.tables.sessions import SessionFold
from streamproc.tables.sketches import SKETCHED, build, union
from streamproc.tables.windows import Panes
from streamproc.topology import Table

#: Events of a windowed table that wait to be aggregated together. Grouping a hundred thousand rows costs a
#: third per row of grouping the few thousand of a batch.
_FOLD_AT = 100_000


@dataclass(frozen=True, slots=True)
class Delta:
    """What an epoch adds to a table.

    ``rows``: one for each ``window_start`` and ``by`` columns, sorted by them, or for each piece of a
    session with its key and span; then the state columns of
    :func:`~streamproc.tables.measures.state_columns`. Times are Unix microseconds. ``events``: of a session
    table, the events behind the rows, for runs that reach the cap.
    """

    rows: pl.DataFrame
    events: pl.DataFrame | None = None

    def __len__(self) -> int:
        return self.rows.height


@dataclass(frozen=True, slots=True)
class Partial:
    """Part of an epoch, folded or about to be: opaque between :class:`TableFold`'s methods.

    ``events``: frames with what the table needs of its events. ``states``: aggregated ones.
    """

    events: tuple[pl.DataFrame, ...] = ()
    states: pl.DataFrame | None = None


class WindowFold:
    """Folds events into the rows of one tumbling or hopping table."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.keys = ["window_start", *table.by]
        self._panes = Panes(table)
        self._by = [*self._panes.columns, *table.by]
        self._aggregation = Aggregation(table.measures)
        self._sketched = [m for m in table.measures if m.kind in SKETCHED]

    @property
    def hashed(self) -> Set[str]:
        """See :attr:`TableFold.hashed`."""
        return self._aggregation.hashed

    @property
    def columns(self) -> list[str]:
        """Columns of a delta: keys, then state."""
        return [*self.keys, *(c.name for m in self.table.measures for c in state_columns(m))]

    def partial(self, events: pl.DataFrame) -> tuple[Partial, int]:
        """What the table needs of its events, by pane; the number is how many were late."""
        at = pl.col("event_time").to_physical()
        frame = with_coupons(events, self._aggregation.hashed).lazy()
        if self.table.where is not None:
            frame = frame.filter(pl.sql_expr(self.table.where))
        ordered = [at.alias("__at"), pl.col("position")] if self._aggregation.ordered else []
        panes = self._panes.assign(at, pl.col("watermark").to_physical())
        # A hundred thousand rows are little: the streaming engine takes up to three times as long.
        frame = frame.select(*panes, *self.table.by, *self._aggregation.inputs(), *ordered)
        rows = frame.collect(engine="in-memory")
        closed = pl.col("__open") <= 0
        late = int(rows.select(closed.sum()).item())
        rows = rows.filter(~closed) if late else rows
        return Partial((rows.select(pl.exclude("__open") if "__open" not in self._by else pl.all()),)), late

    def merge(self, partials: Sequence[Partial]) -> Partial:
        """One partial of several; aggregated when that is worth it."""
        events = tuple(frame for partial in partials for frame in partial.events)
        states = [partial.states for partial in partials if partial.states is not None]
        if sum(frame.height for frame in events) >= _FOLD_AT:
            states.append(self._aggregation.fold(pl.concat(events), self._by))
            events = ()
        if len(states) > 1:
            states = [self._aggregation.merge(pl.concat(states), self._by)]
        return Partial(events, states[0] if states else None)

    def seal(self, partial: Partial) -> Delta:
        """Panes to windows, values to sketches."""
        states = [] if partial.states is None else [partial.states]
        if partial.events:
            states.append(self._aggregation.fold(pl.concat(partial.events), self._by))
        panes = states[0] if len(states) == 1 else self._aggregation.merge(pl.concat(states), self._by)
        for measure in self._sketched:
            panes = panes.with_columns(build(measure, panes[f"{measure.name}__sketch"]))
        windows = self._panes.expand(panes)
        return (
            self.unite(windows)
            if self._panes.overlap
            else Delta(windows.select(self.columns).sort(self.keys))
        )

    def unite(self, rows: pl.DataFrame) -> Delta:
        """One delta of the rows of several, which may have a key in common."""
        merged = self._aggregation.merge(rows, self.keys)
        for measure in self._sketched:
            merged = merged.with_columns(union(measure, merged[f"{measure.name}__sketch"]))
        return Delta(merged.select(self.columns).sort(self.keys))


class TableFold:
    """Folds events into one table, whatever its window."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self._fold: WindowFold | SessionFold
        self._fold = SessionFold(table) if table.window.kind == "session" else WindowFold(table)

    @property
    def hashed(self) -> Set[str]:
        """Columns whose values are hashed for sketches. Tables share the hashes of events that already have them, see
        :func:`streamproc.tables.hyperloglog.with_coupons`.
        """
        return self._fold.hashed

    def partial(self, events: pl.DataFrame) -> tuple[Partial, int]:
        """The table's share of some events, and how many of them were late for it.

        ``events`` has the columns the table names, ``event_time``, ``position`` and ``watermark``
        (``Datetime("us", "UTC")``: the partition's watermark just before the event, null for none yet).
        """
        if isinstance(self._fold, SessionFold):
            kept, late = self._fold.partial(events)
            return Partial((kept,)), late
        return self._fold.partial(events)

    def merge(self, partials: Sequence[Partial]) -> Partial:
        """One partial of one or more. Of a windowed table it is bounded by the number of distinct keys and
        values (and a hundred thousand events), of a session table by the number of events.
        """
        if isinstance(self._fold, SessionFold):
            return Partial(tuple(frame for partial in partials for frame in partial.events))
        return self._fold.merge(partials)

    def seal(self, partial: Partial) -> Delta:
        """What the epoch adds to the table, ready for the store."""
        if isinstance(self._fold, SessionFold):
            return Delta(*self._fold.seal(pl.concat(partial.events)))
        return self._fold.seal(partial)

    def unite(self, deltas: Sequence[Delta]) -> Delta:
        """One delta of several that were folded apart; the same as of all their events folded together.

        Pieces of sessions are made anew, of the events: a visit may have been read in several places.
        """
        if isinstance(self._fold, SessionFold):
            events = [delta.events.drop("__piece") for delta in deltas if delta.events is not None]
            return Delta(*self._fold.seal(pl.concat(events)))
        if len(deltas) == 1:
            return deltas[0]
        return self._fold.unite(pl.concat(delta.rows for delta in deltas))

    @property
    def key(self) -> list[str]:
        """The columns by which rows of several deltas belong together: of sessions, the key alone."""
        return [self._fold.key] if isinstance(self._fold, SessionFold) else self._fold.keys
