"""The SQL that merges a delta into a table: the algebra of :mod:`streamproc.tables.measures`, in the server.

A delta lies in a temporary table. What it merges with is the state (or, where a table has none, the public
table); the finished values of exactly the rows it touched are copied to the public table. Rows are touched in
the order of their key, by every statement of every worker, so workers wait for each other but never in a
circle; :mod:`streamproc.sinks.summaries_known` does so for all rows but those with a null in their key.
"""

from __future__ import annotations

from typing import LiteralString

from psycopg import sql

from streamproc.sinks.summaries_layout import Column, Layout, finish, finished_columns, published, readable
from streamproc.tables.funnels import MAX_STEP_EVENTS_BYTES
from streamproc.tables.measures import (
    FLOAT_LIMIT,
    INTEGER_LIMIT,
    Merge,
    StateColumn,
    funnel_columns,
    state_columns,
)
from streamproc.topology import Measure

_COMMA = sql.SQL(", ")


def merge_windows(layout: Layout, stage: sql.Identifier) -> sql.Composed:
    """Merge staged rows of a tumbling or hopping table."""
    if layout.has_state:
        state = sql.SQL(
            "INSERT INTO {state} AS t ({columns}) SELECT {columns} FROM {stage} ORDER BY {key} "
            "ON CONFLICT ({key}) DO UPDATE SET {merges} RETURNING t.*"
        ).format(
            state=layout.state,
            columns=_COMMA.join(column.id for column in layout.staged),
            stage=stage,
            key=layout.conflict(state=True),
            merges=_COMMA.join(map(merge, layout.state_columns)),
        )
        return sql.SQL("WITH merged AS ({}) {}").format(state, write_public(layout))
    finished = {column.name for column in layout.measures}
    return write_public(
        layout,
        source=stage,
        update=_COMMA.join(merge(column) for column in layout.state_columns if column.name in finished),
    )


def session_joins(layout: Layout) -> sql.Composable:
    """SQL: whether a piece (``excluded``) continues the session ``t`` and can be merged here."""
    if layout.sketches:
        return sql.SQL("false")  # they are merged outside the server
    window = layout.table.window
    joins: sql.Composable = sql.SQL(
        "excluded.session_start >= t.session_start AND excluded.session_start <= t.session_end + {gap} "
        "AND greatest(t.session_end, excluded.session_end) - t.session_start < {cap}"
    ).format(gap=sql.Literal(window.gap), cap=sql.Literal(window.cap))
    for measure in layout.table.measures:
        if measure.kind == "funnel":
            joins = sql.SQL("{} AND {}").format(joins, _funnel_follows(measure))
    return joins


def replace_sessions(layout: Layout, stage: sql.Identifier) -> sql.Composed:
    """Put the staged sessions (all of a key, ``n`` counts from the newest) in the place of what is there."""
    columns = [*layout.staged, Column("n", layout.staged[0].type)]
    names = _COMMA.join(column.id for column in columns)
    state = sql.SQL(
        "INSERT INTO {state} AS t ({names}) SELECT {names} FROM {stage} ORDER BY {conflict} "
        "ON CONFLICT ({conflict}) DO UPDATE SET {replaced} RETURNING t.*"
    ).format(
        state=layout.state,
        names=names,
        stage=stage,
        conflict=layout.conflict(state=True),
        replaced=_COMMA.join(_replace(column.id) for column in layout.staged[1:]),
    )
    return sql.SQL("WITH merged AS ({}) {}").format(state, write_public(layout))


def touch(layout: Layout, stage: sql.Identifier) -> sql.Composed:
    """Lock the staged keys of the state, inserting those it lacks; returns the keys and their sketches."""
    keys = _COMMA.join(column.id for column in layout.key)
    return sql.SQL(
        "INSERT INTO {state} AS t ({keys}) SELECT {keys} FROM {stage} ORDER BY {conflict} "
        "ON CONFLICT ({conflict}) DO UPDATE SET window_start = t.window_start RETURNING {returned}"
    ).format(
        state=layout.state,
        keys=keys,
        stage=stage,
        conflict=layout.conflict(state=True),
        returned=_COMMA.join(column.id for column in [*layout.key, *layout.sketches]),
    )


def stored_sessions(layout: Layout, stage: sql.Identifier) -> sql.Composed:
    """The sessions that the state has of the staged keys, and their number ``n``."""
    key = layout.by[0]
    return sql.SQL(
        "SELECT {columns}, s.n FROM {stage} k CROSS JOIN LATERAL (SELECT * FROM {state} s "
        "WHERE {stored} = {wanted} AND s.session_start IS NOT NULL OFFSET 0) s"  # OFFSET: look up, never scan
    ).format(
        columns=_COMMA.join(sql.Identifier("s", column.name) for column in layout.staged),
        stage=stage,
        state=layout.state,
        stored=layout.indexed(key, "s"),
        wanted=layout.indexed(key, "k"),
    )


def public_sessions(layout: Layout, stage: sql.Identifier) -> sql.Composed:
    """The public rows of the staged keys' sessions that may still change, times as integers."""
    key = layout.by[0]
    return sql.SQL(
        "SELECT {columns} FROM (SELECT DISTINCT {key} FROM {stage}) k CROSS JOIN LATERAL "
        "(SELECT session_start FROM {state} s WHERE {stored} = {wanted} OFFSET 0) s CROSS JOIN LATERAL "
        "(SELECT * FROM {public} p WHERE p.session_start = {start} AND {published} = {wanted} OFFSET 0) p"
    ).format(
        columns=_COMMA.join(readable(column, "p") for column in layout.columns),
        key=key.id,
        stage=stage,
        state=layout.state,
        public=layout.public,
        start=published(layout.span[0], sql.Identifier("s", "session_start")),
        stored=layout.indexed(key, "s"),
        published=layout.indexed(key, "p"),
        wanted=layout.indexed(key, "k"),
    )


def write_public(
    layout: Layout,
    *,
    source: sql.Composable = sql.Identifier("merged"),  # noqa: B008 - immutable
    update: sql.Composable | None = None,
    where: sql.Composable = sql.SQL(""),  # noqa: B008 - immutable
) -> sql.Composed:
    """Write the finished values of states to the public table; ``update`` says what to set on conflict."""
    if update is None:
        update = _COMMA.join(_replace(column.id) for column in [layout.span[1], *layout.measures])
    return sql.SQL(
        "INSERT INTO {public} AS t ({names}) SELECT {values} FROM {source} {where} {order} "
        "ON CONFLICT ({conflict}) DO UPDATE SET {update}"
    ).format(
        public=layout.public,
        names=_COMMA.join(sql.Identifier(name) for name, _ in finished(layout)),
        values=_COMMA.join(value for _, value in finished(layout)),
        source=source,
        where=where,
        # Rows of a state come in its order and under its locks.
        order=sql.SQL("")
        if layout.has_state
        else sql.SQL("ORDER BY {}").format(layout.conflict(state=False)),
        conflict=layout.conflict(state=False),
        update=update,
    )


def finished(layout: Layout, row: LiteralString = "") -> list[tuple[str, sql.Composable]]:
    """The columns of the public table that are written, and their values over a ``row`` of the state."""
    columns: list[tuple[Column, sql.Composable]] = [(column, column.of(row)) for column in layout.by]
    columns += [(column, _span(layout, column, row)) for column in layout.span]
    for measure in layout.table.measures:
        for name, type_ in finished_columns(measure):
            columns.append((Column(name, type_), finish(measure, name, row)))
    return [(column.name, published(column, value)) for column, value in columns]


def _span(layout: Layout, column: Column, row: LiteralString) -> sql.Composable:
    if column.name == "window_end":
        return sql.SQL("({} + {})").format(layout.span[0].of(row), sql.Literal(layout.table.window.size))
    return column.of(row)


def session_merges(layout: Layout) -> list[sql.Composable]:
    """``column = …`` for each measure of the session ``t``, which a piece (``excluded``) continues."""
    return [
        merged
        for measure in layout.table.measures
        for merged in (
            _funnel_merges(measure)
            if measure.kind == "funnel"
            else (merge(column, session=True) for column in state_columns(measure))
        )
    ]


def _funnel_follows(measure: Measure) -> sql.Composed:
    """Whether the staged piece of a funnel comes after everything in the row, and fits into it."""
    return sql.SQL(
        "excluded.session_start > t.session_end AND "
        "coalesce(octet_length(t.{0}), 0) + coalesce(octet_length(excluded.{0}), 0) <= {1}"
    ).format(sql.Identifier(f"{measure.name}__steps"), sql.Literal(MAX_STEP_EVENTS_BYTES))


def _funnel_merges(measure: Measure) -> list[sql.Composable]:
    """Go on from the step the row has reached (``onward``), or start with the piece where it has none."""
    step = sql.Identifier(f"{measure.name}_step")
    count = len(measure.steps)
    onward = [
        sql.SQL("excluded.{}[(t.{} - 1) * {} + {}]").format(
            sql.Identifier(f"{measure.name}__onward"), step, sql.Literal(count), sql.Literal(number)
        )
        for number in range(1, count + 1)
    ]
    times = [sql.Identifier(name) for name, _ in funnel_columns(measure)[1:]]
    moved = [
        sql.SQL(
            "{0} = CASE WHEN coalesce(t.{1}, 0) = 0 THEN excluded.{0} ELSE coalesce(t.{0}, {2}) END"
        ).format(at, step, next_)
        for at, next_ in zip(times, onward, strict=True)
    ]
    reached = sql.SQL(
        "{0} = CASE WHEN coalesce(t.{0}, 0) = 0 THEN excluded.{0} ELSE t.{0} + num_nonnulls({1}) END"
    ).format(step, _COMMA.join(onward))
    steps = sql.SQL("{0} = nullif(concat(t.{0}, excluded.{0}), '')").format(
        sql.Identifier(f"{measure.name}__steps")
    )
    return [reached, *moved, steps]


def _replace(column: sql.Identifier) -> sql.Composed:
    return sql.SQL("{0} = excluded.{0}").format(column)


def merge(column: StateColumn, *, session: bool = False) -> sql.Composed:
    """``column = …``: the state of the row (``t``) merged with the staged one (``excluded``).

    Of a ``session``, spans come before orders: nearly every piece comes after all that the row has seen.
    """
    name = sql.Identifier(column.name)
    match column.merge:
        case Merge.ADD:
            limit = INTEGER_LIMIT if column.type.is_integer() else FLOAT_LIMIT
            return sql.SQL(
                "{0} = CASE WHEN t.{0} IS NULL THEN excluded.{0} WHEN excluded.{0} IS NULL THEN t.{0} "
                "ELSE least(greatest(t.{0} + excluded.{0}, {1}), {2}) END"
            ).format(name, sql.Literal(-limit), sql.Literal(limit))
        case Merge.LEAST:
            return sql.SQL("{0} = least(t.{0}, excluded.{0})").format(name)
        case Merge.GREATEST:
            return sql.SQL("{0} = greatest(t.{0}, excluded.{0})").format(name)
        case Merge.FIRST | Merge.LAST:
            value = column.name.removesuffix("__at").removesuffix("__position")
            order = [
                sql.Identifier(f"{value}__at"),
                sql.Identifier(f"{value}__position"),
                sql.Identifier(value),
            ]
            if column.merge is Merge.FIRST:
                wins = sql.SQL("({new}) < ({old})")
                if session:
                    wins = sql.SQL("(excluded.session_start <= t.session_end AND ({new}) < ({old}))")
            else:
                wins = sql.SQL("({new}) > ({old})")
                if session:
                    wins = sql.SQL(
                        "(excluded.session_start > t.session_end AND excluded.{value} IS NOT NULL) OR ({new}) > ({old})"
                    )
            return sql.SQL(
                "{name} = CASE WHEN t.{value} IS NULL OR {wins} THEN excluded.{name} ELSE t.{name} END"
            ).format(
                name=name,
                value=sql.Identifier(value),
                wins=wins.format(
                    value=sql.Identifier(value),
                    new=_COMMA.join(sql.SQL("excluded.{}").format(part) for part in order),
                    old=_COMMA.join(sql.SQL("t.{}").format(part) for part in order),
                ),
            )
        case Merge.REPLACE | Merge.VALUES | Merge.STEPS:
            return _replace(name)
