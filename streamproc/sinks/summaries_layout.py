"""How a table of a stream lies in PostgreSQL.

``<stream>.<table>`` is what analysts read: finished, typed columns only. ``<stream>.<table>__state`` holds
what cannot be told from those but is needed to merge more events: sketches, the order of first and last
values, the open sessions of a key. It exists only for tables that need it, or needed it once; its rows only while their
window may still change. Times are ``timestamptz`` in the former, integer microseconds in the latter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import LiteralString

import polars as pl
from psycopg import sql

from streamproc.tables.measures import Merge, funnel_columns, state_columns
from streamproc.topology import Measure, Table

#: A B-tree entry may have 2,704 bytes, and a path of 4,096 characters must not stop the stream. Of the texts of a key
#: each has its part: 64 bytes at least, for an index has 32 columns at most.
_INDEX_BYTES = 2_000

#: A text as it is indexed: one of more than {1} bytes by its beginning and its SHA-256, padded to {2} characters, one
#: more than that. Were it as short as a text that stands for itself, a visitor could send both, and two rows would
#: have one key. It has 49 characters before it is padded, and its beginning is short enough for 31 of them to fit into
#: an entry, at four bytes a character. The backslash is doubled because ``decode`` takes it for an escape.
_INDEXED = (
    "(CASE WHEN octet_length({0}) <= {1} THEN {0} ELSE rpad(left({0}, 4) || '#' || "
    r"encode(sha256(decode(replace({0}, E'\\', E'\\\\'), 'escape')), 'base64'), {2}, '#') END) "
    'COLLATE "C"'
)


#: Sums nearer to zero than this have the average 0: PostgreSQL raises where a quotient is too small for a double, and
#: one absurd event could otherwise stop a stream for good. Of any number of events a larger sum has one.
_TINY = 1e-290

#: Kinds of measures whose finished value is all that merging needs.
ADDITIVE = frozenset({"count", "sum", "min", "max"})

#: Microseconds. No column that analysts see is one.
ARRAY = pl.List(pl.Int64())


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its name and polars type."""

    name: str
    type: pl.DataType

    @property
    def id(self) -> sql.Identifier:
        """The name, quoted."""
        return sql.Identifier(self.name)

    def of(self, row: LiteralString) -> sql.Identifier:
        """The column of a ``row``; without one as :attr:`id`."""
        return sql.Identifier(row, self.name) if row else self.id


class Layout:
    """Names and columns of one table."""

    def __init__(self, table: Table, schema: str, disorder: int | None = None) -> None:
        """``disorder``: the contract's, µs; ``None`` where nobody needs to know it."""
        self.table = table
        self.disorder = disorder
        self._rendered: dict[str, sql.SQL] = {}
        self.session = table.window.kind == "session"
        self.public = sql.Identifier(schema, table.name)
        self.state = sql.Identifier(schema, f"{table.name}__state")
        self.index = sql.Identifier(f"{table.name}__row")
        self.state_index = sql.Identifier(f"{table.name}__state_row")
        #: Of a version before, in which a short text could be what a long one was indexed by.
        self.former_index = sql.Identifier(schema, f"{table.name}__key")
        self.former_state_index = sql.Identifier(schema, f"{table.name}__state_key")
        self.state_columns = [column for measure in table.measures for column in state_columns(measure)]
        #: Whether there is a state: because the measures need one, or see :meth:`keep_state`.
        self.has_state = self.session or any(measure.kind not in ADDITIVE for measure in table.measures)
        moment = pl.Datetime("us", "UTC")
        if self.session:
            key_type = table.by_types[0] if table.by_types else pl.String()
            self.by = [Column(table.window.key, key_type)]
            self.span = [Column("session_start", moment), Column("session_end", moment)]
            self.key = [self.span[0], *self.by]
        else:
            self.by = [Column(name, type_) for name, type_ in zip(table.by, table.by_types, strict=True)]
            self.span = [Column("window_start", moment), Column("window_end", moment)]
            self.key = [self.span[0], *self.by]
        self.measures = [Column(*pair) for measure in table.measures for pair in finished_columns(measure)]
        self.onward = [Column(f"{m.name}__onward", ARRAY) for m in table.measures if m.kind == "funnel"]
        self.derived = [Column(derived.name, derived.type) for derived in table.derived]

    def keep_state(self) -> None:
        """The table has a state, whether or not its measures need one today: it is merged into as well.

        Otherwise it would be wrong when it is needed again, and for workers with a page that needs it now.
        """
        if not self.has_state:
            self.has_state = True
            self._rendered.clear()

    @property
    def additive(self) -> list[Column]:
        """State columns that are columns of the public table too, with the same values."""
        return [Column(m.name, m.type) for m in self.table.measures if m.kind in ADDITIVE]

    @property
    def columns(self) -> list[Column]:
        """Columns of the public table in the order of a new one."""
        head = [*self.by, *self.span] if self.session else [*self.span, *self.by]
        return [*head, *self.measures, *self.derived]

    @property
    def staged(self) -> list[Column]:
        """Columns of a delta and of the state: keys, for a session its span, then state columns."""
        keys = [*self.by, *self.span] if self.session else self.key
        return [*keys, *(Column(column.name, column.type) for column in self.state_columns)]

    @property
    def incoming(self) -> list[Column]:
        """Columns of a delta: :attr:`staged`, and how the funnels of a piece go on."""
        return [*self.staged, *self.onward]

    @property
    def sketches(self) -> list[Column]:
        """State columns that only DataSketches can merge."""
        return [Column(c.name, c.type) for c in self.state_columns if c.merge is Merge.VALUES]

    def rendered(self, name: str, build: Callable[[], sql.Composable]) -> sql.SQL:
        """A statement that is always the same, put together once."""
        if name not in self._rendered:
            self._rendered[name] = trusted(build().as_string(None))
        return self._rendered[name]

    def conflict(self, *, state: bool) -> sql.Composed:
        """The key as the unique index has it, of the state or the public table."""
        if state and self.session:
            return sql.SQL(", ").join([*map(self.indexed, self.by), sql.Identifier("n")])
        return sql.SQL(", ").join(map(self.indexed, self.key))

    def indexed(self, column: Column, row: LiteralString = "") -> sql.Composable:
        """A key column as it is indexed: text too long for an index is replaced by a hash of itself.

        Compared byte by byte, which is faster than a language's order and the same everywhere.
        """
        name = column.of(row)
        if column.type != pl.String():
            return name
        limit = _INDEX_BYTES // sum(key.type == pl.String() for key in self.key)
        return sql.SQL(_INDEXED).format(name, sql.Literal(limit), sql.Literal(limit + 1))


def finished_columns(measure: Measure) -> list[tuple[str, pl.DataType]]:
    """The columns of a measure that analysts see."""
    return funnel_columns(measure) if measure.kind == "funnel" else [(measure.name, measure.type)]


def finish(measure: Measure, name: str, row: LiteralString = "") -> sql.Composable:
    """SQL over a ``row`` of the state: the finished column ``name`` of a measure (times still integers)."""
    if measure.kind == "avg":
        total, count = (Column(f"{name}__{part}", pl.Float64()).of(row) for part in ("sum", "count"))
        return sql.SQL("CASE WHEN {1} = 0 THEN {0} WHEN abs({0}) < {2} THEN 0 ELSE {0} / {1} END").format(
            total, count, sql.Literal(_TINY)
        )
    return Column(name, measure.type).of(row)


def public_type(type_: pl.DataType) -> sql.SQL:
    """The PostgreSQL type analysts see. Raises :class:`ValueError` for a type that has none."""
    names: list[tuple[pl.DataType, LiteralString]] = [
        (pl.String(), "text"),
        (pl.Boolean(), "boolean"),
        (pl.Int8(), "smallint"),
        (pl.Int16(), "smallint"),
        (pl.Int32(), "integer"),
        (pl.Int64(), "bigint"),
        (pl.UInt8(), "smallint"),
        (pl.UInt16(), "integer"),
        (pl.UInt32(), "bigint"),
        (pl.Float32(), "real"),
        (pl.Float64(), "double precision"),
        (pl.Date(), "date"),
        (pl.Binary(), "bytea"),
    ]
    for known, name in names:
        if type_ == known:
            return sql.SQL(name)
    if isinstance(type_, pl.Datetime):
        return sql.SQL("timestamptz")
    raise ValueError(f"no PostgreSQL column holds {type_}")


def stored_type(type_: pl.DataType) -> sql.Composable:
    """The type in the state: dates and times as integers, text in byte order."""
    if isinstance(type_, pl.Datetime):
        return sql.SQL("bigint")
    if type_ == pl.Date():
        return sql.SQL("integer")
    if type_ == ARRAY:
        return sql.SQL("bigint[]")
    if type_ == pl.String():
        return sql.SQL('text COLLATE "C"')
    return public_type(type_)


def published(column: Column, value: sql.Composable) -> sql.Composable:
    """SQL: a stored value, which may stand in it twice, as the public table has it."""
    if isinstance(column.type, pl.Datetime):
        # An interval is multiplied as a double, which has no room for the microseconds of later centuries.
        return sql.SQL(
            "'epoch'::timestamptz + {0} / 1000000 * interval '1 second' + mod({0}, 1000000) * interval '1 microsecond'"
        ).format(value)
    if column.type == pl.Date():
        return sql.SQL("'epoch'::date + {}").format(value)
    return value


def readable(column: Column, row: LiteralString = "t") -> sql.Composable:
    """SQL: a value of the public table as it would be stored; the reverse of :func:`published`."""
    name = column.of(row)
    if isinstance(column.type, pl.Datetime):
        return sql.SQL("(extract(epoch FROM {}) * 1000000)::bigint").format(name)
    if column.type == pl.Date():
        return sql.SQL("({} - 'epoch'::date)").format(name)
    return name


def trusted(text: str) -> sql.SQL:
    """SQL that is no literal: a topic page's, whose author may write what they like, or our own."""
    return sql.SQL(text)
