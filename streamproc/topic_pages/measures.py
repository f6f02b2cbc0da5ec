"""The measures of a table: which kind fits which column, and the type each comes out as."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from streamproc.quantities import Invalid, shown
from streamproc.tables.measures import funnel_columns, state_columns
from streamproc.topic_pages import names, reader
from streamproc.topic_pages.columns import Columns, named
from streamproc.topic_pages.reader import Reader
from streamproc.topology import Measure

#: More steps than a funnel anyone reads has.
MOST_STEPS = 32


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of measure: the columns it takes (in words, and as a test) and its type for a column's type.

    ``precision``: bounds and default of the sketch's size, for those that have one.
    """

    takes: str
    fits: Callable[[pl.DataType], bool]
    type: Callable[[pl.DataType], pl.DataType]
    precision: tuple[int, int, int] | None = None


def _any(dtype: pl.DataType) -> bool:
    return True


def _ordered(dtype: pl.DataType) -> bool:
    return dtype.is_numeric() or dtype.is_temporal()


def _number(dtype: pl.DataType) -> bool:
    return dtype.is_numeric()


def _same(dtype: pl.DataType) -> pl.DataType:
    return dtype


def _count(dtype: pl.DataType) -> pl.DataType:
    return pl.Int64()


def _double(dtype: pl.DataType) -> pl.DataType:
    return pl.Float64()


def _total(dtype: pl.DataType) -> pl.DataType:
    return pl.Int64() if dtype.is_integer() else pl.Float64()


#: Measures of a column. ``count`` and ``funnel`` measure rows and are not here. ``precision`` within what
#: Apache DataSketches takes: HyperLogLog's lg_k 4 to 21; KLL's k up to 65,535, from 32, below which the
#: rank error passes 7 %. :mod:`streamproc.tables.sketches` states the errors.
COLUMN_KINDS = {
    "sum": Kind("a number", _number, _total),
    "min": Kind("a number, a date or a moment", _ordered, _same),
    "max": Kind("a number, a date or a moment", _ordered, _same),
    "avg": Kind("a number", _number, _double),
    "first": Kind("any column", _any, _same),
    "last": Kind("any column", _any, _same),
    "distinct": Kind("any column", _any, _count),
    "approx_distinct": Kind("any column", _any, _count, (4, 21, 12)),
    "approx_percentile": Kind("a number", _number, _double, (32, 65_535, 200)),
}
KINDS = ("count", *COLUMN_KINDS, "funnel")


def finished_columns(measure: Measure) -> dict[str, pl.DataType]:
    """A measure's columns in a finished row: one of its name; a funnel's last step and each step's moment."""
    if measure.kind == "funnel":
        return dict(funnel_columns(measure))
    return {measure.name: measure.type}


def stored_columns(measure: Measure) -> list[str]:
    """Every column a measure takes in its table, those of its unfinished state (``views__sum``) included."""
    return list(
        dict.fromkeys([*finished_columns(measure), *(state.name for state in state_columns(measure))])
    )


def read_measure(name: str, table: Reader, columns: Columns, window: str) -> Measure | None:
    """One measure; ``None`` when it is wrong. ``window``: the kind of the table's window."""
    before = len(table.mistakes.found)
    kind = table.required(
        "kind", reader.one_of(KINDS, "kind of measure"), f"Write kind = one of {', '.join(KINDS)}"
    )
    column, dtype, precision = _read_column(kind, table, columns)
    measure = Measure(
        name=name,
        kind=kind or "",
        type=dtype or pl.Int64(),
        column=column,
        where=columns.condition(table, "where"),
        at=_read_at(kind, table),
        precision=precision,
        steps=_read_funnel(kind, table, columns, window),
        comment=table.optional("comment", reader.text, ""),
    )
    table.finish()
    return measure if len(table.mistakes.found) == before and dtype is not None else None


def _read_column(
    kind: str | None, table: Reader, columns: Columns
) -> tuple[str | None, pl.DataType | None, int]:
    """The column, the measure's type, and the precision of its sketch."""
    column = table.optional("column", reader.text, None)
    rule = COLUMN_KINDS.get(kind or "")
    bounds = rule.precision if rule and rule.precision else (4, 21, 12)
    precision = table.optional("precision", reader.whole(bounds[0], bounds[1]), bounds[2])
    if kind is None:
        return column, None, precision
    if "precision" in table and (rule is None or rule.precision is None):
        table.mistake("precision", f"has no meaning for {kind}", "Remove it")
    if rule is None:
        if "column" in table:
            fix = f'Remove it; to count rows that have one, write where = "{column} is not null"'
            table.mistake(
                "column",
                f"has no meaning for {kind}, which counts rows",
                fix if kind == "count" else "Remove it",
            )
        return None, pl.Int64() if kind == "count" else pl.Int32(), precision
    if "column" not in table:
        table.mistake("column", "is missing", f"Name the column: {rule.takes}")
    dtype = columns.known(table, "column", column)
    if dtype is None:
        return column, None, precision
    if not rule.fits(dtype):
        table.mistake(
            "column", f"{column!r} is {named(dtype)}, and {kind} takes {rule.takes}", _other_kind(dtype)
        )
    return column, rule.type(dtype), precision


def _other_kind(dtype: pl.DataType) -> str:
    if dtype == pl.Boolean():
        return 'Count the rows for which it is true: kind = "count" and where'
    return "Choose another column, or one of first, last, distinct and approx_distinct"


def _read_at(kind: str | None, table: Reader) -> float | None:
    at = table.optional("at", reader.fraction, None)
    if kind == "approx_percentile":
        if "at" not in table:
            table.mistake("at", "is missing", "Write at = 0.95 for the 95th percentile")
    elif "at" in table and kind is not None:
        table.mistake("at", f"has no meaning for {kind}", "Remove it")
    return at


def _read_funnel(
    kind: str | None, table: Reader, columns: Columns, window: str
) -> tuple[tuple[str, str], ...]:
    steps = table.optional("steps", _steps, ())
    if kind != "funnel":
        if "steps" in table and kind is not None:
            table.mistake("steps", f"has no meaning for {kind}", 'Remove them, or write kind = "funnel"')
        return ()
    if window and window != "session":
        fix = 'Give the table window = { kind = "session", key = "…" }'
        table.mistake("kind", f"a funnel needs a session window, not a {window} one", fix)
    if "where" in table:
        table.mistake(
            "where", "has no meaning for a funnel", "Write it into the steps' conditions, or at the table"
        )
    if "steps" not in table:
        table.mistake("steps", "is missing", 'Write steps = [["seen", "SQL condition"], ["bought", "…"]]')
    for index, (_, sql) in enumerate(steps):
        at_step = Reader({"1": sql}, f"{table.at('steps')}[{index}]", table.mistakes)
        columns.condition(at_step, "1")
    return steps


def _steps(value: object) -> tuple[tuple[str, str], ...]:
    fix = 'Write [["seen", "SQL condition"], ["bought", "SQL condition"]]'
    if not isinstance(value, list) or not 2 <= len(value) <= MOST_STEPS:
        raise Invalid(f"{shown(value)} is not a list of 2 to {MOST_STEPS} steps", fix)
    steps: list[tuple[str, str]] = []
    for step in value:
        match step:
            case [str(name), str(sql)]:
                names.identifier("step")(name)
                steps.append((name, sql))
            case _:
                raise Invalid(f"{shown(step)} is not a name and a condition", fix)
    if len({name for name, _ in steps}) < len(steps):
        raise Invalid("two steps have the same name", "Give each step its own name")
    return tuple(steps)
