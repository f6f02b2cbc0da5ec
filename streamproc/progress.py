"""What a worker remembers of a partition between record batches: its clock and its recent event ids.

Both are functions of the accepted events in position order, so they can be rebuilt from the lake, and a
replay sees the same duplicates and the same late events however the records were cut into batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import polars as pl

from streamproc.model import Claim

if TYPE_CHECKING:
    import numpy.typing as npt

    #: Ids as 64-bit hashes.
    Hashes: TypeAlias = npt.NDArray[np.uint64]
    #: Unix microseconds.
    Times: TypeAlias = npt.NDArray[np.int64]
    #: Row numbers.
    Order: TypeAlias = npt.NDArray[np.intp]

_WATERMARK = pl.Datetime("us", "UTC")

#: Stands for "not accepted yet": older than any event time.
NEVER = -(2**62)

#: Stands for the id of an event that has none. Above all hashes, so such events are the last of sorted ones.
NO_ID = np.uint64(2**64 - 1)


class RecentIds:
    """Event ids accepted within ``horizon`` (µs) of the partition's clock.

    Ids are kept as 64-bit hashes: with *n* ids inside the horizon a fresh id is mistaken for a known one
    with probability n / 2^64 (for 10 million: 5e-13), and is then counted as a duplicate.

    They lie in sorted segments, each at least twice as large as the next younger one, as in a log-structured
    merge tree: 16 bytes an id and a binary search in a few arrays, where a dictionary takes some 170 bytes.
    Ids that the clock has left behind go when their segment is merged, at the latest when they are half of
    what is kept.
    """

    def __init__(self, horizon: int) -> None:
        self.horizon = horizon
        self._segments: list[_Segment] = []  # oldest first

    def __len__(self) -> int:
        return sum(len(segment.hashes) for segment in self._segments)

    def last_seen(self, hashes: Hashes) -> Times:
        """The clock (µs) as of the last accepted event with each of these ids, ``NEVER`` where none is
        remembered.

        Quickest when ``hashes`` are sorted.
        """
        seen = np.full(len(hashes), NEVER, dtype=np.int64)
        for segment in self._segments:  # a younger one has the last word
            at = np.searchsorted(segment.hashes, hashes)
            at[at == len(segment.hashes)] = 0
            known = segment.hashes[at] == hashes
            if known.any():
                seen[known] = segment.clocks[at[known]]
        return seen

    def remember(self, hashes: Hashes, clocks: Times, order: Order | None = None) -> None:
        """Note accepted ids with the clock (µs) as of each; clocks never fall, here and between calls.

        ``order``: ``np.argsort(hashes, kind="stable")`` where it is known; of those to be noted, where not all are.
        """
        if not len(hashes):
            return
        gone = int(clocks[-1]) - self.horizon
        newest = _Segment.of(hashes, clocks, gone, order)
        if not len(newest.hashes):  # none has an id, or those that have come long before the last one
            return
        self._segments.append(newest)
        segments = self._segments
        while len(segments) > 1 and len(segments[-2].hashes) < 2 * len(segments[-1].hashes):
            young, old = segments.pop(), segments.pop()
            segments.append(
                _Segment.of(
                    np.concatenate([old.hashes, young.hashes]),
                    np.concatenate([old.clocks, young.clocks]),
                    gone,
                )
            )
        # The oldest is the largest by far, and merged least often.
        if segments[0].newest < gone:
            del segments[0]
        elif segments[0].middle < gone:
            segments[0] = _Segment.of(segments[0].hashes, segments[0].clocks, gone)

    def rebuild(self, accepted: pl.DataFrame, id_column: str) -> None:
        """Remember the ids of rows read back from the lake (``id_column``, ``event_time``), in position order.

        The clock of the first rows is only known from the rows themselves. That does not matter: where it
        is too low, the true one was already outside the horizon. Rows without an id move the clock, as they did.
        """
        clocks = accepted["event_time"].to_physical().cum_max().to_numpy()
        hashes = hash_ids(accepted[id_column])
        known = hashes != NO_ID
        self.remember(hashes[known], clocks[known])


@dataclass(frozen=True, slots=True)
class _Segment:
    """Ids in ascending order, each once, and the clock of each; the newest and about the middle one of those."""

    hashes: Hashes
    clocks: Times
    newest: int
    middle: int

    @classmethod
    def of(cls, hashes: Hashes, clocks: Times, gone: int, order: Order | None = None) -> _Segment:
        """What is not older than ``gone``; of an id that stands twice the last."""
        if order is None:
            order = np.argsort(hashes, kind="stable")  # merges two sorted runs without sorting them again
        hashes, clocks = hashes[order], clocks[order]
        keep = clocks >= gone
        keep[:-1] &= hashes[1:] != hashes[:-1]
        hashes, clocks = hashes[keep], clocks[keep]
        if not len(clocks):
            return cls(hashes, clocks, NEVER, NEVER)
        # Ids have no order in time: every 16th is a fair sample.
        sample = np.sort(clocks[::16])
        return cls(hashes, clocks, int(clocks.max()), int(sample[len(sample) // 2]))


def hash_ids(ids: pl.Series) -> Hashes:
    """64-bit hashes of event ids, :data:`NO_ID` for a null; comparable within one process only."""
    hashes: Hashes = ids.hash(seed=7).to_numpy()
    if ids.null_count():  # which all have the same hash
        hashes = np.where(ids.is_null().to_numpy(), NO_ID, hashes)
    return hashes


class Arrivals:
    """Events of some partitions, a partition's side by side and in position order, while it is decided about them.

    ``kept``: which are accepted, all to begin with; ``watermarks``: of each accepted one (µs, ``NEVER`` for none).
    ``hashes``: of their ids, where there is a rule about duplicates; ``nameless``: some have no id. A polars call costs
    more than its work on few rows: what can be done for all partitions together is done here, and what cannot is done
    with arrays.
    """

    def __init__(self, events: pl.DataFrame, id_column: str | None) -> None:
        self.events = events
        self.times: Times = events["event_time"].to_physical().to_numpy()
        self.hashes: Hashes | None = hash_ids(events[id_column]) if id_column is not None else None
        self.nameless = id_column is not None and events[id_column].null_count() > 0
        self.kept = np.ones(len(events), dtype=np.bool_)
        self.watermarks: Times = np.empty(len(events), dtype=np.int64)

    def accepted(self) -> tuple[pl.DataFrame, pl.Series]:
        """The events that were accepted, and a column ``watermark`` (``Datetime("us", "UTC")``): the newest event time
        among those of the partition accepted *before* each, minus the disorder; null before the first.
        """
        events, watermarks = self.events, self.watermarks
        if not self.kept.all():
            events, watermarks = events.filter(pl.Series(self.kept)), watermarks[self.kept]
        column = pl.Series("watermark", watermarks).cast(_WATERMARK)
        unknown = np.flatnonzero(watermarks == NEVER)
        return events, column.scatter(unknown, None) if len(unknown) else column


@dataclass(slots=True)
class PartitionProgress:
    """Where one claimed partition stands in this worker's memory, ahead of what is committed.

    ``taken``: last position handed to the transform; ``clock_us``: newest accepted event time so far.
    """

    claim: Claim
    taken: int | None
    clock_us: int | None
    recent: RecentIds | None = None

    def accept(self, events: pl.DataFrame, id_column: str | None, disorder: int) -> tuple[pl.DataFrame, int]:
        """:meth:`decide` about events of this partition alone.

        Returns the remaining rows with the ``watermark`` of :meth:`Arrivals.accepted`, and the number of
        duplicates dropped. Rows must be in position order.
        """
        arrivals = Arrivals(events, id_column)
        dropped = self.decide(arrivals, slice(0, len(events)), disorder)
        accepted, watermark = arrivals.accepted()
        return accepted.with_columns(watermark), dropped

    def decide(self, arrivals: Arrivals, rows: slice, disorder: int) -> int:
        """Accept this partition's ``rows`` but for duplicates, whose number is returned; ``disorder`` in µs.

        What was not kept before counts neither as accepted nor as dropped.
        """
        kept, times = arrivals.kept[rows], arrivals.times[rows]  # the former a view, to be written to
        places = None if kept.all() else np.flatnonzero(kept)
        if places is not None:
            times = times[places]
        if not len(times):
            return 0
        dropped = 0
        if self.recent is None or arrivals.hashes is None:
            clocks = self._moved(times)
        else:
            hashes = arrivals.hashes[rows] if places is None else arrivals.hashes[rows][places]
            order = np.argsort(hashes, kind="stable")
            if arrivals.nameless:  # nobody's duplicates, and not remembered
                order = order[: np.searchsorted(hashes, NO_ID, sorter=order)]
            duplicates = self._duplicates(hashes, times, order)
            if duplicates:
                dropped = len(duplicates)
                kept[duplicates if places is None else places[duplicates]] = False
                keep = np.ones(len(hashes), dtype=np.bool_)
                keep[duplicates] = False
                hashes, times = hashes[keep], times[keep]
                order = (np.cumsum(keep) - 1)[order[keep[order]]]
            clocks = self._moved(times)
            self.recent.remember(hashes, clocks[1:], order)
        watermarks = clocks[:-1]
        watermarks[watermarks != NEVER] -= disorder
        arrivals.watermarks[rows][kept] = watermarks
        return dropped

    def _duplicates(self, hashes: Hashes, times: Times, order: Order) -> list[int]:
        """The rows whose id was accepted within the horizon before them, ascending. ``order`` sorts ``hashes``, but for
        those of rows without an id.

        Only an id that is remembered or stands here twice can be one. The others are accepted whatever
        becomes of those, so their clock is known in one go; the few are then decided one after the other.
        """
        assert self.recent is not None
        ascending = hashes[order]
        seen = self.recent.last_seen(ascending)
        doubtful = seen != NEVER
        repeated = ascending[1:] == ascending[:-1]
        doubtful[1:] |= repeated
        doubtful[:-1] |= repeated
        if not doubtful.any():
            return []
        places = np.sort(order[doubtful])
        last_seen = dict(zip(hashes[order[doubtful]].tolist(), seen[doubtful].tolist(), strict=True))
        certain = times.copy()
        certain[places] = NEVER
        before = np.maximum.accumulate(certain)[places]
        clock = NEVER if self.clock_us is None else self.clock_us
        found = []
        for place, id_hash, time, others in zip(
            places.tolist(), hashes[places].tolist(), times[places].tolist(), before.tolist(), strict=True
        ):
            clock = max(clock, others)
            if last_seen[id_hash] == NEVER or clock - last_seen[id_hash] > self.recent.horizon:
                # Its own time counts: an event after a long silence moves the clock by more than the horizon.
                clock = last_seen[id_hash] = max(clock, time)
            else:
                found.append(place)
        return found

    def _moved(self, times: Times) -> Times:
        """Move the clock by accepted events: the clock before them, then as of each."""
        clocks = np.empty(len(times) + 1, dtype=np.int64)
        clocks[0] = NEVER if self.clock_us is None else self.clock_us
        clocks[1:] = times
        np.maximum.accumulate(clocks, out=clocks)
        if len(times):
            self.clock_us = int(clocks[-1])
        return clocks
