"""What the statements of the sweep, of operators and of readers do: see :mod:`tests.simulation.statements`."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from streamproc.ledger import history, objects, positions, sweep
from tests.simulation import clock
from tests.simulation.postgres import Answer, Row, Server, Statement, Transaction
from tests.simulation.statements import COUNTS, STATEMENTS, does, normal, objects_where, update

__all__ = ["STATEMENTS"]

# -- sweep -------------------------------------------------------------------------------------------


@does("SELECT clock_timestamp()")
async def _now(transaction: Transaction, values: Any, server: Server) -> Answer:
    return Answer([(clock.now(server.loop),)])


@does(sweep._ABANDON_ORPHANS)
async def _abandon_orphans(transaction: Transaction, values: Any, server: Server) -> Answer:
    def where(row: Row) -> bool:
        if row["stream"] != values["stream"] or row["state"] != "intended":
            return False
        owner = transaction.get("partitions", (row["stream"], row["source"], row["partition"]))
        return row["intended_at"] <= values["orphans"] and (
            owner is None
            or owner["fence"] != row["fence"]
            or owner["owner"] is None
            or (owner["position"] is not None and owner["position"] >= row["through"])
        )

    change = {"state": "abandoned", "abandoned_at": values["now"]}
    return Answer(
        count=await update(
            transaction, "objects", objects_where(transaction, where), where, lambda row: change
        )
    )


@does(sweep._DUE)
async def _due(transaction: Transaction, values: Any, server: Server) -> Answer:
    due = [
        (row["abandoned_at"], row["key"], row["deleted_at"] is not None)
        for _, row in transaction.rows("objects")
        if row["stream"] == values["stream"]
        and row["state"] == "abandoned"
        and row["abandoned_at"] <= values["first" if row["deleted_at"] is None else "again"]
    ]
    return Answer([(key, before) for _, key, before in sorted(due)[: values["page"]]])


@does(sweep._SUPERSEDED)
async def _superseded(transaction: Transaction, values: Any, server: Server) -> Answer:
    return Answer()  # nothing is promoted here


def _deleted(again: bool, change: Callable[[Any], Row]) -> Statement:
    async def statement(transaction: Transaction, values: Any, server: Server) -> Answer:
        def where(row: Row) -> bool:
            return row["state"] == "abandoned" and (row["deleted_at"] is not None) == again

        keys = [(key,) for key in sorted(values["keys"])]
        return Answer(
            count=await update(transaction, "objects", keys, where, lambda row: change(values["now"]))
        )

    return statement


STATEMENTS[normal(sweep._DELETED_FIRST)] = _deleted(False, lambda now: {"deleted_at": now})
STATEMENTS[normal(sweep._DELETED_AGAIN)] = _deleted(True, lambda now: {"state": "swept", "swept_at": now})


# -- operators and readers ---------------------------------------------------------------------------


@does(positions._SET_POSITION)
async def _set_position(transaction: Transaction, values: Any, server: Server) -> Answer:
    change = {"position": values["position"], "owner": None, "updated_at": clock.now(server.loop)}
    key = (values["stream"], values["source"], values["partition"])
    return Answer(count=await update(transaction, "partitions", [key], lambda row: True, lambda row: change))


@does(positions._NOTE_CHANGE)
async def _note_change(transaction: Transaction, values: Any, server: Server) -> Answer:
    now = clock.now(server.loop)
    key = (values["stream"], values["source"], values["partition"], now)
    await transaction.lock("position_changes", key)
    transaction.put("position_changes", key, dict(values))
    return Answer(count=1)


@does("SELECT name FROM streamproc.replays WHERE stream = %s AND state = 'promoting' FOR SHARE")
async def _promoting(transaction: Transaction, values: Any, server: Server) -> Answer:
    return Answer()


@does(history._STATUS)
async def _status(transaction: Transaction, values: Any, server: Server) -> Answer:
    names = ("position", "owner", "fence", "clock_us", "claimed_at", "updated_at", *COUNTS)
    return Answer(
        [
            (key[1], key[2], *(row[name] for name in names))
            for key, row in transaction.rows("partitions")
            if key[0] == values[0]
        ]
    )


@does(history._EPOCHS)
async def _epochs(transaction: Transaction, values: Any, server: Server) -> Answer:
    ranges: dict[uuid.UUID, list[Row]] = {}
    for _, row in transaction.rows("epoch_ranges"):
        ranges.setdefault(row["epoch"], []).append(row)
    found = [row for _, row in transaction.rows("epochs") if row["stream"] == values["stream"]]
    assert values["since"] is None
    found.sort(key=lambda row: (-row["committed_at"].timestamp(), row["id"]))
    names = ("source", "partition", "after", "through", *COUNTS)
    return Answer(
        [
            (
                *(row[name] for name in ("id", "worker", "started_at", "committed_at", "late", "seconds")),
                *(part[name] for name in names),
            )
            for row in found[: values["limit"]]
            for part in ranges[row["id"]]
        ]
    )


_OBJECT = ("key", "kind", "source", "partition", "after", "through", "rows", "min_time_us", "max_time_us",
           "clock_us", "size", "checksum", "committed_at")  # fmt: skip


def _listing(
    order: Callable[[Row], Any], where: Callable[[Row, Any], bool]
) -> Callable[[Transaction, Any, Server], Awaitable[Answer]]:
    async def statement(transaction: Transaction, values: Any, server: Server) -> Answer:
        found = [
            row
            for _, row in transaction.rows("objects")
            if row["stream"] == values["stream"]
            and row["state"] == "committed"
            and row["kind"] == values["kind"]
            and where(row, values)
        ]
        found.sort(key=order)
        return Answer([tuple(row[name] for name in _OBJECT) for row in found[: values.get("page")]])

    return statement


def _max_time(row: Row) -> int:
    return -1 if row["max_time_us"] is None else int(row["max_time_us"])


STATEMENTS[normal(objects._BY_EVENT_TIME)] = _listing(
    lambda row: (_max_time(row), row["key"]),
    lambda row, values: (
        _max_time(row) >= values["since"]
        and (values["until"] is None or row["min_time_us"] < values["until"])
    ),
)
STATEMENTS[normal(objects._BY_COMMIT)] = _listing(
    lambda row: (row["committed_at"], row["key"]),
    lambda row, values: (row["committed_at"], row["key"]) > (values["last"], values["last_key"]),
)
STATEMENTS[normal(objects._BY_CLOCK)] = _listing(
    lambda row: (row["through"], row["key"]),
    lambda row, values: (
        row["source"] == values["source"]
        and row["partition"] == values["partition"]
        and row["clock_us"] is not None
        and row["clock_us"] >= values["since"]
    ),
)


@does(history._SHARDS)
async def _shards(transaction: Transaction, values: Any, server: Server) -> Answer:
    return Answer([])  # the topic has partitions, not shards


@does(positions._FREE)
async def _free(transaction: Transaction, values: Any, server: Server) -> Answer:
    return Answer(count=0)  # no shard, so none is held
