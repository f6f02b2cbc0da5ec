"""The data sets of a stream: one for each table, one for each funnel, one for the events of the warehouse.

Tables over tumbling windows and sessions are imported (SPICE): new and changed windows by an incremental refresh, all
rows once a day. Hopping tables and events are queried when somebody looks: an import would be older than
what they are for. Their queries are bounded in SQL by the raw column, so that no filter of a visitor
makes the database read all of history.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl
from psycopg import sql

from streamproc.quicksight.columns import Column, column, measured, selected
from streamproc.sinks.summaries_layout import Layout
from streamproc.topology import DAY, FieldType, Measure, Table, Topology

#: Windows of a hopping table that are shown.
_HOPS = 60

#: Days of events that can be queried; Redshift and PostgreSQL both count days by subtracting from a date.
_EVENT_DAYS = 31

_SECOND = 1_000_000


@dataclass(frozen=True, slots=True)
class DataSet:
    """What a data set holds.

    ``key``: stands in its id. ``identifier``: the dashboard's name for it. ``kind``: ``windows``, ``hops``,
    ``sessions``, ``funnel`` or ``events``. ``time``: the column that rows are ordered by; ``step``: microseconds
    between two of its values, 0 if any. ``lookback``: days whose rows may still change, ``None`` for what is not
    imported. ``by``: the key of its rows, beside time.
    """

    key: str
    identifier: str
    title: str
    kind: str
    query: str
    columns: tuple[Column, ...]
    time: str
    step: int = 0
    lookback: int | None = None
    by: tuple[str, ...] = field(default=())

    @property
    def named(self) -> Mapping[str, Column]:
        """The columns by name."""
        return {each.name: each for each in self.columns}

    @property
    def measures(self) -> list[Column]:
        """What can be added up, shares last."""
        return sorted((each for each in self.columns if each.aggregation), key=lambda each: each.share)

    @property
    def dimensions(self) -> list[Column]:
        """What can be grouped by, without the key of sessions, of which each row has its own."""
        key = self.by if self.kind in {"sessions", "funnel"} else ()
        return [each for each in self.columns if each.dimension and each.name not in key]


def data_sets(page: Topology, *, warehouse: str) -> list[DataSet]:
    """All data sets of a stream. ``warehouse``: what has the events, ``redshift``, ``postgresql`` or ``none``."""
    found = []
    for table in page.tables:
        found.append(_of_table(table, page))
        found += [_of_funnel(table, measure, page) for measure in table.measures if measure.kind == "funnel"]
    if warehouse != "none" and page.sinks.warehouse:
        found.append(_of_events(page, zoned=warehouse != "redshift"))
    return found


def _of_table(table: Table, page: Topology) -> DataSet:
    layout = Layout(table, page.name)
    sessions, hops = layout.session, table.window.kind == "hopping"
    heads = [column(each.name, each.type) for each in (*layout.by, *layout.span)]
    columns = _known([*heads, *measured(table, per_session=sessions)])
    parts = _parts([(each.name, each.type) for each in layout.columns], columns)
    if sessions and "duration" not in {each.name for each in layout.columns}:
        parts.append(sql.SQL("extract(epoch FROM session_end - session_start)::double precision AS duration"))
        columns += (Column("duration", "DECIMAL", "AVERAGE", description="Seconds from first to last event"),)
    query = sql.SQL("SELECT {} FROM {}").format(sql.SQL(", ").join(parts), layout.public)
    if hops:
        query += sql.SQL(
            " WHERE window_start >= CURRENT_TIMESTAMP - INTERVAL {} AND window_end <= CURRENT_TIMESTAMP"
        ).format(sql.Literal(f"{(_HOPS * table.window.hop + table.window.size) // _SECOND} seconds"))
    return DataSet(
        f"table-{table.name}",
        table.name,
        _readable(table.name),
        "sessions" if sessions else "hops" if hops else "windows",
        query.as_string(None),
        columns,
        "session_start" if sessions else "window_start",
        step=0 if sessions else table.window.hop if hops else table.window.size,
        lookback=None if hops else _lookback(table, page),
        by=tuple(each.name for each in layout.by),
    )


def _of_funnel(table: Table, funnel: Measure, page: Topology) -> DataSet:
    """A row for each session and step that it reached, which is what a funnel chart counts."""
    layout = Layout(table, page.name)
    steps = sql.SQL(", ").join(
        sql.SQL("({}, {}, {})").format(
            sql.Literal(number),
            sql.Literal(f"{number} {_readable(step).lower()}"),
            sql.Identifier(f"{funnel.name}_{step}_at"),
        )
        for number, (step, _) in enumerate(funnel.steps, start=1)
    )
    added = {"step", "step_name", "reached_at"}
    names = [(each.name, each.type) for each in (*layout.by, layout.span[0]) if each.name not in added]
    heads = _known([column(name, type_) for name, type_ in names])
    firsts = [(each.name, each.type) for each in table.measures if each.kind in {"first", "last"}]
    taken = {*added, *(name for name, _ in names)}
    split = _known([column(n, type_) for n, type_ in firsts if type_ == pl.String() and n not in taken])
    query = sql.SQL(
        "SELECT {}, steps.step, steps.step_name FROM {} CROSS JOIN LATERAL (VALUES {})"
        " AS steps (step, step_name, reached_at) WHERE steps.reached_at IS NOT NULL"
    ).format(sql.SQL(", ").join(_parts([*names, *firsts], (*heads, *split))), layout.public, steps)
    return DataSet(
        f"funnel-{table.name}-{funnel.name}",
        f"{table.name} {funnel.name}",
        f"{_readable(funnel.name)} funnel",
        "funnel",
        query.as_string(None),
        (
            *heads,
            *split,
            Column("step", "INTEGER", description="Number of the step"),
            Column("step_name", "STRING", description="Number and name of the step"),
        ),
        "session_start",
        lookback=_lookback(table, page),
        by=tuple(each.name for each in layout.by),
    )


def _of_events(page: Topology, *, zoned: bool) -> DataSet:
    """The events of the last month, without what holds JSON, which is for queries by hand.

    ``zoned``: times have a time zone; those in Redshift are in UTC and do not say so.
    """
    json = {each.name for each in page.contract.fields if each.type is FieldType.JSON}
    types = {name: type_ for name, type_ in page.columns.items() if name not in json}
    amounts = {each.name for each in page.contract.fields if each.type is FieldType.NUMBER}
    columns = _known(
        [
            column(n, type_, "SUM" if n in amounts else "AVERAGE" if type_ == pl.Boolean() else None)
            for n, type_ in types.items()
        ]
    )
    query = sql.SQL("SELECT {} FROM {} WHERE event_time >= CURRENT_DATE - {}").format(
        sql.SQL(", ").join(_parts(list(types.items()), columns, zoned=zoned)),
        sql.Identifier("warehouse", page.name),
        sql.Literal(_EVENT_DAYS),
    )
    return DataSet(
        "events", "warehouse events", "Events", "events", query.as_string(None), columns, "event_time"
    )


def _parts(
    typed: Sequence[tuple[str, pl.DataType]], columns: Sequence[Column], *, zoned: bool = True
) -> list[sql.Composable]:
    wanted = {each.name for each in columns}
    return [selected(name, type_, zoned=zoned) for name, type_ in typed if name in wanted]


def _known(columns: Sequence[Column | None]) -> tuple[Column, ...]:
    return tuple(each for each in columns if each is not None)


def _lookback(table: Table, page: Topology) -> int:
    """Days: as long as a window may change after its start, and a day for a service that stood still."""
    window = table.window
    span = window.cap + window.gap if window.kind == "session" else window.size
    return -(-(span + table.lateness + page.contract.event_time.disorder) // DAY) + 1


def _readable(name: str) -> str:
    return name.replace("_", " ").capitalize()
