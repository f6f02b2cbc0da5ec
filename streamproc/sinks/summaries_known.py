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
from typing import Any, LiteralString

from psycopg import AsyncConnection, errors, sql

from streamproc.sinks.summaries_layout import Layout, published, readable
from streamproc.sinks.summaries_stage import ROW
from streamproc.sinks.summaries_statements import (
    finished,
    merge,
    session_joins,
    session_merges,
    write_public,
)

_COMMA = sql.SQL(", ")

#: Each failed attempt means that somebody has committed a row of ours in between, or that the delta has a key twice.
_ATTEMPTS = 100


async def place(
    conn: AsyncConnection[Any], layout: Layout, staged: sql.Identifier, known: sql.Identifier
) -> None:
    """Lock the staged keys that the table has and list them in ``known``; put in the other rows.

    No staged key may be null. A row of a session table that has no span puts in its key only, as a lock.
    """
    lock = layout.rendered("lock", lambda: _lock(layout, staged, known))
    insert = layout.rendered("insert", lambda: _insert(layout, staged, known))
    public = layout.rendered("insert public", lambda: _insert_public(layout, staged, known))
    statements = [lock, insert, public] if layout.has_state else [lock, public]
    for attempt in itertools.count(1):
        try:
            async with conn.transaction():
                for statement in statements:
                    await conn.execute(statement, prepare=False)  # a plan is good for one size of delta
        except errors.UniqueViolation:
            if attempt == _ATTEMPTS:
                raise
            # A public row may also have outlived its state: it is replaced.
            if layout.has_state:
                statements[-1] = layout.rendered(
                    "upsert public", lambda: _upsert_public(layout, staged, known)
                )
        else:
            return


def _lock(layout: Layout, staged: sql.Identifier, known: sql.Identifier) -> sql.Composed:
    target = layout.state if layout.has_state else layout.public
    newest = sql.SQL(" AND t.n = 0" if layout.session else "")
    return sql.SQL(
        "INSERT INTO {known} SELECT d.{row}, t.at FROM (SELECT {row}, {keys} FROM {staged} ORDER BY {row} OFFSET 0) d "
        "CROSS JOIN LATERAL (SELECT ctid AS at FROM {target} t WHERE {same}{newest} FOR UPDATE) t"
    ).format(
        known=known,
        row=ROW.id,
        staged=staged,
        target=target,
        keys=_COMMA.join(column.id for column in layout.key),
        same=_same_key(layout),
        newest=newest,
    )


def _same_key(layout: Layout) -> sql.Composed:
    """SQL: whether a row ``t`` of the state (or of the public table, where it has none) has the key of ``d``."""
    columns = layout.by if layout.session else layout.key
    return sql.SQL(" AND ").join(
        sql.SQL("{} = {}").format(
            layout.indexed(column, "t"),
            layout.indexed(column, "d")
            if layout.has_state
            else published(column, layout.indexed(column, "d")),
        )
        for column in columns
    )


def _insert(layout: Layout, staged: sql.Identifier, known: sql.Identifier) -> sql.Composed:
    names = [column.id for column in layout.staged]
    values: list[sql.Composable] = list(names)
    if layout.session:
        names, values = [*names, sql.Identifier("n")], [*values, sql.SQL("0")]
    return sql.SQL("INSERT INTO {state} ({names}) SELECT {values} FROM {source} ORDER BY {row}").format(
        state=layout.state,
        names=_COMMA.join(names),
        values=_COMMA.join(values),
        source=_new(staged, known),
        row=ROW.id,
    )


def _insert_public(layout: Layout, staged: sql.Identifier, known: sql.Identifier) -> sql.Composed:
    # Sessions are staged by their key, but indexed by their start: appending there is cheaper than looking around.
    order = layout.span[0].id if layout.session else ROW.id
    return sql.SQL(
        "INSERT INTO {public} ({names}) SELECT {values} FROM {source} {where} ORDER BY {order}"
    ).format(
        public=layout.public,
        names=_COMMA.join(sql.Identifier(name) for name, _ in finished(layout)),
        values=_COMMA.join(value for _, value in finished(layout)),
        source=_new(staged, known),
        where=sql.SQL("WHERE session_start IS NOT NULL" if layout.session else ""),
        order=sql.SQL("d.{}").format(order),
    )


def _upsert_public(layout: Layout, staged: sql.Identifier, known: sql.Identifier) -> sql.Composed:
    return write_public(
        layout,
        source=_new(staged, known),
        where=sql.SQL("WHERE session_start IS NOT NULL" if layout.session else ""),
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
        "CROSS JOIN LATERAL (SELECT * FROM {state} t WHERE t.ctid = k.at OFFSET 0) t"
    ).format(row=ROW.id, names=names, known=known, state=layout.state)


def update_windows(layout: Layout, staged: sql.Identifier, known: sql.Identifier) -> sql.Composed:
    """Merge the staged rows that are known into a tumbling or hopping table."""
    if layout.has_state:
        merges = _COMMA.join(map(merge, layout.state_columns))
        return _update(layout, staged, known, merges, sql.SQL("true")) + sql.SQL(
            "SELECT count(*) FROM merged"
        )
    names = {column.name for column in layout.measures}
    return sql.SQL(
        "UPDATE {public} t SET {merges} FROM (SELECT {values}, k.at FROM {staged} d JOIN {known} k USING ({row})) "
        "AS excluded WHERE t.ctid = excluded.at"
    ).format(
        public=layout.public,
        merges=_COMMA.join(merge(column) for column in layout.state_columns if column.name in names),
        values=_finished(layout, "d"),
        staged=staged,
        known=known,
        row=ROW.id,
    )


def update_sessions(layout: Layout, staged: sql.Identifier, known: sql.Identifier) -> sql.Composed:
    """Merge the staged pieces that simply continue their key's newest session, which is known.

    Returns the keys of the pieces that do not, and of the rows without a span.
    """
    key = layout.by[0]
    merges = [sql.SQL("session_end = greatest(t.session_end, excluded.session_end)"), *session_merges(layout)]
    return _update(layout, staged, known, _COMMA.join(merges), session_joins(layout)) + sql.SQL(
        "SELECT {key} FROM {staged} WHERE session_start IS NULL OR {row} IN (SELECT {row} FROM {known} k "
        "WHERE NOT EXISTS (SELECT FROM merged m WHERE m.{row} = k.{row}))"
    ).format(key=key.id, staged=staged, known=known, row=ROW.id)


def _update(
    layout: Layout,
    staged: sql.Identifier,
    known: sql.Identifier,
    merges: sql.Composable,
    condition: sql.Composable,
) -> sql.Composed:
    """WITH: the known rows of the state ``merged`` with the staged ones, and their public rows written.

    Rows are found by ``ctid``, which stays while they are locked. A row of the state locks its public row.
    """
    return sql.SQL(
        "WITH merged AS (UPDATE {state} t SET {merges} "
        "FROM (SELECT d.*, k.at FROM {staged} d JOIN {known} k USING ({row})) AS excluded "
        "WHERE t.ctid = excluded.at AND {condition} RETURNING {values}, excluded.{row}), "
        "finished AS (SELECT f.*, p.at FROM merged f "
        "LEFT JOIN LATERAL (SELECT ctid AS at FROM {public} p WHERE {same} OFFSET 0) p ON true), "
        "updated AS (UPDATE {public} t SET {replaced} FROM finished f WHERE t.ctid = f.at), "
        "added AS (INSERT INTO {public} ({names}) SELECT {names} FROM finished WHERE at IS NULL) "
    ).format(
        state=layout.state,
        merges=merges,
        staged=staged,
        known=known,
        row=ROW.id,
        condition=condition,
        values=_finished(layout, "t"),
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
