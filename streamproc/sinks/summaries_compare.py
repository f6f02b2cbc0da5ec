"""How a table that a replay has rebuilt differs from the live one."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from psycopg import AsyncConnection, sql

from streamproc.sinks.summaries_beside import Beside, Region, as_text
from streamproc.sinks.summaries_layout import Column
from streamproc.sinks.summaries_registry import exists
from streamproc.tables.sketches import SKETCHED
from streamproc.topology import Measure

_COMMA = sql.SQL(", ")

#: Sums of floating-point numbers depend on the order they are added in.
_RELATIVE = 1e-9


@dataclass(frozen=True, slots=True)
class TableDifference:
    """How a rebuilt table differs from the live one within its region.

    ``missing``: rows only live has; ``added``: rows only the replay has; ``changed``: keys of both whose
    measures differ. ``totals``: by measure that can be added up, live's and the replay's. ``keys``: some of
    the differing rows, key columns by name.
    """

    table: str
    rows: int
    missing: int
    added: int
    changed: int
    totals: dict[str, tuple[float | int | None, float | int | None]]
    keys: list[dict[str, object]]

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not (self.missing or self.added or self.changed)


class Comparison:
    """Compares the two within a region."""

    def __init__(self, beside: Beside) -> None:
        self._beside = beside

    async def compare(self, conn: AsyncConnection[Any], found: Region, keys: int) -> TableDifference:
        """How the two differ; ``keys``: at most that many differing rows are named."""
        if not await exists(conn, self._beside.live.public):
            return await self._all_new(conn, found)
        there = await _columns(conn, self._beside.live.public)
        differences = [self._differs(column) for column in self._beside.live.measures if column.name in there]
        differ = sql.SQL(" OR ").join(differences) if differences else sql.SQL("false")
        joined = sql.SQL(
            "WITH l AS (SELECT *, {key_l} AS __key FROM {live} t WHERE {within}), "
            "r AS (SELECT *, {key_l} AS __key FROM {replay} t WHERE {within}), "
            "j AS (SELECT l.__key IS NULL AS __added, r.__key IS NULL AS __missing, "
            "l.__key IS NOT NULL AND r.__key IS NOT NULL AND ({differ}) AS __changed, {keys} "
            "FROM l FULL JOIN r ON l.__key = r.__key) "
        ).format(
            key_l=as_text(self._beside.live.key, "t"),
            live=self._beside.live.public,
            replay=self._beside.replay.public,
            within=self._beside.within(found, "t"),
            differ=differ,
            keys=_COMMA.join(
                sql.SQL("coalesce(l.{0}, r.{0}) AS {0}").format(column.id) for column in self._beside.live.key
            ),
        )
        counted = await conn.execute(
            joined
            + sql.SQL(
                "SELECT count(*), count(*) FILTER (WHERE __missing), count(*) FILTER (WHERE __added), "
                "count(*) FILTER (WHERE __changed) FROM j"
            )
        )
        row = await counted.fetchone()
        assert row is not None
        some: list[dict[str, object]] = []
        if keys and any(row[1:]):
            names = [column.name for column in self._beside.live.key]
            cursor = await conn.execute(
                joined
                + sql.SQL(
                    "SELECT CASE WHEN __missing THEN 'missing' WHEN __added THEN 'added' ELSE 'changed' END, {} "
                    "FROM j WHERE __missing OR __added OR __changed ORDER BY {} LIMIT {}"
                ).format(
                    _COMMA.join(column.id for column in self._beside.live.key),
                    _COMMA.join(column.id for column in self._beside.live.key),
                    sql.Literal(keys),
                )
            )
            some = [
                {"what": what, **dict(zip(names, values, strict=True))}
                for what, *values in await cursor.fetchall()
            ]
        rows, missing, added, changed = row
        totals = await self._totals(conn, found, there)
        return TableDifference(self._beside.table.name, rows, missing, added, changed, totals, some)

    async def _totals(
        self, conn: AsyncConnection[Any], found: Region, there: set[str]
    ) -> dict[str, tuple[float | int | None, float | int | None]]:
        measures = [
            measure
            for measure in self._beside.table.measures
            if measure.kind in {"count", "sum"} and measure.name in there
        ]
        if not measures:
            return {}
        names = [measure.name for measure in measures]
        sums = _COMMA.join(map(_total, measures))
        rows = []
        for layout in (self._beside.live, self._beside.replay):
            cursor = await conn.execute(
                sql.SQL("SELECT {} FROM {} t WHERE {}").format(
                    sums, layout.public, self._beside.within(found, "t")
                )
            )
            rows.append(await cursor.fetchone() or ())
        return {
            name: (_number(live), _number(replay))
            for name, live, replay in zip(names, rows[0], rows[1], strict=True)
        }

    async def _all_new(self, conn: AsyncConnection[Any], found: Region) -> TableDifference:
        cursor = await conn.execute(
            sql.SQL("SELECT count(*) FROM {} t WHERE {}").format(
                self._beside.replay.public, self._beside.within(found, "t")
            )
        )
        row = await cursor.fetchone()
        assert row is not None
        return TableDifference(self._beside.table.name, row[0], 0, row[0], 0, {}, [])

    def _differs(self, column: Column) -> sql.Composed:
        """Whether a measure of ``l`` and ``r`` differs, but for rounding and a sketch's error."""
        measure = next((each for each in self._beside.table.measures if each.name == column.name), None)
        nulls = "(l.{0} IS NULL) <> (r.{0} IS NULL)"
        if measure is not None and measure.kind == "approx_percentile":
            return sql.SQL(nulls).format(column.id)  # draws random bits
        if measure is not None and measure.kind in SKETCHED:
            error = 4 * 1.04 / 2 ** (measure.precision / 2) if measure.kind == "approx_distinct" else 0.004
            # Below some hundred values the sketch lists them.
            return sql.SQL(
                nulls + " OR abs(l.{0} - r.{0}) > CASE WHEN greatest(l.{0}, r.{0}) < 100 THEN 0 "
                "ELSE {1} * greatest(l.{0}, r.{0}) END"
            ).format(column.id, sql.Literal(error))
        if column.type.is_float():
            # As doubles, differences of infinities are no numbers, and a billionth of the smallest is 0.
            left, right = _as_decimal(column.of("l")), _as_decimal(column.of("r"))
            return sql.SQL(
                "(l.{0} IS DISTINCT FROM r.{0} AND (l.{0} IS NULL OR r.{0} IS NULL "
                "OR l.{0} IN ('Infinity', '-Infinity', 'NaN') OR r.{0} IN ('Infinity', '-Infinity', 'NaN') "
                "OR abs({1} - {2}) > {3}::numeric * greatest(abs({1}), abs({2}))))"
            ).format(column.id, left, right, sql.Literal(_RELATIVE))
        return sql.SQL("l.{0} IS DISTINCT FROM r.{0}").format(column.id)


def _total(measure: Measure) -> sql.Composed:
    """SQL: the sum of a measure over all rows. What is too large for a double is as much as one can have."""
    column = sql.Identifier(measure.name)
    if not measure.type.is_float():
        return sql.SQL("sum({})").format(column)
    return sql.SQL(
        "(CASE WHEN abs({0}) < 'Infinity' THEN greatest(least({0}, {1}::numeric), -{1}::numeric) ELSE {0} END)"
        "::double precision"
    ).format(sql.SQL("sum({})").format(_as_decimal(column)), sql.Literal(sys.float_info.max))


def _as_decimal(number: sql.Composable) -> sql.Composed:
    """SQL: 15 digits of a floating-point number, whatever its size; of a ``real`` the direct way has only 6."""
    return sql.SQL("{}::double precision::numeric").format(number)


async def _columns(conn: AsyncConnection[Any], table: sql.Identifier) -> set[str]:
    cursor = await conn.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped",
        [table.as_string(conn)],
    )
    return {name for (name,) in await cursor.fetchall()}


def _number(value: Any) -> float | int | None:
    if value is None or isinstance(value, int | float):
        return value
    return int(value) if value == value.to_integral_value() else float(value)
