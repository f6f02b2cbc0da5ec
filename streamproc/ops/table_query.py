"""A question about one table, from the parameters of a URL to SQL.

Every name in it comes from the topic page, every value is quoted by psycopg. Rows are in the order of the
table's unique index, so a page of them is read from the index, and the next page begins where the last one
ended, whatever was written in between (keyset continuation): no offset is ever counted off.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import polars as pl
from psycopg import sql

from streamproc.sinks.summaries_layout import Column, Layout, published, readable

#: Rows of an answer, unless the question says otherwise, and at most.
LIMIT, MOST = 1_000, 10_000

_UNIX = datetime(1970, 1, 1, tzinfo=UTC)
_KNOWN = frozenset({"from", "to", "order", "limit", "after", "null", "format"})
#: What the names of columns begin with that stand for a long text in the index.
_SHORT = "__short_"


class BadQuestion(ValueError):
    """A parameter that cannot be understood, or names what is not there; says which, and what there is."""


@dataclass(frozen=True, slots=True)
class Question:
    """Rows of one table.

    ``start``, ``end``: Unix microseconds; rows whose window (session) begins in ``[start, end)``.
    ``equal``: values of dimensions, any of which will do; ``null``: dimensions that must be null. ``after``:
    the index key of the last row that was given already.
    """

    layout: Layout
    start: int | None = None
    end: int | None = None
    equal: Mapping[str, Sequence[object]] | None = None
    null: frozenset[str] = frozenset()
    newest_first: bool = False
    limit: int = LIMIT
    after: tuple[object, ...] | None = None

    @property
    def columns(self) -> list[Column]:
        """What :meth:`query` selects: the table's columns; then, of text keys, what stands for a value too long
        for the index, null for all others."""
        return [*self.layout.columns, *(Column(_SHORT + key.name, pl.String()) for key in self._texts)]

    @property
    def _texts(self) -> list[Column]:
        return [key for key in self.layout.key if key.type == pl.String()]

    def query(self) -> sql.Composed:
        """One row more than ``limit``, which says whether there are more."""
        layout = self.layout
        short = [
            sql.SQL("CASE WHEN {0} IS DISTINCT FROM {1} THEN {1} END").format(
                key.of("t"), layout.indexed(key, "t")
            )
            for key in self._texts
        ]
        direction = sql.SQL(" DESC" if self.newest_first else " ASC")
        return sql.SQL("SELECT {} FROM {} t WHERE {} ORDER BY {} LIMIT {}").format(
            sql.SQL(", ").join([*(readable(column) for column in layout.columns), *short]),
            layout.public,
            sql.SQL(" AND ").join(self._conditions()),
            sql.SQL(", ").join(layout.indexed(key, "t") + direction for key in layout.key),
            sql.Literal(self.limit + 1),
        )

    def _conditions(self) -> list[sql.Composable]:
        begins = self.layout.key[0]
        conditions: list[sql.Composable] = [sql.SQL("true")]
        if self.start is not None:
            conditions.append(sql.SQL("{} >= {}").format(begins.of("t"), _value(begins, self.start)))
        if self.end is not None:
            conditions.append(sql.SQL("{} < {}").format(begins.of("t"), _value(begins, self.end)))
        by = {column.name: column for column in self.layout.by}
        for name, values in (self.equal or {}).items():
            several = sql.SQL(", ").join(_value(by[name], value) for value in values)
            conditions.append(sql.SQL("{} IN ({})").format(by[name].of("t"), several))
        conditions += [sql.SQL("{} IS NULL").format(by[name].of("t")) for name in sorted(self.null)]
        if self.after is not None:
            conditions += self._behind(self.after)
        return conditions

    def _behind(self, after: tuple[object, ...]) -> list[sql.Composable]:
        """Rows behind the key ``after`` in the order asked for; nulls are last in the index."""
        same: list[sql.Composable] = []
        alternatives: list[sql.Composable] = []
        for key, value in zip(self.layout.key, after, strict=True):
            column = self.layout.indexed(key, "t")
            further = self._further(column, key, value)
            if further is not None:
                alternatives.append(sql.SQL("({})").format(sql.SQL(" AND ").join([*same, further])))
            equal = "{} IS NULL" if value is None else "{} = {}"
            same.append(sql.SQL(equal).format(column, _value(key, value)))
        # The first column alone, so that the index is entered at the right place.
        bound = sql.SQL("{} <= {}" if self.newest_first else "{} >= {}").format(
            self.layout.key[0].of("t"), _value(self.layout.key[0], after[0])
        )
        return [bound, sql.SQL("({})").format(sql.SQL(" OR ").join(alternatives))]

    def _further(self, column: sql.Composable, key: Column, value: object) -> sql.Composed | None:
        if value is None:
            return sql.SQL("{} IS NOT NULL").format(column) if self.newest_first else None
        if self.newest_first:
            return sql.SQL("{} < {}").format(column, _value(key, value))
        return sql.SQL("({0} > {1} OR {0} IS NULL)").format(column, _value(key, value))

    def page(self, stored: pl.DataFrame, *, more: bool) -> tuple[pl.DataFrame, str | None]:
        """The rows to give, typed, and the token of the next page where there is one.

        ``stored``: the answer of :meth:`query`, times as integers. ``more``: there are rows behind these even when
        these are not more than ``limit``.
        """
        given = stored.head(self.limit)
        token = None
        if stored.height > self.limit or (more and given.height):
            last = given.row(-1, named=True)
            key = [last.get(_SHORT + each.name) or last[each.name] for each in self.layout.key]
            token = _token(self, key)
        return given.select(pl.col(column.name).cast(column.type) for column in self.layout.columns), token


def read_question(layout: Layout, parameters: Sequence[tuple[str, str]]) -> Question:
    """The question that a URL's parameters ask of a table. Raises :class:`BadQuestion`."""
    single = {name: value for name, value in parameters if name in _KNOWN - {"null"}}
    by = {column.name: column for column in layout.by}
    equal: dict[str, list[object]] = {}
    null: set[str] = set()
    for name, value in parameters:
        if name in single:
            continue
        dimension = value if name == "null" else name.removeprefix("by.")
        if (name != "null" and not name.startswith("by.")) or dimension not in by:
            raise BadQuestion(f"there is no parameter {name}={value!r}: {_offer(by)}")
        if name == "null":
            null.add(dimension)
        else:
            equal.setdefault(dimension, []).append(_read(by[dimension], value))
    newest_first = {"asc": False, "desc": True}.get(single.get("order", "asc"))
    if newest_first is None:
        raise BadQuestion("order is asc or desc")
    after = single.get("after")
    return Question(
        layout,
        _moment("from", single["from"]) if "from" in single else None,
        _moment("to", single["to"]) if "to" in single else None,
        equal,
        frozenset(null),
        newest_first,
        _limit(single.get("limit", str(LIMIT))),
        None if after is None else _key(layout, after, newest_first=newest_first),
    )


def _offer(by: Mapping[str, Column]) -> str:
    filters = ", ".join(f"by.{name}" for name in by)
    return f"there are from, to, order, limit, after, null, format{', ' if filters else ''}{filters}"


def _limit(text: str) -> int:
    digits = text.isascii() and text.isdecimal() and len(text) <= len(str(MOST))  # int() takes 4,300 at most
    if not digits or not 1 <= int(text) <= MOST:
        raise BadQuestion(f"limit is a number from 1 to {MOST}")
    return int(text)


def _moment(name: str, text: str) -> int:
    """Unix microseconds of an ISO 8601 time with its zone."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise BadQuestion(f"{name}: {text!r} is not a time like 2026-07-01T13:00:00Z") from error
    if moment.tzinfo is None:
        raise BadQuestion(f"{name}: {text!r} does not say its zone; write 2026-07-01T13:00:00Z (+ is %2B)")
    return (moment - _UNIX) // timedelta(microseconds=1)


_BOOLEANS: Mapping[str, bool] = {"true": True, "false": False}


def _read(column: Column, text: str) -> object:
    """A dimension's value, as the table stores it: times as microseconds, dates as days since 1970."""
    read: Callable[[str], object]
    if column.type == pl.String():
        if not _storable(text):
            raise BadQuestion(f"by.{column.name}: no text of a table holds that")
        return text
    if isinstance(column.type, pl.Datetime):
        return _moment(f"by.{column.name}", text)
    if column.type == pl.Boolean():
        read = _BOOLEANS.__getitem__
    elif column.type == pl.Date():
        read = lambda day: (date.fromisoformat(day) - _UNIX.date()).days  # noqa: E731 - one of several readers
    else:
        read = int if column.type.is_integer() else float
    try:
        return read(text)
    except (ValueError, KeyError) as error:
        raise BadQuestion(f"by.{column.name}: {text!r} is not a {column.type}") from error


def _value(column: Column, value: object) -> sql.Composable:
    """A stored value as SQL of the public table's type."""
    return published(column, sql.Literal(value))


# -- continuation --------------------------------------------------------------------------------------


def _token(question: Question, key: Sequence[object]) -> str:
    said = [question.layout.table.name, question.newest_first, *key]
    return base64.urlsafe_b64encode(json.dumps(said).encode()).decode().rstrip("=")


def _key(layout: Layout, token: str, *, newest_first: bool) -> tuple[object, ...]:
    wrong = BadQuestion("after: is not from an answer to this question; begin without it")
    try:
        said = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    except (ValueError, binascii.Error, RecursionError) as error:
        raise wrong from error
    if not isinstance(said, list) or said[:2] != [layout.table.name, newest_first]:
        raise wrong
    key = said[2:]
    if len(key) != len(layout.key) or not isinstance(key[0], int):
        raise wrong
    if not all(_fits(column, value) for column, value in zip(layout.key, key, strict=True)):
        raise wrong
    return tuple(key)


def _fits(column: Column, value: object) -> bool:
    if value is None:
        return True
    if column.type == pl.String():
        return isinstance(value, str) and _storable(value)
    if column.type == pl.Boolean():
        return isinstance(value, bool)
    return isinstance(value, int | float) and not isinstance(value, bool)


def _storable(text: str) -> bool:
    """Whether PostgreSQL has such a text: neither a NUL nor half a surrogate pair."""
    return "\0" not in text and not any("\ud800" <= char <= "\udfff" for char in text)
