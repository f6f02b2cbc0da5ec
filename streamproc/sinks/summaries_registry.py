"""What each table of a stream was made for, kept beside the tables (``<stream>.__tables``): the catalog knows columns
but not windows. So an addition is told from a change that rows already there contradict.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import polars as pl
from psycopg import AsyncConnection, sql

from streamproc.errors import Mistake
from streamproc.sinks.summaries_expiry import STATE_GRACE
from streamproc.sinks.summaries_layout import ADDITIVE, Layout, finished_columns
from streamproc.topology import HOUR, Measure

#: A table's entry, as JSON.
Definition: TypeAlias = dict[str, Any]

#: The columns that a table has in the database, and whether PostgreSQL computes them.
Columns: TypeAlias = Mapping[str, bool]

#: The clock of the partition that is ahead of all others.
_CLOCK = "SELECT max(clock_us) FROM streamproc.partitions WHERE stream = %s"

#: What a definition goes on saying when a page does not.
_NOTED = {"disorder", "longest"}

#: What cannot change once there are rows, and where the page says it.
_FIXED = {"window": "window", "key": "window.key", "by": "by", "where": "where"}


def registry(schema: str) -> sql.Identifier:
    """The table that holds the definitions of a stream's tables."""
    return sql.Identifier(schema, "__tables")


async def exists(conn: AsyncConnection[Any], table: sql.Identifier) -> bool:
    """Whether there is such a table."""
    row = await (await conn.execute("SELECT to_regclass(%s)", [table.as_string(conn)])).fetchone()
    return row != (None,)


async def definitions(conn: AsyncConnection[Any], schema: str) -> dict[str, Definition]:
    """Every table that a page of the stream ever had, by name."""
    query = sql.SQL("SELECT name, definition FROM {}").format(registry(schema))
    rows = await (await conn.execute(query)).fetchall()
    return {name: _completed(made) for name, made in rows}


async def columns_of_tables(conn: AsyncConnection[Any], schema: str) -> dict[str, dict[str, bool]]:
    """The columns of every table of the schema, by name, see :data:`Columns`."""
    query = """
        SELECT c.relname, a.attname, a.attgenerated <> ''
        FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
        WHERE c.relnamespace = to_regnamespace(%s) AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped
    """
    found: dict[str, dict[str, bool]] = {}
    rows = await (await conn.execute(query, [sql.Identifier(schema).as_string(conn)])).fetchall()
    for table, column, computed in rows:
        found.setdefault(table, {})[column] = computed
    return found


def kept_states(schema: str, tables: Iterable[str]) -> sql.Composed:
    """The query for those of some tables that have a state to be merged into, whatever the page of who merges."""
    return sql.SQL("SELECT name FROM {} WHERE name IN ({}) AND definition -> 'state' = 'true'").format(
        registry(schema), sql.SQL(", ").join(map(sql.Literal, tables))
    )


def _completed(made: Definition) -> Definition:
    """A definition with what a version before has left out: its sessions were all of a text."""
    if made["window"]["kind"] == "session":
        return {"state": True, "key": "String", **made}
    return {"state": _had_state(made), **made}


def _had_state(made: Definition) -> bool:
    """Whether a version before, which did not note it, has kept a state of the table up to date: it did when its last
    page had a measure that needs one. Of that page there are the comments, one a measure.
    """
    needing = sum(measure["kind"] not in ADDITIVE for measure in made["measures"].values())
    removed = len(made["measures"]) - (len(made["comments"]) - 1 - len(made["derived"]))
    return needing > removed


def definition(layout: Layout, before: Definition | None) -> Definition:
    """What a table is made for from now on. What its pages measured ``before`` is not forgotten: the columns stay."""
    table, window = layout.table, layout.table.window
    former: Definition = {} if before is None else before["measures"]
    noted: Definition = {name: made for name, made in (before or {}).items() if name in _NOTED}
    if layout.disorder is not None:
        noted["disorder"] = layout.disorder
    texts = any(column.type == pl.String() for column in layout.key)
    return {
        **noted,
        # Of tables that have none the index is as it always was.
        **({"index": "long texts by SHA-256"} if texts else {}),
        **({"sessions": "numbered by start", "key": str(layout.by[0].type)} if layout.session else {}),
        "window": {name: getattr(window, name) for name in ("kind", "size", "hop", "key", "gap", "cap")},
        "by": dict(zip(table.by, map(str, table.by_types), strict=False)),
        "where": table.where,
        "lateness": table.lateness,
        "state": layout.has_state,
        "measures": {**former, **{measure.name: _meaning(measure) for measure in table.measures}},
        "derived": {derived.name: derived.sql for derived in table.derived},
        "comments": [
            table.comment,
            *(m.comment for m in table.measures),
            *(d.comment for d in table.derived),
        ],
    }


async def note_longest(
    conn: AsyncConnection[Any], schema: str, before: Definition | None, now: Definition
) -> None:
    """Where the lateness is shorter ``now``: note the longest there was ``before`` (``lateness``, µs), and the newest
    clock that a partition had with it (``until``, Unix µs; null for none). Older windows have events that came later
    than today's would let them, see :meth:`~streamproc.sinks.summaries_beside.Beside.lateness`.
    """
    if before is None or now["lateness"] >= before["lateness"]:
        return
    clock = None
    if await exists(conn, sql.Identifier("streamproc", "partitions")):
        row = await (await conn.execute(_CLOCK, [schema])).fetchone()
        clock = row[0] if row else None
    longest = max(before["lateness"], before.get("longest", before)["lateness"])
    now["longest"] = {"lateness": longest, "until": clock}


def _meaning(measure: Measure) -> Definition:
    meaning = {name: getattr(measure, name) for name in ("kind", "column", "where", "at", "precision")}
    return {**meaning, "type": str(measure.type), "steps": [list(step) for step in measure.steps]}


def incompatible(layout: Layout, schema: str, before: Definition, there: Columns) -> list[Mistake]:
    """The changes since ``before`` that the rows of a table, which has the columns ``there``, contradict."""
    table = layout.table
    now = definition(layout, before)
    place = f"{schema}.{table.name}"
    rename = f"Change it back or give the table a new name; drop {place} when its rows are not wanted"
    mistakes = [
        Mistake(
            f"{schema}: tables.{table.name}.{path}",
            f"has changed from {json.dumps(before.get(part))} to {json.dumps(now.get(part))}, "
            f"and {place} has rows of the former",
            rename,
        )
        for part, path in _FIXED.items()
        if before.get(part) != now.get(part)
    ]
    # A version before has not noted the disorder: it counts as unchanged then.
    disorder = now.get("disorder", 0)
    raised = now["lateness"] + disorder - before["lateness"] - before.get("disorder", disorder)
    if layout.has_state and raised > STATE_GRACE:
        hours = STATE_GRACE // HOUR
        problem = (
            f"has been raised by more than {hours} hours together with contract.event_time.disorder, "
            "and would reopen windows that are finished"
        )
        fix = f"Raise both by {hours} hours at most, or give the table a new name"
        mistakes.append(Mistake(f"{schema}: tables.{table.name}.lateness", problem, fix))
    for name, meaning in now["measures"].items():
        old = before["measures"].get(name, meaning)
        mistakes += [
            Mistake(
                f"{schema}: tables.{table.name}.measures.{name}.{part}",
                f"has changed from {json.dumps(old[part])} to {json.dumps(value)}, "
                f"and column {name} of {place} has values of the former",
                "Give the new measure a new name",
            )
            for part, value in meaning.items()
            if old[part] != value
        ]
    for path, column in _taken(layout, before, there):
        problem = f"{place} has a column {column}, with the values of a measure that was removed"
        fix = "Give the new one another name"
        if path.startswith("derived"):
            fix += ", or drop the column when its values are not wanted"
        mistakes.append(Mistake(f"{schema}: tables.{table.name}.{path}", problem, fix))
    return mistakes


def _taken(layout: Layout, before: Definition, there: Columns) -> Iterator[tuple[str, str]]:
    """What the page has given the name of a column that a removed measure has left, and that column."""
    table = layout.table
    kept = {measure.name for measure in table.measures}
    left = {
        column
        for name, made in before["measures"].items()
        if name not in kept
        for column in _columns_of(name, made)
        if there.get(column) is False
    }
    for derived in table.derived:
        if derived.name in left:
            yield f"derived.{derived.name}", derived.name
    for measure in table.measures:
        for column, _ in finished_columns(measure):
            if column in left:
                yield f"measures.{measure.name}", column


def _columns_of(name: str, made: Definition) -> list[str]:
    steps = tuple((step, where) for step, where in made["steps"])
    return [column for column, _ in finished_columns(Measure(name, made["kind"], pl.Null(), steps=steps))]
