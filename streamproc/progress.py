"""What a worker remembers of a partition between record batches: its clock and its recent event ids.

Both are functions of the accepted events in position order, so they can be rebuilt from the lake, and a
replay sees the same duplicates and the same late events however the records were cut into batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from streamproc.model import Claim

#: Stands for "no event accepted yet": older than any event time.
_BEFORE_TIME = -(2**62)


class RecentIds:
    """Event ids accepted within ``horizon`` (µs) of the partition's clock.

    Ids are kept as 64-bit hashes: with *n* ids inside the horizon a fresh id is mistaken for a known one
    with probability n / 2^64 (for 10 million: 5e-13), and is then counted as a duplicate. Two generations
    are kept, so memory holds at most the ids of two horizons.
    """

    def __init__(self, horizon: int) -> None:
        self.horizon = horizon
        self._young: dict[int, int] = {}
        self._old: dict[int, int] = {}
        self._young_since: int | None = None

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def knows_any(self, hashes: list[int]) -> bool:
        """Whether any of ``hashes`` is remembered, horizon aside."""
        return not (self._young.keys().isdisjoint(hashes) and self._old.keys().isdisjoint(hashes))

    def last_seen(self, id_hash: int) -> int | None:
        """The clock (µs) when this id was last accepted, if it is remembered."""
        seen = self._young.get(id_hash)
        return self._old.get(id_hash) if seen is None else seen

    def remember(self, hashes: list[int], clocks: list[int]) -> None:
        """Note accepted ids with the clock (µs) just before each."""
        if not hashes:
            return
        if self._young_since is None:
            self._young_since = clocks[0]
        elif clocks[0] - self._young_since > self.horizon:
            self._old, self._young = self._young, {}
            self._young_since = clocks[0]
        self._young.update(zip(hashes, clocks, strict=True))

    def rebuild(self, accepted: pl.DataFrame, id_column: str) -> None:
        """Remember the ids of rows read back from the lake (``id_column``, ``event_time``), in position order.

        The clock of the first rows is only known from the rows themselves. That does not matter: where it
        is too low, the true one was already outside the horizon.
        """
        clocks = accepted["event_time"].to_physical().cum_max().shift(1, fill_value=_BEFORE_TIME)
        for part in accepted.select(hash_ids(accepted[id_column]), clocks.alias("clock")).iter_slices(50_000):
            self.remember(part[id_column].to_list(), part["clock"].to_list())


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
        if self.recent is None or id_column is None:
            return self._stamp(events, disorder)[0], 0
        hashes = hash_ids(events[id_column])
        ids = hashes.to_list()
        kept = events
        if self.recent.knows_any(ids) or hashes.n_unique() < len(ids):
            keep = self._not_duplicate(events["event_time"].to_physical().to_list(), ids)
            kept = events.filter(keep)
            ids = hashes.filter(keep).to_list()
        stamped, clocks = self._stamp(kept, disorder)
        self.recent.remember(ids, clocks.to_list())
        return stamped, events.height - kept.height

    def _stamp(self, events: pl.DataFrame, disorder: int) -> tuple[pl.DataFrame, pl.Series]:
        """The events with their watermark, and the clock before each; moves the clock."""
        before = _BEFORE_TIME if self.clock_us is None else self.clock_us
        newest = events["event_time"].to_physical().cum_max().clip(lower_bound=before)
        clocks = newest.shift(1, fill_value=before)
        if len(newest):
            self.clock_us = int(newest[-1])
        watermark = (clocks - disorder).cast(pl.Datetime("us", "UTC")).alias("watermark")
        if before == _BEFORE_TIME and len(watermark):
            watermark = watermark.scatter(0, None)
        return events.with_columns(watermark), clocks

    def _not_duplicate(self, times: list[int], ids: list[int]) -> pl.Series:
        """Which rows are first of their id within the horizon: the definition, row by row.

        Only batches that hold a repeated or remembered id come here. They are common enough (producers
        retry) and a dictionary look-up a row is cheap enough that nothing cleverer has paid.
        """
        assert self.recent is not None
        clock = _BEFORE_TIME if self.clock_us is None else self.clock_us
        horizon, known = self.recent.horizon, self.recent
        here: dict[int, int] = {}
        keep = []
        for id_hash, time in zip(ids, times, strict=True):
            seen = here.get(id_hash)
            if seen is None:
                seen = known.last_seen(id_hash)
            fresh = seen is None or clock - seen > horizon
            if fresh:
                here[id_hash] = clock
                clock = max(clock, time)
            keep.append(fresh)
        return pl.Series(keep, dtype=pl.Boolean)
