"""What the ledger's statements do, written down once more over plain rows.

The texts are those of the ledger itself: a statement that the ledger gains is unknown here until it is
modelled, and ``test_conformance.py`` runs the ledger's state machine on this and on PostgreSQL.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from psycopg import errors

from streamproc.ledger import claims, commit
from tests.simulation import clock
from tests.simulation.postgres import Answer, Key, Row, Server, Statement, Transaction

STATEMENTS: dict[str, Statement] = {}


def normal(text: str) -> str:
    return " ".join(text.split())


def does(*texts: str) -> Callable[[Statement], Statement]:
    """The function does what these SQL texts do."""

    def register(function: Statement) -> Statement:
        STATEMENTS.update(dict.fromkeys(map(normal, texts), function))
        return function

    return register


def _named(values: dict[str, Any]) -> list[Key]:
    """The keys of the partitions that ``sources`` and ``partitions`` name, in the order of the primary key."""
    return sorted(
        (values["stream"], source, number)
        for source, number in zip(values["sources"], values["partitions"], strict=True)
    )


def _greatest(one: int | None, other: int | None) -> int | None:
    return max((value for value in (one, other) if value is not None), default=None)


async def update(
    transaction: Transaction,
    table: str,
    keys: list[Key],
    where: Callable[[Row], bool],
    change: Callable[[Row], Row],
) -> int:
    """UPDATE: rows that fulfil ``where`` before and after their lock was waited for."""
    count = 0
    for key in keys:
        row = transaction.get(table, key)
        if row is None or not where(row):
            continue
        await transaction.lock(table, key)
        row = transaction.get(table, key)
        if row is not None and where(row):
            transaction.put(table, key, row | change(row))
            count += 1
    return count


def objects_where(transaction: Transaction, where: Callable[[Row], bool]) -> list[Key]:
    return [key for key, row in transaction.rows("objects") if where(row)]


def _of_partitions(values: dict[str, Any]) -> Callable[[Row], bool]:
    named = set(_named(values))
    return lambda row: (row["stream"], row["source"], row["partition"]) in named


# -- claims ------------------------------------------------------------------------------------------


@does(claims._CLAIM)
async def _claim(transaction: Transaction, values: Any, server: Server) -> Answer:
    answer = Answer()
    # Without its ORDER BY it would go by the arrays; the text says in which order rows are locked.
    ordered = _named(values)
    for key in ordered:
        await transaction.lock("partitions", key)
        now = clock.now(server.loop)
        before = transaction.get("partitions", key) or {
            "position": None, "fence": 0, "clock_us": None, "records": 0, "accepted": 0, "filtered": 0,
            "rejected": 0, "duplicate": 0, "updated_at": now,
        }  # fmt: skip
        row = before | {
            "fence": before["fence"] + 1,
            "token": uuid.UUID(int=server.loop.chance.getrandbits(128), version=4),
            "owner": values["worker"],
            "claimed_at": now,
        }
        transaction.put("partitions", key, row)
        answer.rows.append((key[1], key[2], row["fence"], row["token"], row["position"], row["clock_us"]))
    return answer


@does(claims._ABANDON)
async def _abandon(transaction: Transaction, values: Any, server: Server) -> Answer:
    mine = _of_partitions(values)
    where = lambda row: row["state"] == "intended" and mine(row)  # noqa: E731 - used twice, and short
    now = clock.now(server.loop)
    count = await update(
        transaction,
        "objects",
        objects_where(transaction, where),
        where,
        lambda row: {"state": "abandoned", "abandoned_at": now},
    )
    return Answer(count=count)


async def _lock(transaction: Transaction, values: Any, *, shared: bool) -> Answer:
    answer = Answer()
    for key in _named(values):
        if transaction.get("partitions", key) is None:
            continue
        await transaction.lock("partitions", key, shared=shared)
        row = transaction.get("partitions", key)
        assert row is not None
        answer.rows.append((key[1], key[2], row["fence"], row["token"], row["position"]))
    return answer


@does(claims._LOCK + "FOR UPDATE")
async def _lock_for_update(transaction: Transaction, values: Any, server: Server) -> Answer:
    return await _lock(transaction, values, shared=False)


@does(claims._LOCK + "FOR SHARE")
async def _lock_for_share(transaction: Transaction, values: Any, server: Server) -> Answer:
    return await _lock(transaction, values, shared=True)


@does(claims._RELEASE)
async def _release(transaction: Transaction, values: Any, server: Server) -> Answer:
    def change(row: Row) -> Row:
        return {"owner": None, "token": uuid.UUID(int=server.loop.chance.getrandbits(128), version=4)}

    return Answer(count=await update(transaction, "partitions", _named(values), lambda row: True, change))


# -- T1 and T2 ---------------------------------------------------------------------------------------


@does(commit._INTEND)
async def _intend(transaction: Transaction, values: Any, server: Server) -> Answer:
    answer = Answer()
    names = ("key", "kind", "source", "partition", "after", "through", "rows", "min_time_us", "max_time_us",
             "clock_us", "fence")  # fmt: skip
    columns = ("keys", "kinds", "sources", "partitions", "afters", "throughs", "rows", "min_times",
               "max_times", "clocks", "fences")  # fmt: skip
    for row in zip(*(values[column] for column in columns), strict=True):
        planned = dict(zip(names, row, strict=True))
        key = (planned["key"],)
        await transaction.lock("objects", key)
        if transaction.get("objects", key) is None:
            planned |= {
                "stream": values["stream"], "epoch": values["epoch"], "state": "intended", "size": None,
                "checksum": None, "intended_at": clock.now(server.loop), "committed_at": None,
                "abandoned_at": None, "deleted_at": None, "swept_at": None, "superseded_at": None,
            }  # fmt: skip
            transaction.put("objects", key, planned)
            answer.count += 1
    return answer


@does(commit._COMMIT_OBJECTS)
async def _commit_objects(transaction: Transaction, values: Any, server: Server) -> Answer:
    answer = Answer()
    now = clock.now(server.loop)
    columns = ("keys", "rows", "fences", "sizes", "checksums")
    for key, rows, fence, size, checksum in zip(*(values[column] for column in columns), strict=True):

        def where(row: Row, rows: int = rows, fence: int = fence) -> bool:
            return bool(
                row["rows"] == rows
                and row["fence"] == fence
                and row["stream"] == values["stream"]
                and row["epoch"] == values["epoch"]
                and row["state"] == "intended"
            )

        change = {"state": "committed", "size": size, "checksum": checksum, "committed_at": now}
        answer.count += await update(
            transaction, "objects", [(key,)], where, lambda row, change=change: change
        )
    return answer


@does(commit._INTENDED)
async def _intended(transaction: Transaction, values: Any, server: Server) -> Answer:
    mine = _of_partitions(values)
    found = [
        row["key"]
        for _, row in transaction.rows("objects")
        if row["epoch"] == values["epoch"] and row["state"] == "intended" and mine(row)
    ]
    return Answer([(len(found), len(set(found) & set(values["keys"])))])


@does(commit._EPOCH)
async def _epoch(transaction: Transaction, values: Any, server: Server) -> Answer:
    key = (values["id"],)
    await transaction.lock("epochs", key)
    if transaction.get("epochs", key) is not None:
        raise errors.UniqueViolation("duplicate key value violates unique constraint")
    row = {name: values[name] for name in ("id", "stream", "worker", "started_at")}
    row |= {
        "committed_at": clock.now(server.loop),
        "late": values["late"].obj,
        "seconds": values["seconds"].obj,
    }
    transaction.put("epochs", key, row)
    return Answer(count=1)


COUNTS = ("records", "accepted", "filtered", "rejected", "duplicate")


def _check_sum(row: Row) -> None:
    if row["records"] != sum(row[name] for name in COUNTS[1:]):
        raise errors.CheckViolation("records are not the sum of what became of them")


@does(commit._RANGES)
async def _ranges(transaction: Transaction, values: Any, server: Server) -> Answer:
    answer = Answer()
    names = ("source", "partition", "after", "through", *COUNTS)
    columns = ("sources", "partitions", "afters", "throughs", *COUNTS)
    for values_of_row in zip(*(values[column] for column in columns), strict=True):
        row = dict(zip(names, values_of_row, strict=True)) | {"epoch": values["epoch"]}
        _check_sum(row)
        if row["after"] is not None and row["through"] <= row["after"]:
            raise errors.CheckViolation("a range that does not advance")
        key = (values["epoch"], row["source"], row["partition"])
        await transaction.lock("epoch_ranges", key)
        if transaction.get("epoch_ranges", key) is not None:
            raise errors.UniqueViolation("duplicate key value violates unique constraint")
        transaction.put("epoch_ranges", key, row)
        answer.count += 1
    return answer


@does(commit._ADVANCE)
async def _advance(transaction: Transaction, values: Any, server: Server) -> Answer:
    answer = Answer()
    now = clock.now(server.loop)
    names = ("sources", "partitions", "fences", "tokens", "afters", "throughs", "clocks", *COUNTS)
    for row in zip(*(values[name] for name in names), strict=True):
        done = dict(zip(names, row, strict=True))

        def where(row: Row, done: Row = done) -> bool:
            return bool(
                row["fence"] == done["fences"]
                and str(row["token"]) == done["tokens"]
                and row["position"] == done["afters"]
            )

        def change(row: Row, done: Row = done) -> Row:
            new = {name: row[name] + done[name] for name in COUNTS}
            new |= {"position": done["throughs"], "clock_us": _greatest(row["clock_us"], done["clocks"])}
            _check_sum(row | new)
            return new | {"updated_at": now}

        key = (values["stream"], done["sources"], done["partitions"])
        answer.count += await update(transaction, "partitions", [key], where, change)
    return answer


@does("SELECT FROM streamproc.epochs WHERE id = %s")
async def _is_committed(transaction: Transaction, values: Any, server: Server) -> Answer:
    return Answer([()] if transaction.get("epochs", (values[0],)) is not None else [])
