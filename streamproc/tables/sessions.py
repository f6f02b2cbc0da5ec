"""Session windows: the visits of each value of a key.

Two events of a key belong to the same session when at most ``gap`` lies between neighbours (an event exactly
``gap`` after the last still belongs), unless it comes ``cap`` or more after the session's first event: that
one starts a new session. With gap 30 min: events at 10:00, 10:20, 10:50 are one session, 11:20:00.000001
starts the next. ``session_end`` is the time of the last event, not a timeout.

Sessions are built from *pieces*: the gap-connected runs of a key within an epoch.
:meth:`SessionFold.stitch` joins pieces with the sessions the store already has, wherever and whenever the
pieces were made. Where a joined run would reach the cap its pieces are taken apart into events, so the cap
falls between the right two events however the stream was cut into epochs. One limit: a stored session is
not taken apart again, so an event that arrives *before* the start of an already capped run (out of order,
within the lateness) does not move the cuts after it, and stands alone when joining would exceed the cap.

An event is late when ``event_time + gap + lateness <= watermark``: a session of it alone would be over.
Events whose key is null belong to no session.
"""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import polars as pl

from streamproc.strings import apart
from streamproc.tables import funnels
from streamproc.tables.hyperloglog import with_coupons
from streamproc.tables.measures import Aggregation, state_columns
from streamproc.tables.sketches import SKETCHED, build, union
from streamproc.topology import Table

if TYPE_CHECKING:
    import numpy.typing as npt

    Hashes: TypeAlias = npt.NDArray[np.uint64]
    #: Unix microseconds, or positions.
    Times: TypeAlias = npt.NDArray[np.int64]
    #: Row numbers.
    Order: TypeAlias = npt.NDArray[np.intp]

#: Columns of a piece or session beside its key and state, in Unix microseconds.
SPAN: dict[str, pl.DataType] = {"session_start": pl.Int64(), "session_end": pl.Int64()}

#: After every event.
_NEVER = 2**62


class SessionFold:
    """Folds events into the pieces of one session table."""

    def __init__(self, table: Table) -> None:
        assert table.window.kind == "session"
        self.table = table
        self.key = table.window.key
        self._aggregation = Aggregation(table.measures)
        self._funnels = [m for m in table.measures if m.kind == "funnel"]
        self._sketched = [m for m in table.measures if m.kind in SKETCHED]

    @property
    def hashed(self) -> Set[str]:
        """See :attr:`~streamproc.tables.fold.TableFold.hashed`."""
        return self._aggregation.hashed

    # -- events to pieces --------------------------------------------------------------------------

    def partial(self, events: pl.DataFrame) -> tuple[pl.DataFrame, int]:
        """What the table needs of its events, and how many were late.

        Not aggregated yet: within a batch a visitor has an event or two, so it would shrink nothing.
        """
        at = pl.col("event_time").to_physical()
        mine = pl.col(self.key).is_not_null()
        if self.table.where is not None:
            mine &= pl.sql_expr(self.table.where)
        over = at + self.table.window.gap + self.table.lateness <= pl.col("watermark").to_physical()
        kept = (
            with_coupons(events, self.hashed)
            .lazy()
            .filter(mine)
            .select(
                # It may be a view into the record it came in, which would be kept until the epoch is sealed.
                apart(pl.col(self.key)) if events.schema[self.key] == pl.String else pl.col(self.key),
                at.alias("__at"),
                pl.col("position"),
                *self._aggregation.inputs(),
                *(funnels.step_bits(m).alias(f"__bits_{m.name}") for m in self._funnels),
                over.fill_null(False).alias("__late"),
            )
            .collect(engine="in-memory")
        )
        late = int(kept["__late"].sum())
        return (kept.filter(~pl.col("__late")) if late else kept).drop("__late"), late

    def seal(self, events: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """The pieces and the events they came from with the number of their ``__piece``."""
        events = events.rechunk()  # to gather from several chunks takes longer
        keys, at, position = events[self.key], events["__at"].to_numpy(), events["position"].to_numpy()
        # Should keys share half a hash and be there at the same time their runs come apart, and stitching puts them
        # together again.
        hashes = keys.hash().to_numpy() >> np.uint64(32)
        # Events of one key and time nearly always come by position, for they are of one partition: sorting by time
        # and then by key will do, which takes 40 % of the time of sorting by all three.
        order = _sort((at - at.min(initial=_NEVER)).astype(np.uint64))
        order = order[_sort(hashes[order])]
        new = _changes(keys[order])
        if (~new[1:] & (np.diff(at[order]) == 0) & (np.diff(position[order]) < 0)).any():
            order = np.lexsort([position, at, hashes])
            new = _changes(keys[order])
        at, position = at[order], position[order]
        new[1:] |= np.diff(at) > self.table.window.gap
        run = new.cumsum(dtype=np.uint32) - np.uint32(1)
        runs = pl.DataFrame({"__run": run, "__at": at, "position": position})
        piece = np.empty_like(run)
        piece[order] = run
        return (
            self._aggregate(runs, events, order).rename({"__run": "__piece"}),
            events.with_columns(pl.Series("__piece", piece)),
        )

    def _aggregate(self, runs: pl.DataFrame, events: pl.DataFrame, order: Order) -> pl.DataFrame:
        """One row for each run (0, 1, …): key, SPAN, state, ``__run``. See :meth:`Aggregation.fold_runs`."""
        states = self._aggregation.fold_runs(runs, events, order)
        first, last = states["__first"], states["__last"]
        states = states.hstack(
            [
                events[self.key].gather(order[first.to_numpy()]),
                runs["__at"].gather(first).alias("session_start"),
                runs["__at"].gather(last).alias("session_end"),
            ]
        )
        for measure in self._funnels:
            bits = f"__bits_{measure.name}"
            steps = runs.rename({"__run": "session"}).with_columns(events[bits].gather(order))
            long = funnels.long_form(steps, bits)
            states = states.hstack(funnels.finish(measure, long, len(states)))
            states = states.hstack([funnels.onward(measure, long, len(states))])
        for measure in self._sketched:
            states = states.with_columns(build(measure, states[f"{measure.name}__sketch"]))
        return states.select(*self.columns, *self.onward, "__run")

    @property
    def onward(self) -> list[str]:
        """More columns of a piece: how its funnels go on (:func:`streamproc.tables.funnels.onward`)."""
        return [f"{measure.name}__onward" for measure in self._funnels]

    @property
    def columns(self) -> list[str]:
        """Columns of a piece or session: key, SPAN, state."""
        state = [c.name for m in self.table.measures for c in state_columns(m)]
        return [self.key, *SPAN, *state]

    # -- pieces to sessions ------------------------------------------------------------------------

    def stitch(self, stored: pl.DataFrame, pieces: pl.DataFrame, events: pl.DataFrame) -> pl.DataFrame:
        """Join pieces with the stored sessions of the same keys: all sessions of those keys afterwards.

        ``stored`` has :attr:`columns`, ``pieces`` and ``events`` are what :meth:`seal` returned, or some keys
        of it.
        """
        window = self.table.window
        runs = _runs(self.key, window.gap, pl.concat([stored, pieces.select(self.columns)]))
        span = pl.col("session_end").max().over("__run") - pl.col("session_start").min().over("__run")
        whole, long = runs.filter(span < window.cap), runs.filter(span >= window.cap)
        sessions = self._merge(whole, "__run")
        if long.is_empty():
            return sessions
        keys = long.select(pl.col(self.key).unique())
        cut = self._cut(
            stored.join(keys, on=self.key, how="semi"),
            events.join(pieces.join(keys, on=self.key, how="semi"), on="__piece", how="semi"),
        )
        return pl.concat([sessions.join(keys, on=self.key, how="anti"), cut])

    def _cut(self, stored: pl.DataFrame, events: pl.DataFrame) -> pl.DataFrame:
        """Sessions of the few keys that reach the cap: one after the other, event by event."""
        window = self.table.window
        items = pl.concat(
            [
                stored.select(self.key, "session_start", "session_end")
                .with_row_index("__row")
                .with_columns(__old=True),
                events.select(self.key, session_start="__at", session_end="__at")
                .with_row_index("__row")
                .with_columns(__old=False),
            ]
        ).sort(self.key, "session_start", pl.col("__old").not_(), "session_end")
        numbers: list[int] = []
        number, key, start, end = -1, None, 0, 0
        for item_key, item_start, item_end in items.select(
            self.key, "session_start", "session_end"
        ).iter_rows():
            if (
                number < 0
                or item_key != key
                or item_start - end > window.gap
                or max(item_end, end) - start >= window.cap
            ):
                number, key, start, end = number + 1, item_key, item_start, item_end
            end = max(end, item_end)
            numbers.append(number)
        items = items.with_columns(pl.Series("__run", numbers, dtype=pl.UInt32)).sort("__old", "__row")
        of_events = items.filter(~pl.col("__old"))["__run"]
        of_stored = items.filter("__old")["__run"]
        events = events.with_columns(of_events).sort("__run", "__at", "position")
        runs = events.select(pl.col("__run").rank("dense") - 1, "__at", "position")
        pieces = self._aggregate(runs, events, np.arange(len(events)))
        present = of_events.unique().sort()
        pieces = pieces.drop(self.onward).with_columns(present.gather(pieces["__run"]))
        return self._merge(pl.concat([stored.with_columns(of_stored), pieces]), "__run")

    def _merge(self, rows: pl.DataFrame, run: str) -> pl.DataFrame:
        alone = pl.len().over(run) == 1
        single, several = rows.filter(alone).select(self.columns), rows.filter(~alone)
        if several.is_empty():
            return single
        spans = several.group_by(run, maintain_order=True).agg(
            pl.col(self.key).first(), pl.col("session_start").min(), pl.col("session_end").max()
        )
        states = spans.join(
            self._aggregation.merge(several, [run]), on=run, how="left", maintain_order="left"
        )
        for measure in self._funnels:
            steps = states[f"{measure.name}__steps"].list.join("")
            finished = funnels.finish(measure, funnels.decode(steps), len(states))
            states = states.drop(f"{measure.name}__steps").hstack(finished)
        for measure in self._sketched:
            states = states.with_columns(union(measure, states[f"{measure.name}__sketch"]))
        return pl.concat([single, states.select(self.columns)])


def _sort(values: Hashes) -> Order:
    """The places of the values in ascending order, of equal ones in theirs. By digits of 16 bits, which numpy sorts by
    counting.
    """
    order = np.argsort(values.astype(np.uint16), kind="stable")
    for shift in range(16, int(values.max(initial=0)).bit_length(), 16):
        digits = (values >> np.uint64(shift)).astype(np.uint16)
        order = order[np.argsort(digits[order], kind="stable")]
    return order


def _changes(values: pl.Series) -> npt.NDArray[np.bool_]:
    """Which values differ from the one before; the first does."""
    return (values != values.shift()).fill_null(True).to_numpy(writable=True)


def _runs(key: str, gap: int, rows: pl.DataFrame) -> pl.DataFrame:
    """Number the gap-connected runs of each key: column ``__run``."""
    rows = rows.sort(key, "session_start", "session_end")
    reached = pl.col("session_end").cum_max().over(key).shift()
    begins = (pl.col(key) != pl.col(key).shift()) | (pl.col("session_start") - reached > gap)
    return rows.with_columns(begins.fill_null(True).cum_sum().cast(pl.UInt32).alias("__run"))
