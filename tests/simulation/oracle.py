"""What must hold when a run is over, computed from the topic's log by plain loops.

It shares no code with the service, nor with the stand-ins of the simulation: outcomes, watermarks, duplicates
and sums are worked out here once more, record by record.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from tests.simulation import statements_warehouse
from tests.simulation.world import World

#: The page's, in microseconds.
MINUTE = 60_000_000
HORIZON, DISORDER, LATENESS = 10 * MINUTE, MINUTE // 2, 2 * MINUTE

At = tuple[str, int]


@dataclass
class Expected:
    """``lake`` and ``rejects``: by partition and offset; ``counts``: by partition and outcome."""

    lake: dict[At, tuple[str, int, int]] = field(default_factory=dict)
    rejects: dict[At, bytes | None] = field(default_factory=dict)
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    table: dict[tuple[int, str], list[int]] = field(default_factory=dict)
    late: int = 0


def judge(world: World) -> list[str]:
    """Everything that is wrong."""
    wrong = [*world.wrong, *world.audit.wrong, *world.loop.errors]
    expected = Expected()
    for tp, log in world.broker.logs.items():
        records = {at: value for batch in log.batches for at, value in batch.records.items()}
        read = _chain(world, str(tp.partition), log.end, wrong)
        _fold(str(tp.partition), {at: records[at] for at in sorted(records) if at in read}, expected)
    _compare(world, expected, wrong)
    _store(world, wrong)
    if world.database.rows.deadlocks:
        wrong.append(f"{world.database.rows.deadlocks} deadlocks")
    left = [name for name, lock in world.database.rows.locks.items() if lock.holders]
    if left:
        wrong.append(f"locks are left: {left}")
    return wrong


def _chain(world: World, partition: str, end: int, wrong: list[str]) -> set[int]:
    """The offsets that were read: every move begins where the one before ended, and the last ends the log."""
    read: set[int] = set()
    stands: int | None = None
    for move in world.audit.moves[partition]:
        if move.after != stands:
            wrong.append(f"partition {partition} stands at {stands} and is moved from {move.after}")
        stands = move.through
        offsets = range(-1 if move.after is None else move.after, move.through or 0)
        if move.by_operator:
            continue
        if again := read & {offset + 1 for offset in offsets}:
            wrong.append(f"partition {partition}: {sorted(again)} are read twice")
        read |= {offset + 1 for offset in offsets}
    if end and stands != end - 1:
        wrong.append(f"partition {partition} stands at {stands}, its log ends with {end - 1}")
    return read


def _fold(partition: str, log: dict[int, bytes | None], expected: Expected) -> None:
    counts = expected.counts[partition] = Counter()
    accepted_at: dict[str, float] = {}
    clock = float("-inf")
    for offset, value in log.items():
        counts["records"] += 1
        event = _usable(value)
        if event is None:
            counts["rejected"] += 1
            expected.rejects[partition, offset] = value
            continue
        if event["kind"] == "heartbeat":
            counts["filtered"] += 1
            continue
        before = accepted_at.get(event["id"])
        if before is not None and clock - before <= HORIZON:
            counts["duplicate"] += 1
            continue
        counts["accepted"] += 1
        time = event["event_time"] * 1000
        accepted_at[event["id"]] = max(clock, time)
        expected.lake[partition, offset] = (event["id"], time, event["amount"])
        start = time - time % MINUTE
        if clock - DISORDER >= start + MINUTE + LATENESS:
            expected.late += 1
        else:
            sums = expected.table.setdefault((start, event["kind"]), [0, 0])
            sums[0] += 1
            sums[1] += event["amount"]
        clock = max(clock, time)


def _usable(value: bytes | None) -> dict[str, Any] | None:
    try:
        event = json.loads(value or b"")
    except ValueError:
        return None
    return event if isinstance(event, dict) and "id" in event else None


def _compare(world: World, expected: Expected, wrong: list[str]) -> None:
    tables = world.database.rows.tables
    partitions = {key[2]: row for key, row in tables.get("partitions", {}).items()}
    epochs: dict[str, Counter[str]] = {}
    for row in tables.get("epoch_ranges", {}).values():
        counted = epochs.setdefault(row["partition"], Counter())
        counted.update({name: row[name] for name in _NAMES})
    for partition, counts in expected.counts.items():
        wanted = {name: counts[name] for name in _NAMES}
        for what, got in (("partitions", partitions.get(partition)), ("epochs", epochs.get(partition))):
            found = {name: 0 if got is None else got[name] for name in _NAMES}
            if found != wanted:
                wrong.append(f"{what}: partition {partition} counts {found}, expected {wanted}")
    table = {key: [row["events"], row["amount"]] for key, row in tables.get("per_minute", {}).items()}
    if table != expected.table:
        keys = sorted(
            k for k in table.keys() | expected.table.keys() if table.get(k) != expected.table.get(k)
        )
        shown = [(key, table.get(key), expected.table.get(key)) for key in keys[:3]]
        wrong.append(f"table: {len(keys)} rows differ: {shown}")
    late = sum(sum(row["late"].values()) for row in tables.get("epochs", {}).values())
    if late != expected.late:
        wrong.append(f"late: {late} counted, expected {expected.late}")
    lake, rejects = _lake(world, wrong)
    _same("lake", Counter(lake), Counter((*at, *event) for at, event in expected.lake.items()), wrong)
    _same("rejects", Counter(rejects), Counter((*a, v) for a, v in expected.rejects.items()), wrong)
    loaded = statements_warehouse.rows(world.database, "clicks")
    _same("warehouse", Counter(loaded), Counter(expected.lake.keys()), wrong)


_NAMES = ("records", "accepted", "filtered", "rejected", "duplicate")


def _same(what: str, got: Counter[Any], wanted: Counter[Any], wrong: list[str]) -> None:
    if lost := wanted - got:
        wrong.append(f"{what}: {lost.total()} lost: {sorted(lost, key=repr)[:3]}")
    if extra := got - wanted:
        wrong.append(f"{what}: {extra.total()} twice or never sent: {sorted(extra, key=repr)[:3]}")


def _lake(world: World, wrong: list[str]) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Rows of the committed objects, which are there as they were noted."""
    events: list[tuple[Any, ...]] = []
    rejects: list[tuple[Any, ...]] = []
    for (key,), row in world.database.rows.tables.get("objects", {}).items():
        if row["state"] != "committed":
            continue
        body = world.bucket.objects.get(key)
        if body is None:
            wrong.append(f"{key} is committed and not there")
            continue
        if (len(body), hashlib.sha256(body).hexdigest()) != (row["size"], row["checksum"]):
            wrong.append(f"{key} is not what was committed")
        frame = pl.read_parquet(io.BytesIO(body))
        if frame.height != row["rows"]:
            wrong.append(f"{key} has {frame.height} rows, {row['rows']} are noted")
        if row["kind"] == "events":
            times = frame["event_time"].to_physical().to_list()
            columns = [frame[name].to_list() for name in ("source_partition", "position", "id")]
            events += zip(*columns, times, frame["amount"].to_list(), strict=True)
        else:
            columns = [frame[name].to_list() for name in ("source_partition", "position", "original")]
            rejects += zip(*columns, strict=True)
    return events, rejects


def _store(world: World, wrong: list[str]) -> None:
    """After the sweep the store holds the committed objects and nothing else."""
    states = {key: row["state"] for (key,), row in world.database.rows.tables.get("objects", {}).items()}
    committed = {key for key, state in states.items() if state == "committed"}
    unlisted = sorted(world.bucket.objects.keys() - committed)
    if unlisted:
        wrong.append(f"store: {len(unlisted)} unlisted: {[(key, states.get(key)) for key in unlisted[:3]]}")
    left = sorted((key, state) for key, state in states.items() if state not in ("committed", "swept"))
    if left:
        wrong.append(f"objects: {len(left)} are not swept: {left[:3]}")
