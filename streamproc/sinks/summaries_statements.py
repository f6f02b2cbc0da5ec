"""The SQL that merges a delta into a table: the algebra of :mod:`streamproc.tables.measures`, in the server.

A delta lies in a temporary table. What it merges with is the state (or, where a table has none, the public
table); the finished values of exactly the rows it touched are copied to the public table. Rows are touched in
the order of their key, by every statement of every worker, so workers wait for each other but never in a
circle: see :mod:`streamproc.sinks.summaries_known`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import LiteralString

from psycopg import sql

from streamproc.sinks.summaries_layout import (
    Column,
    Layout,
    finish,
    finished_columns,
    public_type,
    published,
    readable,
    stored_type,
    trusted,
)
from streamproc.tables.measures import FLOAT_LIMIT, INTEGER_LIMIT, Merge, StateColumn
from streamproc.tables.sketches import SKETCHED

_COMMA = sql.SQL(", ")


def write_public(
    layout: Layout,
    *,
    source: sql.Composable = sql.Identifier("merged"),  # noqa: B008 - immutable
    where: sql.Composable = sql.SQL(""),  # noqa: B008 - immutable
) -> sql.Composed:
    """Write the finished values of states to the public table: its rows come in their order and under their locks."""
    return sql.SQL(
        "INSERT INTO {public} AS t ({names}) SELECT {values} FROM {source} {where} "
        "ON CONFLICT ({conflict}) DO UPDATE SET {update}"
    ).format(
        public=layout.public,
        names=_COMMA.join(sql.Identifier(name) for name, _ in finished(layout)),
        values=_COMMA.join(value for _, value in finished(layout)),
        source=source,
        where=where,
        conflict=layout.conflict(state=False),
        update=_COMMA.join(_replace(column.id) for column in [layout.span[1], *layout.measures]),
    )


def finished(layout: Layout, row: LiteralString = "") -> list[tuple[str, sql.Composable]]:
    """The columns of the public table that are written, and their values over a ``row`` of the state."""
    columns: list[tuple[Column, sql.Composable]] = [(column, column.of(row)) for column in layout.by]
    columns += [(column, _span(layout, column, row)) for column in layout.span]
    for measure in layout.table.measures:
        for name, type_ in finished_columns(measure):
            columns.append((Column(name, type_), finish(measure, name, row)))
    return [(column.name, published(column, value)) for column, value in columns]


def shown(layout: Layout) -> sql.Composed:
    """The columns of a row of the public table, to be selected from that alone. Derived ones are computed as this page
    says: a newer one may have taken their columns away, or have changed them.
    """
    derived = [
        sql.SQL("({})::{} AS {}").format(trusted(each.sql), public_type(each.type), sql.Identifier(each.name))
        for each in layout.table.derived
    ]
    return _COMMA.join([*(each.id for each in layout.columns if each not in layout.derived), *derived])


def reopened(layout: Layout, row: LiteralString) -> list[tuple[str, sql.Composable]]:
    """The columns of the state that a finished ``row`` of the public table stands for, such that counts, sums and
    extremes go on. All else cannot, and stays as it is: first and last values are from before and after the window, an
    average is a sum of no values, an estimate has no sketch (see :func:`merged`).
    """
    start, end = (readable(column, row) for column in layout.span)
    before, after = sql.SQL("{} - 1").format(start), end
    found: list[tuple[str, sql.Composable]] = []
    for measure in layout.table.measures:
        name, column = measure.name, Column(measure.name, measure.type)
        value = sql.SQL("{}::{}").format(readable(column, row), stored_type(column.type))
        match measure.kind:
            case "avg":
                found += [(f"{name}__sum", value), (f"{name}__count", sql.SQL("0"))]
            case "first" | "last":
                at = before if measure.kind == "first" else after
                found += [(name, value), (f"{name}__at", at), (f"{name}__position", sql.SQL("0"))]
            case kind:
                found.append((name, value))
                if kind in SKETCHED:
                    found.append((f"{name}__sketch", sql.SQL("NULL::bytea")))
    return found


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
    """The state of the row (``t``) merged with the staged one (``excluded``). What is :func:`reopened` and cannot go on
    stays.

    Of a ``session``, spans come before orders: nearly every piece comes after all that the row has seen.
    """
    name = sql.Identifier(column.name)
    match column.merge:
        case Merge.ADD:
            return _added(column)
        case Merge.LEAST:
            return sql.SQL("least(t.{0}, excluded.{0})").format(name)
        case Merge.GREATEST:
            return sql.SQL("greatest(t.{0}, excluded.{0})").format(name)
        case Merge.FIRST | Merge.LAST:
            return _ordered(column, session=session)
        case Merge.REPLACE | Merge.VALUES:
            return _sketched(column)
        case Merge.STEPS:
            return sql.SQL("excluded.{}").format(name)


def _added(column: StateColumn) -> sql.Composed:
    limit = INTEGER_LIMIT if column.type.is_integer() else FLOAT_LIMIT
    name = sql.Identifier(column.name)
    total = sql.SQL(
        "CASE WHEN t.{0} IS NULL THEN excluded.{0} WHEN excluded.{0} IS NULL THEN t.{0} "
        "ELSE least(greatest(t.{0} + excluded.{0}, {1}), {2}) END"
    ).format(name, sql.Literal(-limit), sql.Literal(limit))
    measure, _, part = column.name.partition("__")
    if not part:
        return total
    return sql.SQL("CASE WHEN t.{1} = 0 AND t.{2} IS NOT NULL THEN t.{0} ELSE {3} END").format(
        name, sql.Identifier(f"{measure}__count"), sql.Identifier(f"{measure}__sum"), total
    )


def _sketched(column: StateColumn) -> sql.Composed:
    """Both have been merged before, unless the row has an estimate and no sketch."""
    measure, _, part = column.name.partition("__")
    estimate, sketch = sql.Identifier(measure), sql.Identifier(f"{measure}__sketch")
    if part:
        kept = sql.SQL("CASE WHEN t.{1} IS NULL AND t.{0} IS NOT NULL THEN NULL ELSE excluded.{1} END")
    else:
        kept = sql.SQL("CASE WHEN t.{1} IS NULL THEN coalesce(t.{0}, excluded.{0}) ELSE excluded.{0} END")
    return kept.format(estimate, sketch)


def _ordered(column: StateColumn, *, session: bool) -> sql.Composed:
    value = column.name.removesuffix("__at").removesuffix("__position")
    order = [sql.Identifier(f"{value}__at"), sql.Identifier(f"{value}__position"), sql.Identifier(value)]
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
    return sql.SQL("CASE WHEN t.{value} IS NULL OR {wins} THEN excluded.{name} ELSE t.{name} END").format(
        name=sql.Identifier(column.name),
        value=sql.Identifier(value),
        wins=wins.format(
            value=sql.Identifier(value),
            new=_COMMA.join(sql.SQL("excluded.{}").format(part) for part in order),
            old=_COMMA.join(sql.SQL("t.{}").format(part) for part in order),
        ),
    )
