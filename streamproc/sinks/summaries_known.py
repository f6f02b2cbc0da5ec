"""What a merge begins with: the rows that a table has are locked, those that it lacks are put in.

Most rows of a delta are new, and a plain INSERT costs the server less than one with ON CONFLICT (of page views
half as much), which looks the key up, marks the row as provisional and confirms it. So the keys are looked up
first, and a row that another worker has put in since is found out by the unique index: then the rows put in are
taken back (a savepoint) and the keys looked up again.

Workers wait for each other here, but never in a circle. Each locks the rows it finds in the order of their keys, then
inserts the others in the order of their keys, then updates what it has locked, which waits for nobody. Inserting
waits for workers that insert or update, never for one that only locks; and whoever is refused lets go of all that
it has locked and inserted in the table before it begins anew.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, LiteralString

from psycopg import AsyncConnection, errors, sql

from streamproc.sinks.summaries_layout import Layout, published, readable
from streamproc.sinks.summaries_stage import ROW
from streamproc.sinks.summaries_statements import assigned, finished, merged, write_public

_COMMA = sql.SQL(", ")

#: Each failed attempt means that somebody has committed a row of ours in between, or that the delta has a key twice.
_ATTEMPTS = 100


async def place(
    conn: AsyncConnection[Any], layout: Layout, staged: sql.Identifier, known: sql.Identifier
) -> None:
    """Lock the staged keys that the table has and list them in ``known``; put in the other rows.

    No staged key may be null.
    """
    lock = layout.rendered("lock", lambda: _lock(layout, staged, known))
    public = layout.rendered("insert public", lambda: _insert_public(layout, staged, known))
    if not layout.has_state:
        await until_placed(conn, [lock, public], [lock, public])
        return
    insert = layout.rendered("insert", lambda: _insert(layout, staged, known))
    replace = layout.rendered("upsert public", lambda: write_public(layout, source=_new(staged, known)))
    await until_placed(conn, [lock, insert, public], [lock, insert, replace])


async def until_placed(
    conn: AsyncConnection[Any], first: Sequence[sql.SQL], again: Sequence[sql.SQL]
) -> None:
    """Execute the statements ``first``, all or none. When one puts in a row that is there, all of ``again``, until none
    does: the keys are looked up again, and a public row that has outlived its state is replaced.
    """
    statements = first
    for attempt in itertools.count(1):
        try:
            async with conn.transaction():
                for statement in statements:
                    await conn.execute(statement, prepare=False)  # a plan is good for one size of delta
        except errors.UniqueViolation:
            if attempt == _ATTEMPTS:
                raise
            statements = again
        else:
            return


def _lock(layout: Layout, staged: sql.Identifier, known: sql.Identifier) -> sql.Composed:
    target = layout.state if layout.has_state else layout.public
    return sql.SQL(
        "INSERT INTO {known} SELECT d.{row}, t.__at "
        "FROM (SELECT {row}, {keys} FROM {staged} ORDER BY {row} OFFSET 0) d "
        "CROSS JOIN LATERAL (SELECT ctid AS __at FROM {target} t WHERE {same} FOR UPDATE) t"
    ).format(
        known=known,
        row=ROW.id,
        staged=staged,
        target=target,
        keys=_COMMA.join(column.id for column in layout.key),
        same=_same_key(layout),
    )


def _same_key(layout: Layout) -> sql.Composed:
    """SQL: whether a row ``t`` of the state (or of the public table, where it has none) has the key of ``d``."""
    return sql.SQL(" AND ").join(
        sql.SQL("{} = {}").format(
            layout.indexed(column, "t"),
            layout.indexed(column, "d")
            if layout.has_state
            else published(column, layout.indexed(column, "d")),
        )
        for column in layout.key
    )


def _insert(layout: Layout, staged: sql.Identifier, known: sql.Identifier) -> sql.Composed:
    return sql.SQL("INSERT INTO {state} ({names}) SELECT {names} FROM {source} ORDER BY {row}").format(
        state=layout.state,
        names=_COMMA.join(column.id for column in layout.staged),
        source=_new(staged, known),
        row=ROW.id,
    )


def _insert_public(layout: Layout, staged: sql.Identifier, known: sql.Identifier) -> sql.Composed:
    return sql.SQL("INSERT INTO {public} ({names}) SELECT {values} FROM {source} ORDER BY {row}").format(
        public=layout.public,
        names=_COMMA.join(sql.Identifier(name) for name, _ in finished(layout)),
        values=_COMMA.join(value for _, value in finished(layout)),
        source=_new(staged, known),
        row=ROW.id,
    )


def _new(staged: sql.Identifier, known: sql.Identifier) -> sql.Composed:
    """SQL: the staged rows that are not known, to stand behind FROM."""
    return sql.SQL(
        "(SELECT * FROM {staged} s WHERE NOT EXISTS (SELECT FROM {known} k WHERE k.{row} = s.{row})) d"
    ).format(staged=staged, known=known, row=ROW.id)


def known_sketches(layout: Layout, known: sql.Identifier) -> sql.Composed:
    """The sketches of the known rows: :data:`ROW`, then :attr:`Layout.sketches`."""
    names = _COMMA.join(sql.Identifier("t", column.name) for column in layout.sketches)
    return sql.SQL(
        "SELECT k.{row}, {names} FROM {known} k "
        "CROSS JOIN LATERAL (SELECT * FROM {state} t WHERE t.ctid = k.__at OFFSET 0) t"
    ).format(row=ROW.id, names=names, known=known, state=layout.state)


def update_windows(layout: Layout, staged: sql.Identifier, known: sql.Identifier) -> sql.Composed:
    """Merge the staged rows that are known into a tumbling or hopping table."""
    source = sql.SQL(
        "(SELECT {values}, k.__at FROM {staged} d JOIN {known} k USING ({row})) AS excluded"
    ).format(
        values=sql.SQL("d.*") if layout.has_state else _finished(layout, "d"),
        staged=staged,
        known=known,
        row=ROW.id,
    )
    if layout.has_state:
        return update_both(layout, source, [(c.name, merged(c)) for c in layout.state_columns])
    names = {column.name for column in layout.measures}
    return sql.SQL("UPDATE {public} t SET {merges} FROM {source} WHERE t.ctid = excluded.__at").format(
        public=layout.public,
        merges=assigned((c.name, merged(c)) for c in layout.state_columns if c.name in names),
        source=source,
    )


def update_both(
    layout: Layout, source: sql.Composable, values: Iterable[tuple[str, sql.Composable]]
) -> sql.Composed:
    """Set columns of the state's rows ``__at`` (their ``ctid``, which stays while they are locked) that ``source``,
    called ``excluded``, has, and write their public rows, which those of the state lock.
    """
    return sql.SQL(
        "WITH merged AS (UPDATE {state} t SET {values} FROM {source} WHERE t.ctid = excluded.__at "
        "RETURNING {finished}), "
        "finished AS (SELECT f.*, p.__at FROM merged f "
        "LEFT JOIN LATERAL (SELECT ctid AS __at FROM {public} p WHERE {same} OFFSET 0) p ON true), "
        "updated AS (UPDATE {public} t SET {replaced} FROM finished f WHERE t.ctid = f.__at) "
        "INSERT INTO {public} ({names}) SELECT {names} FROM finished WHERE __at IS NULL"
    ).format(
        state=layout.state,
        values=assigned(values),
        source=source,
        finished=_finished(layout, "t"),
        public=layout.public,
        same=sql.SQL(" AND ").join(
            sql.SQL("{} = {}").format(layout.indexed(column, "p"), layout.indexed(column, "f"))
            for column in layout.key
        ),
        replaced=_COMMA.join(
            sql.SQL("{0} = f.{0}").format(column.id) for column in [layout.span[1], *layout.measures]
        ),
        names=_COMMA.join(sql.Identifier(name) for name, _ in finished(layout)),
    )


def _finished(layout: Layout, row: LiteralString) -> sql.Composed:
    """The columns of the public table over a ``row`` of the state, under their names."""
    return _COMMA.join(
        sql.SQL("{} AS {}").format(value, sql.Identifier(name)) for name, value in finished(layout, row)
    )


def placed_rows(layout: Layout, staged: sql.Identifier) -> sql.Composed:
    """The public rows of the staged keys of a windowed table, times as integers."""
    return sql.SQL(
        "SELECT {columns} FROM {staged} d CROSS JOIN LATERAL "
        "(SELECT * FROM {public} p WHERE {same} OFFSET 0) p ORDER BY d.{row}"
    ).format(
        columns=_COMMA.join(readable(column, "p") for column in layout.columns),
        staged=staged,
        public=layout.public,
        same=sql.SQL(" AND ").join(
            sql.SQL("{} = {}").format(
                layout.indexed(column, "p"), published(column, layout.indexed(column, "d"))
            )
            for column in layout.key
        ),
        row=ROW.id,
    )
