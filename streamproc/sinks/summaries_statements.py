"""The SQL that merges a delta into a table: the algebra of :mod:`streamproc.tables.measures`, in the server.

A delta lies in a temporary table. What it merges with is the state (or, where a table has none, the public
table); the finished values of exactly the rows it touched are copied to the public table. Rows are touched in
the order of their key, by every statement of every worker, so workers wait for each other but never in a
circle; :mod:`streamproc.sinks.summaries_known` does so for all rows but those with a null in their key.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import LiteralString

from psycopg import sql

from streamproc.sinks.summaries_layout import Column, Layout, finish, finished_columns, published
from streamproc.tables.measures import (
    FLOAT_LIMIT,
    INTEGER_LIMIT,
    Merge,
    StateColumn,
)

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
            merges=assigned((c.name, merged(c)) for c in layout.state_columns),
        )
        return sql.SQL("WITH merged AS ({}) {}").format(state, write_public(layout))
    finished = {column.name for column in layout.measures}
    return write_public(
        layout,
        source=stage,
        update=assigned((c.name, merged(c)) for c in layout.state_columns if c.name in finished),
    )


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


def _replace(column: sql.Identifier) -> sql.Composed:
    return sql.SQL("{0} = excluded.{0}").format(column)


def assigned(values: Iterable[tuple[str, sql.Composable]]) -> sql.Composed:
    """``column = value, …``, to stand behind SET."""
    return _COMMA.join(sql.SQL("{} = {}").format(sql.Identifier(name), value) for name, value in values)


def merged(column: StateColumn, *, session: bool = False) -> sql.Composed:
    """The state of the row (``t``) merged with the staged one (``excluded``).

    Of a ``session``, spans come before orders: nearly every piece comes after all that the row has seen.
    """
    name = sql.Identifier(column.name)
    match column.merge:
        case Merge.ADD:
            limit = INTEGER_LIMIT if column.type.is_integer() else FLOAT_LIMIT
            return sql.SQL(
                "CASE WHEN t.{0} IS NULL THEN excluded.{0} WHEN excluded.{0} IS NULL THEN t.{0} "
                "ELSE least(greatest(t.{0} + excluded.{0}, {1}), {2}) END"
            ).format(name, sql.Literal(-limit), sql.Literal(limit))
        case Merge.LEAST:
            return sql.SQL("least(t.{0}, excluded.{0})").format(name)
        case Merge.GREATEST:
            return sql.SQL("greatest(t.{0}, excluded.{0})").format(name)
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
                "CASE WHEN t.{value} IS NULL OR {wins} THEN excluded.{name} ELSE t.{name} END"
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
            return sql.SQL("excluded.{}").format(name)
