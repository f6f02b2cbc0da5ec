"""SQL expressions of a topic page (``drop``, ``where``, ``derive``), compiled to polars and checked.

The dialect is polars' own: ``and or not = <> < in between like case coalesce cast upper split_part`` and so
on. An expression must be a function of one row: the same record must get the same answer whatever
batch it arrives in, or a replay would disagree with the stream. Aggregates, window functions, subqueries
and clocks are therefore refused when the page is loaded, not met at run time.

One difference from other SQL: ``x is not true`` of null is null (polars 2.1); ``not coalesce(x, false)`` is
what it should mean.
"""

from __future__ import annotations

import difflib
import json
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, date, datetime
from typing import Any, NamedTuple

import polars as pl
from polars.datatypes import IntegerType
from polars.exceptions import PanicException, PolarsError

from streamproc.errors import EnrichmentFailed, ExpressionError

__all__ = ["Compiled", "ExpressionError", "compile_sql", "named", "within_calendar"]

#: A string literal or a quoted identifier: words inside it are not SQL.
_QUOTED = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"")
_WORD = re.compile(r"(?<![\w.])([a-z_]\w*)(\s*\()?", re.IGNORECASE)

#: Functions of one row. A list of what is allowed, because polars cannot be asked: in 2.1
#: ``Expr.meta.is_row_separable`` is true for ``sum(x) over (...)`` and for ``x > count(*)``.
FUNCTIONS = frozenset(
    [
        "abs",
        "acos",
        "asin",
        "atan",
        "atan2",
        "bit_and",
        "bit_count",
        "bit_length",
        "bit_not",
        "bit_or",
        "bit_xor",
        "cast",
        "cbrt",
        "ceil",
        "ceiling",
        "char_length",
        "character_length",
        "coalesce",
        "concat",
        "concat_ws",
        "cos",
        "date",
        "date_part",
        "datetime",
        "degrees",
        "div",
        "ends_with",
        "exp",
        "extract",
        "floor",
        "greatest",
        "if",
        "ifnull",
        "initcap",
        "least",
        "left",
        "length",
        "ln",
        "log",
        "log10",
        "log1p",
        "log2",
        "lower",
        "ltrim",
        "mod",
        "normalize",
        "nullif",
        "octet_length",
        "pi",
        "pow",
        "power",
        "radians",
        "regexp_like",
        "replace",
        "reverse",
        "right",
        "round",
        "rtrim",
        "sign",
        "sin",
        "split_part",
        "sqrt",
        "starts_with",
        "strftime",
        "string_to_array",
        "strptime",
        "substr",
        "substring",
        "tan",
        "time",
        "timestamp",
        "trim",
        "try_cast",
        "upper",
    ]
)
#: Functions of one row all the same, but not what they are elsewhere: to polars ``strpos(path, '?')`` is no expression,
#: and the position of ``'.'`` is 1 in whatever is not empty.
_BY_REGULAR_EXPRESSION = frozenset(["position", "strpos"])
#: Keywords that may stand before a parenthesis.
_BEFORE_PARENTHESIS = frozenset(
    [
        "and",
        "any",
        "between",
        "by",
        "case",
        "else",
        "end",
        "escape",
        "from",
        "ilike",
        "in",
        "is",
        "like",
        "not",
        "on",
        "or",
        "regexp",
        "rlike",
        "similar",
        "then",
        "to",
        "when",
        "xor",
    ]
)
_CLOCKS = frozenset(
    ["now", "today", "current_timestamp", "current_date", "current_time", "localtime", "localtimestamp"]
)
_SEVERAL_ROWS = frozenset(["over", "select", "with", "values", "exists"])

#: Whole numbers of every size, so that whatever they are divided by one of them is a day that no calendar has: those
#: of which polars can write no text lie between 2**27 and 2**31 days.
_WHOLE = [0, 1, -1, *(sign * 2**power for power in range(3, 63, 4) for sign in (1, -1)), 2**63 - 1, -(2**63)]
#: Values that make an expression fail while loading if it could fail on data: a text that is no number, no
#: date and no regular expression; zero; the ends of the integers.
_AWKWARD: dict[type[pl.DataType] | pl.DataType, list[Any]] = {
    pl.String: ["(", "", "0", "-1", str(-(2**63)), None],
    pl.Boolean: [True, False, None],
    pl.Float64: [0.0, 1.0, -1.0, 1e300, -1e300, None],
    pl.Int64: [*_WHOLE, None],
    pl.Int32: [0, 1, -1, 2**31 - 1, -(2**31), None],
    pl.Int8: [0, 1, -1, 2**7 - 1, -(2**7), None],
    pl.Date: [date(1970, 1, 1), date.min, date.max, None],
    pl.Datetime: [
        *(datetime(year, 1, 1, tzinfo=UTC) for year in (1970, 1900)),
        datetime.max.replace(tzinfo=UTC),
        None,
    ],
}
#: A prime, and no fewer than any column has values: see :func:`_awkward`.
_VALUES = 37
_ROWS = _VALUES**2
_HINTS = {
    "conversion": "; use try_cast, which gives null",
    "out-of-range": "; bound the number first, as in case when n between 0 and 50000 then n end",
}

#: What PostgreSQL, Parquet's readers and Python all have of time.
_CALENDAR: dict[pl.DataType, tuple[date, date]] = {
    pl.Date(): (date.min, date.max),
    pl.Datetime("us", "UTC"): (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)),
}

#: No text has more characters or bytes: records are smaller by far.
_LONGEST_TEXT = 2**30
#: Without powers: whatever is not 64 bits wide is too narrow for them.
_RECKONING: dict[str, Callable[[int, int], int]] = {
    "Plus": operator.add,
    "Minus": operator.sub,
    "Mul": operator.mul,
}


class Compiled(NamedTuple):
    """An expression for ``frame.select``; the ``columns`` it reads, in order of use; its output ``type``."""

    expr: pl.Expr
    columns: tuple[str, ...]
    type: pl.DataType


def compile_sql(sql: str, columns: Mapping[str, pl.DataType]) -> Compiled:
    """Compile ``sql`` against a frame of ``columns``.

    Raises :class:`ExpressionError` when it does not parse, names a column that does not exist (near matches
    are listed), is not a function of one row, does not fit the columns' types, or could fail on some value
    (a ``cast`` of text to a number: ``try_cast`` gives null instead). A date or a moment that it would give outside
    the years 1 to 9999 is null.
    """
    _refuse_words(_QUOTED.sub("''", sql))
    try:
        expr = pl.sql_expr(sql)
        roots = tuple(dict.fromkeys(expr.meta.root_names()))
    except (PolarsError, PanicException) as error:
        raise ExpressionError(f"it does not parse: {_first_line(error)}") from None
    _refuse_unknown(roots, columns)
    dtype = _probe(expr, {name: columns[name] for name in roots})
    return Compiled(within_calendar(expr, dtype), roots, dtype)


def within_calendar(expr: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """``expr``, whose type is ``dtype``; a date or a moment outside the years 1 to 9999 is null."""
    if dtype not in _CALENDAR:
        return expr
    first, last = (pl.lit(end, dtype) for end in _CALENDAR[dtype])
    return pl.when(expr.is_between(first, last)).then(expr)


def _refuse_words(bare: str) -> None:
    """Refuse what the grammar would take but an expression over one event must not hold."""
    if not bare.strip():
        raise ExpressionError("the expression is empty")
    for word, parenthesis in _WORD.findall(bare):
        name = word.lower()
        if name in _CLOCKS:
            raise ExpressionError(f"'{word}' reads the clock; a replay would not agree with the stream")
        if name in _SEVERAL_ROWS:
            raise ExpressionError(f"'{word}' looks at other rows; an expression sees one event only")
        if parenthesis and name in _BY_REGULAR_EXPRESSION:
            raise ExpressionError(
                f"'{word}' takes what it looks for as a regular expression; use like, starts_with, split_part or"
                " regexp_like"
            )
        if parenthesis and name not in FUNCTIONS and name not in _BEFORE_PARENTHESIS:
            near = difflib.get_close_matches(name, FUNCTIONS, n=2, cutoff=0.75)
            raise ExpressionError(
                f"'{word}' is not a function of one event"
                + (f" (near: {', '.join(near)})" if near else "; aggregates belong in a table's measures")
            )


def _refuse_unknown(roots: tuple[str, ...], columns: Mapping[str, pl.DataType]) -> None:
    unknown = [name for name in roots if name not in columns]
    if not unknown:
        return
    problems = []
    for name in unknown:
        near = difflib.get_close_matches(name, list(columns), n=3)
        problems.append(f"there is no column '{name}'" + (f" (near: {', '.join(near)})" if near else ""))
    raise ExpressionError("; ".join(problems))


def _probe(expr: pl.Expr, columns: Mapping[str, pl.DataType]) -> pl.DataType:
    frame = pl.DataFrame([_awkward(*column, place) for place, column in enumerate(columns.items())])
    if not columns:
        frame = pl.DataFrame({"": pl.repeat(None, _ROWS, eager=True)})
    try:
        out = frame.lazy().select(expr.alias("answer")).collect()
        typed = out.height == _ROWS or not columns
        _range(expr, frame.lazy())
    except (PolarsError, PanicException) as error:
        problem = _first_line(error)
        hint = next((hint for sign, hint in _HINTS.items() if sign in problem), "")
        raise ExpressionError(f"it does not work on these columns: {problem}{hint}") from None
    if not typed:
        raise ExpressionError("it gives another number of rows than it was given")
    return out.schema["answer"]


def _range(expr: pl.Expr, frame: pl.LazyFrame) -> tuple[int, int] | None:
    """The least and the greatest whole number that ``expr`` may give; ``None`` if it gives something else.

    polars reckons in the type of what it is given and wraps around: 23 * 100 is -4 as an Int8, and ``length(x) - 5`` of
    a single character 4294967292. Raises :class:`ExpressionError` when a part of ``expr`` could come to that. Only
    64 bits are taken to be enough.
    """
    # The condition of a case is no whole number, and so not among these.
    parts = [part for each in reversed(expr.meta.pop()) if (part := _range(each, frame)) is not None]
    dtype = frame.select(answer=expr).collect_schema()["answer"]
    if not isinstance(dtype, IntegerType):
        return None
    least, greatest = pl.select(least=dtype.min(), greatest=dtype.max()).row(0)
    match json.loads(expr.meta.serialize(format="json")):
        case {"Literal": {"Dyn": {"Int": value}}}:
            least = greatest = value
        case {"Ternary": _}:
            least, greatest = min(low for low, _ in parts), max(high for _, high in parts)
        case {"Cast": _} if parts:
            least, greatest = max(parts[0][0], least), min(parts[0][1], greatest)
        case {"Function": {"function": {"StringExpr": "LenChars" | "LenBytes"}}}:
            least, greatest = 0, _LONGEST_TEXT
        case {"BinaryExpr": {"op": "Plus" | "Minus" as kind}} | {
            "Function": {"function": {"Sql": {"Binary": "Mul" as kind}} | {"Pow": kind}}
        } if len(parts) > 1 and dtype != pl.Int64():
            reckon = _RECKONING.get(kind)
            ends = [reckon(left, right) for left in parts[0] for right in parts[1]] if reckon else []
            if not ends or min(ends) < least or max(ends) > greatest:
                of = " and ".join(dict.fromkeys(expr.meta.root_names())) or "numbers"
                raise ExpressionError(
                    f"what it reckons with {of} may not fit its type ({least} to {greatest}); widen one of them, as"
                    " in cast(event_hour as bigint) * 100 or cast(length(path) as bigint) - 5"
                )
            least, greatest = min(ends), max(ends)
    return least, greatest


def _awkward(name: str, dtype: pl.DataType, place: int) -> pl.Series:
    """The column at a ``place`` of the frame that is tried: any value of it meets any of another in some row.

    Each round of rows moves a column on against the one before by one value more, and in a prime number of rounds any
    two columns come to stand in every way to each other.
    """
    values = _AWKWARD.get(dtype.base_type(), [None])
    numbers = [(row + place * round_) % _VALUES for round_ in range(_VALUES) for row in range(_VALUES)]
    found = [values[number % len(values)] for number in numbers]
    if isinstance(dtype, pl.Datetime):
        return pl.Series(name, found, dtype=pl.Datetime("us", "UTC")).cast(dtype)
    return pl.Series(name, found, dtype=dtype)


@contextmanager
def named(where: str) -> Iterator[None]:
    """What runs inside evaluates the expressions at ``where``: when they fail all the same, the error says so.

    Raises :class:`EnrichmentFailed`.
    """
    try:
        yield
    except (PolarsError, PanicException) as error:
        raise EnrichmentFailed(where, f"it fails on these events: {' '.join(str(error).split())}") from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
