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

        ``order``: ``np.argsort(hashes, kind="stable")`` where it is known.
        """
        if not len(hashes):
            return
        gone = int(clocks[-1]) - self.horizon
        self._segments.append(_Segment.of(hashes, clocks, gone, order))
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
        is too low, the true one was already outside the horizon.
        """
        clocks = accepted["event_time"].to_physical().cum_max()
        self.remember(hash_ids(accepted[id_column]).to_numpy(), clocks.to_numpy())


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


def hash_ids(ids: pl.Series) -> pl.Series:
    """64-bit hashes of event ids; comparable within one process only."""
    return ids.hash(seed=7)


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
        """Drop duplicates from one partition's events and stamp each with its watermark.

        Returns the remaining rows with a column ``watermark`` (``Datetime("us", "UTC")``: the newest event
        time among the accepted events *before* this one, minus ``disorder`` µs; null before the first) and
        the number of duplicates dropped. Rows must be in position order.
        """
        if self.recent is None or id_column is None or events.is_empty():
            return self._stamp(events, disorder)[0], 0
        hashes = hash_ids(events[id_column]).to_numpy()
        times = events["event_time"].to_physical().to_numpy()
        order = np.argsort(hashes, kind="stable")
        duplicates = self._duplicates(hashes, times, order)
        if len(duplicates):
            keep = np.ones(len(hashes), dtype=np.bool_)
            keep[duplicates] = False
            events, hashes = events.filter(pl.Series(keep)), hashes[keep]
            order = (np.cumsum(keep) - 1)[order[keep[order]]]
        stamped, clocks = self._stamp(events, disorder)
        self.recent.remember(hashes, clocks, order)
        return stamped, len(duplicates)

    def _duplicates(self, hashes: Hashes, times: Times, order: Order) -> list[int]:
        """The rows whose id was accepted within the horizon before them, ascending. ``order`` sorts ``hashes``.

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

    def _stamp(self, events: pl.DataFrame, disorder: int) -> tuple[pl.DataFrame, Times]:
        """The events with their watermark, and the clock as of each; moves the clock."""
        before = NEVER if self.clock_us is None else self.clock_us
        clocks = np.maximum.accumulate(events["event_time"].to_physical().to_numpy())
        np.maximum(clocks, before, out=clocks)
        watermarks = np.empty_like(clocks)
        if len(clocks):
            self.clock_us = int(clocks[-1])
            watermarks[0] = before
            watermarks[1:] = clocks[:-1]
        watermark = pl.Series("watermark", watermarks - disorder).cast(_WATERMARK)
        if before == NEVER and len(watermark):
            watermark = watermark.scatter(0, None)
        return events.with_columns(watermark), clocks
