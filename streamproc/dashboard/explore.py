"""Questions of the page *Explore*: from a viewer's choice to SQL.

Names come from the catalog by way of the :class:`~streamproc.dashboard.choice.Choice`, values travel as parameters.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from psycopg import sql

from streamproc.dashboard.catalog import Column
from streamproc.dashboard.choice import Choice
from streamproc.dashboard.reading import Question

#: Rows of a page of the table.
PAGE = 25
#: Lines of a chart, bars of one, points of it: six lines have 8,640 minutes in a day.
SERIES, BARS, POINTS = 6, 15, 9_000

_COMMA = sql.SQL(", ")


def rows(choice: Choice, after: str | None = None, limit: int = PAGE) -> Question:
    """``limit`` rows and one, to see whether there are more, in the chosen order behind ``after``.

    ``after`` is what :func:`cursor` made of the last row before; a row is found by its values, not by its
    number, so that new rows move nothing.
    """
    parameters: dict[str, object] = {**_span(choice), "limit": limit + 1}
    where: sql.Composable = sql.SQL("")
    order = ordered_by(choice)
    if after is not None and (values := _read_cursor(after, len(order))) is not None:
        where = sql.SQL(" WHERE ") + _behind(choice, values, parameters)
    statement = sql.SQL("SELECT * FROM ({}) AS grouped{} ORDER BY {} LIMIT %(limit)s").format(
        _grouped(choice), where, _COMMA.join(_sorted(choice, name, down) for name, down in order)
    )
    return Question(statement, parameters, f"read {choice.table.name}")


def everything(choice: Choice, limit: int) -> Question:
    """The rows for a download, in the chosen order."""
    return rows(choice, None, limit)


def cursor(choice: Choice, row: Sequence[Any]) -> str:
    """Where ``row`` of an answer stands."""
    values = dict(zip(choice.columns, row, strict=True))
    packed = [_packed(values[name]) for name, _ in ordered_by(choice)]
    return base64.urlsafe_b64encode(json.dumps(packed).encode()).decode()


#: Kinds of values in a cursor, and the type that PostgreSQL reads them as, by its name in the catalog.
_KINDS = {"number": "numeric", "time": "timestamptz", "date": "date", "flag": "bool", "text": "text"}


def _packed(value: Any) -> list[str] | None:
    match value:
        case None:
            return None
        case bool():
            return ["flag", str(value).lower()]
        case int() | float() | Decimal():
            return ["number", str(value)]
        case datetime():
            return ["time", value.isoformat()]
        case date():
            return ["date", value.isoformat()]
        case _:
            return ["text", str(value)]


def _read_cursor(text: str, length: int) -> list[tuple[str, str] | None] | None:
    """Pairs of type and value; ``None`` for what is no cursor of that many columns."""
    try:
        values = json.loads(base64.urlsafe_b64decode(text))
        if len(values) != length:
            return None
        return [None if v is None else (_KINDS[v[0]], str(v[1])) for v in values]
    except (ValueError, TypeError, LookupError):
        return None


def ordered_by(choice: Choice) -> list[tuple[str, bool]]:
    """Columns to sort by and whether downwards; the keys behind the chosen one make it a total order."""
    rest = [(key, key == choice.table.start) for key in choice.keys if key != choice.order]
    return [(choice.order, choice.descending), *rest]


def _sorted(choice: Choice, name: str, down: bool) -> sql.Composed:
    direction = sql.SQL("DESC" if down else "ASC")
    return sql.SQL("{} {} NULLS LAST").format(_compared(choice, name), direction)


def _compared(choice: Choice, name: str) -> sql.Composable:
    """SQL: a column of an answer. Texts are compared by their code points, as :class:`~.groups.Whole` does it, whatever
    the language of the database.
    """
    column = sql.Identifier(name)
    return sql.SQL('{} COLLATE "C"').format(column) if name in choice.table.texts else column


def _behind(
    choice: Choice, values: Sequence[tuple[str, str] | None], parameters: dict[str, object]
) -> sql.Composable:
    """SQL: rows that stand behind the values; nulls are last."""
    ways: list[sql.Composable] = []
    equal: list[sql.Composable] = []
    for number, ((name, down), value) in enumerate(zip(ordered_by(choice), values, strict=True)):
        column = _compared(choice, name)
        if value is None:
            equal.append(sql.SQL("{} IS NULL").format(column))
            continue
        kind, parameters[f"after_{number}"] = value
        if name in choice.table.singles:
            kind = "float4"
        place = sql.SQL("{}::{}").format(sql.Placeholder(f"after_{number}"), sql.Identifier(kind))
        beyond = sql.SQL("({0} {1} {2} OR {0} IS NULL)").format(column, sql.SQL("<" if down else ">"), place)
        ways.append(sql.SQL("({})").format(sql.SQL(" AND ").join([*equal, beyond])))
        equal.append(sql.SQL("{} = {}").format(column, place))
    return sql.SQL("({})").format(sql.SQL(" OR ").join(ways)) if ways else sql.SQL("false")


def _grouped(choice: Choice) -> sql.Composed:
    selected: list[sql.Composable] = [
        *(sql.SQL("{} AS {}").format(_key(choice, key), sql.Identifier(key)) for key in choice.keys),
        *(
            sql.SQL("{} AS {}").format(
                value(choice.table.measure(name), merges=choice.merges), sql.Identifier(name)
            )
            for name in choice.measures
        ),
    ]
    grouping: sql.Composable = sql.SQL("")
    if choice.merges and choice.keys:
        grouping = sql.SQL(" GROUP BY ") + _COMMA.join(_key(choice, key) for key in choice.keys)
    return sql.SQL("SELECT {} FROM {} WHERE {}{}").format(
        _COMMA.join(selected), _table(choice), _in_range(choice), grouping
    )


def value(column: Column, *, merges: bool) -> sql.Composable:
    """SQL: a measure over rows of the table, or of one row when nothing ``merges``."""
    name = sql.Identifier(column.column)
    if column.step:
        return sql.SQL("count(*) FILTER (WHERE {} >= {})").format(name, sql.Literal(column.step))
    if not column.column:
        return sql.SQL("count(*)" if merges else "1::bigint")
    return sql.SQL("{}({})").format(sql.SQL(column.fold), name) if merges else name


def _table(choice: Choice) -> sql.Identifier:
    return sql.Identifier(choice.table.stream, choice.table.name)


def _key(choice: Choice, key: str) -> sql.Composable:
    if key != choice.table.start:
        return sql.Identifier(key)
    start = sql.Identifier(choice.table.start)
    if not choice.merges:
        return start
    return sql.SQL("date_bin({} * interval '1 microsecond', {}, 'epoch'::timestamptz)").format(
        sql.Literal(choice.step), start
    )


def _span(choice: Choice) -> dict[str, object]:
    return {"since": choice.since, "until": choice.until}


def _in_range(choice: Choice) -> sql.Composable:
    """SQL: the rows of the range. Where windows overlap and several become one, only every so many are taken.

    A window of the range is one that starts in it.
    """
    start = sql.Identifier(choice.table.start)
    within = sql.SQL("{0} >= %(since)s AND {0} < %(until)s").format(start)
    window = choice.table.table.window
    if window.kind != "hopping" or choice.step == window.hop:
        return within
    apart = sql.SQL(" AND {0} = date_bin({1} * interval '1 microsecond', {0}, 'epoch'::timestamptz)")
    return within + apart.format(start, sql.Literal(window.size))


def chart(choice: Choice) -> Question:
    """The chart's rows: ``time`` (with a grain), dimensions, the charted measure.

    With a grain, of the biggest groups only, and the newest :data:`POINTS`; without, the biggest groups themselves.
    """
    assert choice.charted is not None, "there is nothing to draw"
    measure = value(choice.charted, merges=True)
    dimensions = [sql.Identifier(name) for name in choice.by]
    parameters: dict[str, object] = {**_span(choice), "points": POINTS, "series": SERIES, "bars": BARS}
    within = _in_range(choice)
    table = _table(choice)
    doing = f"draw {choice.table.name}"
    if not choice.grain:
        statement = sql.SQL(
            "SELECT {columns} FROM {table} WHERE {within}{group} ORDER BY {measure} DESC NULLS LAST LIMIT %(bars)s"
        ).format(
            columns=_COMMA.join([*dimensions, measure]),
            table=table,
            within=within,
            group=sql.SQL(" GROUP BY ") + _COMMA.join(dimensions) if dimensions else sql.SQL(""),
            measure=measure,
        )
        return Question(statement, parameters, doing)
    time = sql.SQL("date_bin({} * interval '1 microsecond', {}, 'epoch'::timestamptz)").format(
        sql.Literal(choice.step), sql.Identifier(choice.table.start)
    )
    if not choice.by:
        statement = sql.SQL(
            "SELECT {time}, {measure} FROM {table} WHERE {within} GROUP BY 1 ORDER BY 1 DESC LIMIT %(points)s"
        ).format(time=time, measure=measure, table=table, within=within)
        return Question(statement, parameters, doing)
    # One pass over the rows; what comes second is over the groups, which are few.
    same = sql.SQL(" AND ").join(
        sql.SQL("g.{0} IS NOT DISTINCT FROM top.{0}").format(dimension) for dimension in dimensions
    )
    fold = choice.charted.fold
    statement = sql.SQL(
        "WITH g AS MATERIALIZED (SELECT {time} AS bin, {names}, {measure} AS value FROM {table} WHERE {within}"
        " GROUP BY 1, {names}), top AS (SELECT {names} FROM g GROUP BY {names}"
        " ORDER BY {fold}(value) DESC NULLS LAST LIMIT %(series)s)"
        " SELECT g.bin, {mine}, g.value FROM g JOIN top ON {same} ORDER BY 1 DESC LIMIT %(points)s"
    ).format(
        names=_COMMA.join(dimensions),
        mine=_COMMA.join(sql.SQL("g.{}").format(d) for d in dimensions),
        table=table,
        within=within,
        measure=measure,
        time=time,
        same=same,
        fold=sql.SQL("sum" if fold == "count" else fold),
    )
    return Question(statement, parameters, doing)
