"""The columns of a data set: their type in QuickSight, how their values are added up, and the SQL that reads them.

QuickSight has four types (https://docs.aws.amazon.com/quicksight/latest/user/supported-data-types-and-values.html) and
reads ``timestamp`` and ``date`` from PostgreSQL and Redshift, not ``timestamp with time zone``, so times are
read in UTC. Booleans become 0 and 1, whose average over events or sessions is a share. One that a table is grouped by
is not averaged: its rows stand for any number of events.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import polars as pl
from psycopg import sql

from streamproc.sinks.summaries_layout import finished_columns
from streamproc.topology import Measure, Table

_TYPES: Mapping[type[pl.DataType], str] = {
    pl.String: "STRING",
    pl.Boolean: "INTEGER",
    pl.Int8: "INTEGER",
    pl.Int16: "INTEGER",
    pl.Int32: "INTEGER",
    pl.Int64: "INTEGER",
    pl.UInt8: "INTEGER",
    pl.UInt16: "INTEGER",
    pl.UInt32: "INTEGER",
    pl.Float32: "DECIMAL",
    pl.Float64: "DECIMAL",
    pl.Date: "DATETIME",
    pl.Datetime: "DATETIME",
}

#: What the enrichment ``geoip`` adds, as the map visuals know it.
_PLACES = {"country": "COUNTRY", "city": "CITY", "postal_code": "POSTCODE"}
_COORDINATES = {"latitude": "LATITUDE", "longitude": "LONGITUDE"}

#: How the rows of several windows make one number. Distinct counts and percentiles cannot be added up,
#: so the highest window stands for them.
_OVER_WINDOWS = {
    "count": "SUM",
    "sum": "SUM",
    "min": "MIN",
    "max": "MAX",
    "avg": "AVERAGE",
    "distinct": "MAX",
    "approx_distinct": "MAX",
    "approx_percentile": "MAX",
}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a data set.

    ``type``: ``STRING``, ``INTEGER``, ``DECIMAL`` or ``DATETIME``. ``aggregation``: QuickSight's name of how values are
    added up, ``None`` for what is grouped by. ``share``: 0 or 1, so that the average is a percentage.
    ``place``: geographic role.
    """

    name: str
    type: str
    aggregation: str | None = None
    share: bool = False
    place: str | None = None
    description: str = ""

    @property
    def additive(self) -> bool:
        """Whether the sum over rows means something."""
        return self.aggregation == "SUM"

    @property
    def dimension(self) -> bool:
        """Whether charts may group by it."""
        return self.type == "STRING" and self.aggregation is None


def column(
    name: str, type_: pl.DataType, aggregation: str | None = None, description: str = ""
) -> Column | None:
    """The column as QuickSight has it, ``None`` when it cannot have it (binary, lists, structs)."""
    known = _TYPES.get(type(type_))
    if known is None:
        return None
    place = _PLACES.get(name) if known == "STRING" else _COORDINATES.get(name) if known == "DECIMAL" else None
    numeric = known in {"INTEGER", "DECIMAL"} and place is None
    share = type_ == pl.Boolean() and aggregation is not None
    return Column(
        name,
        known,
        aggregation if numeric else None,
        share=share,
        place=place,
        description=description,
    )


def measured(table: Table, *, per_session: bool) -> Iterable[Column | None]:
    """The columns of a table's measures and derived columns.

    Of sessions there is one row each, so everything but counts and sums is averaged over them.
    """
    for measure in table.measures:
        for name, type_ in finished_columns(measure):
            yield column(name, type_, _aggregation(measure, per_session=per_session), _described(measure))
    for derived in table.derived:
        yield column(derived.name, derived.type, "AVERAGE", derived.comment)


def _aggregation(measure: Measure, *, per_session: bool) -> str:
    over_windows = _OVER_WINDOWS.get(measure.kind, "AVERAGE")
    return "AVERAGE" if per_session and over_windows != "SUM" else over_windows


def _described(measure: Measure) -> str:
    what = f"{measure.kind} of {measure.column}" if measure.column else f"{measure.kind} of events"
    described = measure.comment or what.replace("_", " ").capitalize()
    return f"{described}, where {measure.where}" if measure.where else described


def selected(name: str, type_: pl.DataType, *, zoned: bool) -> sql.Composable:
    """SQL: the column as QuickSight can read it, under its own name. ``zoned``: times have a time zone."""
    id_ = sql.Identifier(name)
    if isinstance(type_, pl.Datetime) and zoned:
        return sql.SQL("{0} AT TIME ZONE 'UTC' AS {0}").format(id_)
    if type_ == pl.Boolean():
        return sql.SQL("CASE WHEN {0} THEN 1 WHEN NOT {0} THEN 0 END AS {0}").format(id_)
    return id_
