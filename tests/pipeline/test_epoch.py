"""An epoch's tables and late events, against loops over single events, however few or many wait to be folded."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamproc import epoch as epochs
from streamproc.epoch import Epoch
from streamproc.model import Claim, Counts, Partition, RecordBatch, Transformed
from streamproc.progress import PartitionProgress
from streamproc.tables.fold import TableFold
from streamproc.topology import SECOND, Contract, EventTime, Field, Measure
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
