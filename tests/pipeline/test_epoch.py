"""An epoch's tables and late events, against loops over single events, however few or many wait to be folded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamproc import epoch as epochs
from streamproc.epoch import Epoch
from streamproc.model import Claim, Counts, Partition, RecordBatch, Transformed
from streamproc.progress import PartitionProgress, RecentIds
from streamproc.sinks.lake import Lake
from streamproc.sinks.local import LocalStore
from streamproc.tables.fold import TableFold
from streamproc.topology import SECOND, Contract, EventTime, Field, Measure
from streamproc.transform import Resources, Transform
from tests.runtimes.lambda_events import page
from tests.sinks.topologies import topology
from tests.tables import oracle
from tests.tables.streams import START, tumbling

PARTITION = Partition("clicks", "0")
DISORDER = 20 * SECOND
TABLE = tumbling(
    [Measure("events", "count", pl.Int64()), Measure("visitors", "distinct", pl.Int64(), "visitor")],
    lateness=30 * SECOND,
)
COLUMNS: dict[str, pl.DataType] = {
    "visitor": pl.String(),
    "site": pl.String(),
    "event_time": pl.Datetime("us", "UTC"),
    "source_partition": pl.String(),
    "position": pl.Int64(),
}

#: Batches of (seconds after the start, visitor, site), far enough back now and then to be late.
BATCHES = st.lists(
    st.lists(
        st.tuples(st.integers(0, 400), st.sampled_from("abc"), st.sampled_from(["x", "y", None])), max_size=6
    ),
    min_size=1,
    max_size=10,
)


def transformed(events: list[dict]) -> tuple[RecordBatch, Transformed]:
    first = events[0]["position"] if events else 0
    batch = RecordBatch(
        PARTITION,
        first - 1,
        first + len(events) - 1,
        [b"{}"] * len(events),
        range(first, first + len(events)),
        0,
        2 * len(events),
    )
    frame = pl.DataFrame(
        {
            "visitor": [e["visitor"] for e in events],
            "site": [e["site"] for e in events],
            "event_time": [e["at"] for e in events],
            "source_partition": ["0"] * len(events),
            "position": [e["position"] for e in events],
        },
        schema=COLUMNS,
    )
    return batch, Transformed(frame, pl.DataFrame(), {"0": Counts(len(events), len(events))})


@pytest.mark.parametrize("fold_at", [1, 5, 1_000])
@given(batches=BATCHES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_however_many_events_wait_to_be_folded_an_epoch_says_what_a_loop_over_them_says(
    monkeypatch, fold_at, batches
):
    monkeypatch.setattr(epochs, "FOLD_AT", fold_at)
    contract = Contract(
        fields=(Field("visitor", ("visitor",)),), event_time=EventTime("event_time", disorder=DISORDER)
    )
    stream = replace(topology(COLUMNS), contract=contract, tables=(TABLE,))
    progress = PartitionProgress(Claim(PARTITION, 1, "token", None, None), None, None)
    epoch = Epoch(stream, {TABLE.name: TableFold(TABLE)})

    seen: list[dict] = []
    clock = None
    for batch in batches:
        events = []
        for seconds, visitor, site in batch:
            at = START + seconds * SECOND
            watermark = None if clock is None else clock - DISORDER
            position = len(seen) + len(events)
            events.append(
                {"at": at, "visitor": visitor, "site": site, "position": position, "watermark": watermark}
            )
            clock = at if clock is None else max(clock, at)
        seen += events
        if events:
            records, out = transformed(events)
            epoch.fold([records], out, {PARTITION: progress})
    deltas = epoch.seal()

    rows, late = oracle.windowed(TABLE, seen)
    sealed = deltas[TABLE.name].rows.iter_rows(named=True) if deltas else ()
    found = {
        (oracle.moment(row["window_start"]), row["site"]): (row["events"], row["visitors"]) for row in sealed
    }
    assert found == {key: (row["events"], row["visitors"]) for key, row in rows.items()}
    assert epoch.late == {TABLE.name: late}
    assert epoch.counts == Counts(len(seen), len(seen))


def test_a_partition_with_few_events_does_not_keep_those_of_the_others(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(epochs, "FILE_ROWS", 60)
    monkeypatch.setattr(epochs, "_MOST_HELD_ROWS", 120)
    contract = Contract(fields=(Field("visitor", ("visitor",)),), event_time=EventTime("event_time"))
    stream = replace(topology(COLUMNS), contract=contract)
    busy, calm = PARTITION, Partition("clicks", "1")
    progress = {
        partition: PartitionProgress(Claim(partition, 1, "token", None, None), None, None)
        for partition in (busy, calm)
    }
    epoch = Epoch(stream, {}, Lake(LocalStore(tmp_path.as_uri()), stream))
    long = "x" * 1_000
    for fold in range(40):
        mine = [
            {"visitor": f"{fold} {n} {long}", "site": "x", "at": START + fold, "position": 24 * fold + n}
            for n in range(24)
        ]
        batch, out = transformed(mine)
        theirs, few = transformed([{**mine[0], "position": fold}])
        events = pl.concat([out.events, few.events.with_columns(source_partition=pl.lit("1"))], rechunk=True)
        both = Transformed(events, pl.DataFrame(), {"0": Counts(24, 24), "1": Counts(1, 1)})
        epoch.fold([batch, replace(theirs, partition=calm)], both, progress)

    held = {partition: share.held_rows for partition, share in epoch.partitions.items()}
    assert held[calm] == 40 and held[busy] < 60
    kept = pl.concat(epoch.partitions[calm].events)["visitor"]
    assert kept.to_list() == [f"{fold} 0 {long}" for fold in range(40)]
    views = [
        chunk.to_arrow(compat_level=pl.CompatLevel.newest()).buffers()[2:] for chunk in kept.get_chunks()
    ]
    assert sum(buffer.size for buffers in views for buffer in buffers) < 200 * len(long), "of 1,000 events"
    epoch.encode()
    rows = {p: sum(file.rows for file in share.files) for p, share in epoch.partitions.items()}
    assert rows == {busy: 960, calm: 40}


def test_records_without_an_id_are_all_counted_and_those_with_one_once() -> None:
    stream = page()
    fields = tuple(replace(field, required=field.name != "id") for field in stream.contract.fields)
    stream = replace(stream, contract=replace(stream.contract, fields=fields))
    at = 1_700_000_000_000
    values = [b'{"id": "a", "kind": "view", "at": %d}' % at] * 2
    values += [b'{"kind": "view", "at": %d}' % at] * 3 + [b'{"id": null, "kind": "view", "at": %d}' % at]
    folds = {table.name: TableFold(table) for table in stream.tables}
    progress = PartitionProgress(
        Claim(PARTITION, 1, "token", None, None), None, None, RecentIds(600 * SECOND)
    )
    transform = Transform(stream, Resources({}, Path()))
    for first in (0, 6):  # the second time all are sent again, and behind the others
        batch = RecordBatch(
            PARTITION, first - 1, first + 5, values, range(first, first + 6), at, sum(map(len, values))
        )
        epoch = Epoch(stream, folds)
        epoch.fold([batch], transform([batch]), {PARTITION: progress})
        accepted = 5 if first == 0 else 4
        assert epoch.counts == Counts(6, accepted, duplicate=6 - accepted)
        assert epoch.seal()["kinds"].rows["events"].to_list() == [accepted]
