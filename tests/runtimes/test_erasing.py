"""A visitor is taken out of the lake: a real ledger and objects, also of pages from before."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from streamproc.ledger import Ledger
from streamproc.ledger.logs import Logs
from streamproc.log_objects import LogEnd, LogEntry, Period
from streamproc.runtimes.erasing import Eraser, Visitor
from streamproc.sinks.lake import Lake
from streamproc.sinks.local import LocalStore
from streamproc.topology import Sinks
from tests.ledger.epochs import P0
from tests.runtimes.test_replay_carry import COLUMNS, PAGE, commit
from tests.tables.streams import event, frame


@pytest.mark.parametrize(
    ("dtype", "ids", "asked", "left"),
    [
        (pl.Int64(), ["7", "8"], "7", 8),
        (pl.Float64(), ["7", "8"], "7", 8.0),
        (pl.Float64(), ["7.5", "7"], "7.5", 7.0),
        (pl.Boolean(), ["true", "false"], "true", False),
        (pl.String(), ["7.0", "7"], "7.0", "7"),
        (pl.String(), ["7.0", "7"], "7", "7.0"),
    ],
)
async def test_a_visitor_goes_from_objects_in_which_the_id_had_another_type(
    ledger: Ledger, tmp_path: Path, dtype: pl.DataType, ids: list[str], asked: str, left: object
) -> None:
    store = LocalStore(tmp_path.as_uri(), durable=False)
    await store.open()
    visits = frame([event(0, position=place, visitor=each) for place, each in enumerate(ids)])
    typed = pl.Series("visitor", [each == "true" for each in ids] if dtype == pl.Boolean() else ids)
    visits = visits.with_columns(typed.cast(dtype), source_partition=pl.lit("0"))
    await commit(ledger, Lake(store, replace(PAGE, columns=COLUMNS | {"visitor": dtype})), visits)
    page = replace(PAGE, sinks=Sinks(warehouse=False), erasure=("visitor",))
    report = await Eraser(page, ledger, store, None).erase([Visitor(asked, [asked])])
    assert report.lake_rows == 1
    [kept] = [each async for each in ledger.manifest()]
    visitors = pl.read_parquet(io.BytesIO(await store.get(kept.plan.key)))["visitor"]
    assert (visitors.dtype, visitors.to_list()) == (dtype, [left])
    await store.close()


async def test_a_visitor_goes_from_logs_whose_rows_were_folded_into_one(
    ledger: Ledger, tmp_path: Path
) -> None:
    store = LocalStore(tmp_path.as_uri(), durable=False)
    await store.open()
    logs = Logs(ledger.database, "clicks", P0.source, "w1", 30)
    await logs.found([LogEntry(P0.id, "place", "version", 1, 1)])
    assert len(await logs.take(1, Period())) == 1
    visits = frame([event(0, position=place, visitor=each) for place, each in enumerate(["ann", "bob"])])
    await commit(ledger, Lake(store, PAGE), visits.with_columns(source_partition=pl.lit("0")))
    await logs.finish({P0.id: LogEnd(1, 1)})
    assert await logs.compact(0) == 1
    assert [status.partition.id for status in await ledger.status()] == ["finished"]
    page = replace(PAGE, sinks=Sinks(warehouse=False), erasure=("visitor",))
    report = await Eraser(page, ledger, store, None).erase([Visitor("ann", ["ann"])])
    assert (report.lake_rows, report.objects) == (1, 1)
    [kept] = [each async for each in ledger.manifest()]
    visitors = pl.read_parquet(io.BytesIO(await store.get(kept.plan.key)))["visitor"]
    assert visitors.to_list() == ["bob"]
    await store.close()
