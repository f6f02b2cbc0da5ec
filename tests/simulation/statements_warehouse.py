"""What the statements of the PostgreSQL warehouse do; tables are there before, with all their columns."""

from __future__ import annotations

import csv
import io
import itertools
import re
from typing import Any

from psycopg import errors

from streamproc.sinks import warehouse_postgres
from tests.simulation.postgres import Answer, Server, Transaction
from tests.simulation.statements import does

_COPY = re.compile(r'COPY "warehouse"\."(\w+)" \((.*)\) FROM STDIN \(FORMAT csv\)')


@does("LOCK TABLE warehouse.loads IN SHARE ROW EXCLUSIVE MODE")
async def _lock_loads(transaction: Transaction, values: Any, server: Server) -> Answer:
    await transaction.lock("tables", ("warehouse.loads",))
    return Answer()


@does(
    "SELECT wanted.key FROM unnest(%s::text[]) AS wanted (key) WHERE NOT EXISTS ("
    " SELECT FROM warehouse.loads AS l WHERE l.stream = %s AND l.key = wanted.key)"
)
async def _missing(transaction: Transaction, values: Any, server: Server) -> Answer:
    keys, stream = values
    return Answer([(key,) for key in keys if transaction.get("loads", (stream, key)) is None])


@does("SELECT key FROM warehouse.loads WHERE stream = %s AND key = ANY(%s)")
async def _loaded(transaction: Transaction, values: Any, server: Server) -> Answer:
    stream, keys = values
    return Answer([(key,) for key in keys if transaction.get("loads", (stream, key)) is not None])


@does("INSERT INTO warehouse.loads (stream, key, rows, loaded_at) VALUES (%s, %s, %s, clock_timestamp())")
async def _note_load(transaction: Transaction, values: Any, server: Server) -> Answer:
    stream, key, rows = values
    await transaction.lock("loads", (stream, key))
    if transaction.get("loads", (stream, key)) is not None:
        raise errors.UniqueViolation("duplicate key value violates unique constraint")
    transaction.put("loads", (stream, key), {"rows": rows})
    return Answer(count=1)


@does(warehouse_postgres._COLUMNS)
async def _columns(transaction: Transaction, values: Any, server: Server) -> Answer:
    row = transaction.get("columns", (values[0],))
    return Answer(list((row or {}).items()))


async def copy(transaction: Transaction, text: str, values: bytes) -> Answer | None:
    """COPY of CSV into a warehouse table; ``None`` when the text is something else."""
    match = _COPY.fullmatch(text)
    if match is None:
        return None
    names = [name.strip().strip('"') for name in match[2].split(",")]
    places = [names.index("source_partition"), names.index("position")]
    numbers = itertools.count(len(list(transaction.rows(match[1]))))
    answer = Answer()
    for line in csv.reader(io.StringIO(values.decode())):
        number, position = (line[place] for place in places)
        for row in numbers:  # each loader writes rows of its own
            key = (transaction.application, row)
            if transaction.get(match[1], key) is None:
                break
        await transaction.lock(match[1], key)
        transaction.put(match[1], key, {"partition": number, "position": int(position)})
        answer.count += 1
    return answer


def prepare(server: Server, stream: str, columns: dict[str, Any]) -> None:
    """The warehouse's table of a stream, as ``ensure`` would have made it."""
    types = {name: warehouse_postgres._postgres_type(dtype) for name, dtype in columns.items()}
    server.rows.table("columns")[f'"warehouse"."{stream}"',] = types


def rows(server: Server, stream: str) -> list[tuple[str, int]]:
    """Partition and position of each row of a stream in the warehouse."""
    return [(row["partition"], row["position"]) for row in server.rows.table(stream).values()]
