"""What a merge begins with: the rows that a table has are locked, those that it lacks are put in.

Most rows of a delta are new, and a plain INSERT costs the server less than one with ON CONFLICT (of page views
half as much), which looks the key up, marks the row as provisional and confirms it. So the keys are looked up
first, and a row that another worker has put in since is found out by the unique index: then the rows put in are
taken back (a savepoint) and the keys looked up again.

Workers wait for each other here, but never in a circle. Each locks the rows it finds in the order of their keys, then
inserts the others in the order of their keys, then updates what it has locked, which waits for nobody. Inserting
waits for workers that insert or update, never for one that only locks; and whoever is refused lets go of all that
it has locked and inserted in the table before it begins anew.

A null in a key is a value like any other, but ``=`` finds none, and an index is not searched by IS NOT DISTINCT FROM.
By IS NULL it is: so keys are looked up once for each set of columns that are null together (:data:`Nulls`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, LiteralString, TypeAlias

import polars as pl
from psycopg import AsyncConnection, errors, sql

from streamproc.sinks.summaries_layout import Layout, published, readable, trusted
from streamproc.sinks.summaries_stage import ROW
from streamproc.sinks.summaries_statements import assigned, finished, merged, reopened, shown, write_public

#: Columns of a key that are null in a row, all others being not.
Nulls: TypeAlias = tuple[str, ...]

_COMMA = sql.SQL(", ")

#: Each failed attempt means that somebody has committed a row of ours in between, or that the delta has a key twice.
_ATTEMPTS = 100


def null_keys(layout: Layout, rows: pl.DataFrame) -> list[Nulls]:
    """The columns of the key that are null together in some row; nothing when no key has a null."""
    names = [column.name for column in layout.key]
    partial = rows.filter(pl.any_horizontal(pl.col(names).is_null()))
    found = partial.select(pl.col(names).is_null()).unique().rows()
    return sorted(tuple(itertools.compress(names, nulls)) for nulls in found)


def rendered(
    layout: Layout, nulls: Sequence[Nulls], name: str, build: Callable[[], sql.Composable]
) -> sql.SQL:
    """A statement over keys with these ``nulls``: without any it is always the same, see :meth:`Layout.rendered`."""
    return trusted(build().as_string(None)) if nulls else layout.rendered(name, build)


async def place(
    conn: AsyncConnection[Any],
    layout: Layout,
    staged: sql.Identifier,
    known: sql.Identifier,
    nulls: Sequence[Nulls],
) -> None:
    """Lock the staged keys that the table has and list them in ``known``; put in the other rows. ``nulls``: of the
    staged keys, see :func:`null_keys`.
    """
    lock = rendered(layout, nulls, "lock", lambda: _lock(layout, staged, known, nulls))
    public = layout.rendered("insert public", lambda: _insert_public(layout, staged, known))
    if not layout.has_state:
        await until_placed(conn, [lock, public], [lock, public])
        return
    insert = layout.rendered("insert", lambda: _insert(layout, staged, known))
    reopen = rendered(layout, nulls, "reopen", lambda: _reopen(layout, staged, known, nulls))
    await until_placed(conn, [lock, insert, public], [lock, reopen])


async def until_placed(
    conn: AsyncConnection[Any], first: Sequence[sql.SQL], again: Sequence[sql.SQL]
) -> None:
    """Execute the statements ``first``, all or none. When one puts in a row that is there, all of ``again``, until none
    does: the keys are looked up again, and public rows may have outlived their state.
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


def _lock(
    layout: Layout, staged: sql.Identifier, known: sql.Identifier, nulls: Sequence[Nulls]
) -> sql.Composed:
    lookup = sql.SQL("SELECT ctid AS __at FROM {} t WHERE {} FOR UPDATE")
    target = layout.state if layout.has_state else layout.public
    return sql.SQL(
        "INSERT INTO {known} SELECT d.{row}, t.__at "
        "FROM (SELECT {row}, {keys} FROM {staged} ORDER BY {row} OFFSET 0) d CROSS JOIN LATERAL ({found}) t"
    ).format(
        known=known,
        row=ROW.id,
        staged=staged,
        keys=_COMMA.join(column.id for column in layout.key),
        found=_each(
            nulls,
            lambda null: lookup.format(target, _same(layout, "t", "d", null, finished=not layout.has_state)),
        ),
    )


def _each(nulls: Sequence[Nulls], lookup: Callable[[Nulls], sql.Composed]) -> sql.Composed:
    """The row that ``lookup`` finds of a key without a null, or with one of ``nulls``."""
    if not nulls:
        return lookup(())
    found = (sql.SQL("SELECT * FROM ({}) k").format(lookup(null)) for null in ((), *nulls))
    # Without the limit the server would expect a row of each, and choose other ways for so many.
    return sql.SQL("{} LIMIT 1").format(sql.SQL(" UNION ALL ").join(found))


def _same(
    layout: Layout, mine: LiteralString, theirs: LiteralString, null: Nulls, *, finished: bool
) -> sql.Composed:
    """SQL: whether a row ``mine`` has the key of ``theirs``, in which the columns ``null`` are null and no others.

    ``finished``: mine is one of the public table, and theirs has been staged.
    """
    conditions: list[sql.Composable] = []
    for column in layout.key:
        one, other = layout.indexed(column, mine), layout.indexed(column, theirs)
        if column.name in null:
            conditions.append(sql.SQL("{} IS NULL AND {} IS NULL").format(one, other))
        else:
            conditions.append(sql.SQL("{} = {}").format(one, published(column, other) if finished else other))
    return sql.SQL(" AND ").join(conditions)


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


def _reopen(
    layout: Layout, staged: sql.Identifier, known: sql.Identifier, nulls: Sequence[Nulls]
) -> sql.Composed:
    """Put the staged rows that are not known into state and public table. Where there is a public row, its window was
    finished and its state has gone: it goes on from what it says.
    """
    row = sql.SQL("SELECT {} FROM {} p WHERE {} OFFSET 0")
    said = _COMMA.join(
        sql.SQL("{} AS {}").format(value, sql.Identifier(name)) for name, value in reopened(layout, "p")
    )
    state = sql.SQL(
        "INSERT INTO {state} AS s ({names}) SELECT {keys}, {merges} FROM (SELECT * FROM {source}) AS excluded "
        "LEFT JOIN LATERAL ({public}) t ON true ORDER BY excluded.{row} RETURNING s.*"
    ).format(
        state=layout.state,
        names=_COMMA.join(column.id for column in layout.staged),
        keys=_COMMA.join(column.of("excluded") for column in layout.key),
        merges=_COMMA.join(map(merged, layout.state_columns)),
        source=_new(staged, known),
        public=_each(
            nulls,
            lambda null: row.format(said, layout.public, _same(layout, "p", "excluded", null, finished=True)),
        ),
        row=ROW.id,
    )
    return sql.SQL("WITH merged AS ({}) {}").format(state, write_public(layout))


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


def update_windows(
    layout: Layout, staged: sql.Identifier, known: sql.Identifier, nulls: Sequence[Nulls]
) -> sql.Composed:
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
        return update_both(layout, source, [(c.name, merged(c)) for c in layout.state_columns], nulls)
    names = {column.name for column in layout.measures}
    return sql.SQL("UPDATE {public} t SET {merges} FROM {source} WHERE t.ctid = excluded.__at").format(
        public=layout.public,
        merges=assigned((c.name, merged(c)) for c in layout.state_columns if c.name in names),
        source=source,
    )


def update_both(
    layout: Layout,
    source: sql.Composable,
    values: Iterable[tuple[str, sql.Composable]],
    nulls: Sequence[Nulls] = (),
) -> sql.Composed:
    """Set columns of the state's rows ``__at`` (their ``ctid``, which stays while they are locked) that ``source``,
    called ``excluded``, has, and write their public rows, which those of the state lock.
    """
    lookup = sql.SQL("SELECT ctid AS __at FROM {} p WHERE {} OFFSET 0")
    return sql.SQL(
        "WITH merged AS (UPDATE {state} t SET {values} FROM {source} WHERE t.ctid = excluded.__at "
        "RETURNING {finished}), "
        "finished AS (SELECT f.*, p.__at FROM merged f "
        "LEFT JOIN LATERAL ({found}) p ON true), "
        "updated AS (UPDATE {public} t SET {replaced} FROM finished f WHERE t.ctid = f.__at) "
        "INSERT INTO {public} ({names}) SELECT {names} FROM finished WHERE __at IS NULL"
    ).format(
        state=layout.state,
        values=assigned(values),
        source=source,
        finished=_finished(layout, "t"),
        public=layout.public,
        found=_each(
            nulls,
            lambda null: lookup.format(layout.public, _same(layout, "p", "f", null, finished=False)),
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


def placed_rows(layout: Layout, staged: sql.Identifier, nulls: Sequence[Nulls]) -> sql.Composed:
    """The public rows of the staged keys of a windowed table, times as integers."""
    lookup = sql.SQL("SELECT {} FROM {} p WHERE {} OFFSET 0")
    mine = shown(layout)
    return sql.SQL("SELECT {columns} FROM {staged} d CROSS JOIN LATERAL ({found}) p ORDER BY d.{row}").format(
        columns=_COMMA.join(readable(column, "p") for column in layout.columns),
        staged=staged,
        found=_each(
            nulls,
            lambda null: lookup.format(mine, layout.public, _same(layout, "p", "d", null, finished=True)),
        ),
        row=ROW.id,
    )
