"""The columns known at one point of a page, and SQL expressions checked against them."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl
from polars.exceptions import PolarsError

from streamproc.errors import ExpressionError
from streamproc.topic_pages.reader import Reader, suggestion, text
from streamproc.transform.expressions import compile_sql

#: Types a derived column may have: each has one Parquet and one PostgreSQL counterpart, Spark's included
#: (which has no unsigned integers).
_STORED: tuple[pl.DataType, ...] = (
    pl.String(),
    pl.Boolean(),
    *(pl.Int8(), pl.Int16(), pl.Int32(), pl.Int64()),
    *(pl.Float32(), pl.Float64()),
    pl.Date(),
    pl.Datetime("us", "UTC"),
)


@dataclass(slots=True)
class Columns:
    """Column → type, in order.

    ``complete`` is false after a mistake that leaves columns out: a name that is not here may then be right,
    and reporting it would bury the mistake that caused it.
    """

    types: dict[str, pl.DataType]
    complete: bool = True

    def known(self, reader: Reader, key: str, name: str | None) -> pl.DataType | None:
        """The type of the column that ``key`` names; ``None`` when it does not exist, which is noted."""
        if name is None:
            return None
        if name not in self.types and self.complete:
            reader.mistake(key, f"there is no column {name!r}", suggestion(name, self.types, ""))
        return self.types.get(name)

    def condition(self, reader: Reader, key: str) -> str | None:
        """The SQL condition at ``key``, if there is one."""
        sql = reader.optional(key, text, None)
        dtype = self.expression(reader, key, sql)
        if dtype is not None and dtype != pl.Boolean():
            reader.mistake(
                key, f"it gives {named(dtype)}, not true or false", "Write a comparison, such as path = '/'"
            )
        return sql

    def expression(self, reader: Reader, key: str, sql: str | None) -> pl.DataType | None:
        """The type of a SQL expression; ``None`` when there is none, or it is wrong, which is noted."""
        if sql is None:
            return None
        try:
            return compile_sql(sql, self.types).type
        except ExpressionError as error:
            if self.complete or not self._reads_unknown(sql):
                fix = (
                    "Write a SQL expression over the columns of one event (docs/topic-files.md, Expressions)"
                )
                reader.mistake(key, error.problem, fix)
            return None

    def _reads_unknown(self, sql: str) -> bool:
        try:
            return any(name not in self.types for name in pl.sql_expr(sql).meta.root_names())
        except PolarsError:
            return False


def can_be_stored(reader: Reader, key: str, dtype: pl.DataType) -> bool:
    """Whether a derived column may have the type; if not, that is noted."""
    if dtype in _STORED:
        return True
    if dtype.is_integer():
        reader.mistake(
            key, "it gives an unsigned number, which Spark and PostgreSQL lack", "Write cast(… as bigint)"
        )
    else:
        reader.mistake(key, f"it gives {named(dtype)}, which cannot be stored", "Cast it: cast(… as text)")
    return False


def named(dtype: pl.DataType) -> str:
    """A type in the words of a topic page."""
    if dtype.is_integer():
        return "a whole number"
    if dtype.is_numeric():
        return "a number"
    words = {pl.String: "text", pl.Boolean: "true or false", pl.Date: "a date", pl.Datetime: "a moment"}
    return words.get(type(dtype), str(dtype).lower())
