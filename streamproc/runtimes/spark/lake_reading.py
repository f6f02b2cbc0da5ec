"""The first tasks of a rebuild: objects of the lake in, deltas of tables out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from streamproc.runtimes.spark import exchange
from streamproc.runtimes.spark.exchange import Piece
from streamproc.runtimes.spark.setup import Setup
from streamproc.sinks.lake import Lake

if TYPE_CHECKING:
    from streamproc.tables.fold import Partial

#: Partials of a table are merged once this many have gathered.
_COMPACT_AT = 3


class LakeWork(NamedTuple):
    """Objects by key, to be folded into ``table``: their events of ``[since_us, until_us)``."""

    keys: list[str]
    table: str
    since_us: int
    until_us: int

    def as_json(self) -> str:
        """For the way to the executor."""
        return json.dumps(self._asdict())


def read_lake(setup: Setup, work: LakeWork) -> Iterator[Piece]:
    """The delta of the work's events, cut into buckets. No event is late: what is in the lake counts."""
    fold = setup.folds()[work.table]
    partials: list[Partial] = []
    at = pl.col("event_time").to_physical()
    for events in _frames(setup, work.keys):
        mine = events.filter((at >= work.since_us) & (at < work.until_us))
        if mine.is_empty():
            continue
        partial, _ = fold.partial(
            mine.with_columns(pl.lit(None, pl.Datetime("us", "UTC")).alias("watermark"))
        )
        partials.append(partial)
        if len(partials) >= _COMPACT_AT:
            partials = [fold.merge(partials)]
    if partials:
        yield from exchange.split(work.table, fold, fold.seal(fold.merge(partials)), setup.buckets)


def _frames(setup: Setup, keys: list[str]) -> Iterator[pl.DataFrame]:
    page = setup.topology()
    store = setup.open_store()
    lake = Lake(store, page)
    with asyncio.Runner() as runner:
        runner.run(store.open())
        try:
            for key in keys:
                yield runner.run(lake.read([key], list(page.columns)))
        finally:
            runner.run(store.close())
