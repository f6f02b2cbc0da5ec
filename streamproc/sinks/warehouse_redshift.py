"""The warehouse in Redshift: schema ``warehouse``, a table per stream, loaded by COPY from the lake's objects.

Redshift reads the objects itself, by a manifest. One transaction locks the loads table, fails if one of the
objects is in it, COPYs once per schema, fails if the number of rows is another, and notes the objects. That the
transaction fails, not its caller, makes it safe against everything that happens to callers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import polars as pl
import structlog

from streamproc.errors import ConfigError, DependencyError, Inconsistent, Mistake
from streamproc.failpoints import failpoint
from streamproc.model import CommittedObject, PlannedObject
from streamproc.quantities import Invalid
from streamproc.settings.redshift import DataApi, parse_redshift
from streamproc.sinks import redshift_statements as sql
from streamproc.sinks.lake import rows_within, siblings
from streamproc.sinks.object_store import ObjectStore
from streamproc.sinks.redshift_load import load_batch
from streamproc.sinks.redshift_objects import SchemaGroup, group_by_schema, manifest_keys
from streamproc.sinks.redshift_session import MOST_STATEMENTS, BatchFailed, Session, batches
from streamproc.sinks.warehouse import LoadReport, Quarantined, Rows, TableLayout, WarehouseStatus

_log = structlog.get_logger(__name__)

#: Tries of a transaction that another one was in the way of, and the seconds before the second of them.
_TRIES, _FIRST_PAUSE = 6, 0.2

#: Schemas in one transaction, so that their statements fit: each needs up to five, and lock, refusal and notes some.
_GROUPS = 6

#: Streams may not have these names; their tables are.
_TAKEN = {"loads", "superseded"}


class RedshiftWarehouse:
    """Table ``warehouse.<stream>`` and the list ``warehouse.loads`` of the objects in it."""

    def __init__(self, session: Session, stream: str, iam_role: str, layout: TableLayout) -> None:
        if stream in _TAKEN:
            raise ConfigError([Mistake(f"stream {stream}", "is the name of a table", "Choose another name")])
        self._session = session
        self._stream = stream
        self._iam_role = iam_role
        self._layout = layout

    async def open(self) -> None:
        """Connect."""
        await self._session.open()

    async def close(self) -> None:
        """Disconnect."""
        await self._session.close()

    async def ensure(self, columns: Mapping[str, pl.DataType]) -> None:
        """Create what is not there: schema, loads table, the stream's table with its keys, columns it lacks."""
        if not await self._columns("loads"):
            [schema] = await self._ask([sql.schema_exists()])
            create = [] if schema else [f"CREATE SCHEMA IF NOT EXISTS {sql.SCHEMA}"]
            try:
                await self._change([*create, sql.CREATE_LOADS])
            except BatchFailed as error:
                if not await self._columns("loads"):  # else somebody was faster
                    raise self._unexpected(error, []) from error
        _, mistakes = await self._extend(columns)
        if mistakes:
            raise ConfigError(mistakes)

    async def missing(self, keys: Sequence[str]) -> set[str]:
        """Compare with ``warehouse.loads``."""
        loaded: set[str] = set()
        for batch in batches(sql.keys_among(self._stream, keys)):
            for rows in await self._ask(batch):
                loaded |= {str(key) for (key,) in rows}
        return set(keys) - loaded

    async def load(
        self, objects: Sequence[CommittedObject], store: ObjectStore, instead: Collection[str] = ()
    ) -> LoadReport:
        """One transaction per :data:`_GROUPS` schemas; see the module for what is in it.

        Most often none of the objects is loaded. So that is only asked when the transaction refused one.
        """
        groups = await group_by_schema(objects, store)
        report = LoadReport()
        for start in range(0, len(groups), _GROUPS):
            report += await self._load_groups(groups[start : start + _GROUPS], store, instead)
        return report

    async def status(self) -> WarehouseStatus:
        """Sums over ``warehouse.loads``, zero before the first :meth:`ensure`."""
        if not await self._columns("loads"):
            return WarehouseStatus(0, 0, None)
        [[(objects, rows, loaded_at, quarantined)]] = await self._ask([sql.totals(self._stream)])
        at = None if loaded_at is None else _moment(loaded_at)
        return WarehouseStatus(_integer(objects), _integer(rows), at, _integer(quarantined))

    async def quarantine(self, committed: CommittedObject, problem: str) -> None:
        """See :meth:`streamproc.sinks.warehouse.Quarantines.quarantine`."""
        key = committed.plan.key
        statements = [
            sql.LOCK,
            *sql.refuse(self._stream, [key]),
            sql.record_problem(self._stream, key, problem),
        ]
        try:
            await self._change(statements)
        except BatchFailed as error:
            if not (error.index == 1 and error.divided_by_zero):
                raise self._unexpected(error, statements) from error

    async def quarantined(self) -> list[Quarantined]:
        """See :meth:`streamproc.sinks.warehouse.Quarantines.quarantined`."""
        if not await self._columns("loads"):
            return []
        [rows] = await self._ask([sql.put_aside(self._stream)])
        return [Quarantined(str(key), str(problem), _moment(since)) for key, problem, since in rows]

    async def release(self) -> None:
        """See :meth:`streamproc.sinks.warehouse.Quarantines.release`."""
        if await self._columns("loads"):
            await self._do([sql.LOCK, sql.release(self._stream)])

    async def adopt(self, replay: str, rows: Sequence[Rows], superseded: Sequence[str]) -> bool:
        """See :meth:`streamproc.sinks.warehouse.Swaps.adopt`.

        The keys, which may be too many for one transaction's statements, are listed in a table beforehand.
        """
        columns = await self._columns(replay)
        if not columns or any(await self._ask(list(sql.keys_among(replay, [sql.ADOPTED])))):
            return False
        await self._do([sql.CREATE_SUPERSEDED, sql.forget_superseded(replay)])
        for batch in batches(sql.supersede(replay, superseded)):
            await self._do(batch)
        statements = [
            sql.LOCK,
            *sql.refuse(replay, [sql.ADOPTED]),
            *sql.delete_rows(self._stream, rows),
            *sql.adopt(self._stream, replay, list(columns)),
        ]
        try:
            await self._change(statements)
        except BatchFailed as error:
            if (error.index == 1 and error.divided_by_zero) or not await self._columns(replay):
                return False
            raise self._unexpected(error, statements) from error
        return True

    async def merged(self, keys: Sequence[str]) -> None:
        """See :meth:`streamproc.sinks.warehouse.Merges.merged`."""
        await self._do([sql.LOCK, *sql.record_merged(self._stream, keys)])

    async def erase(self, columns: Sequence[str], values: Sequence[str], *, dry: bool = False) -> int:
        """See :meth:`streamproc.sinks.warehouse.Erases.erase`; so many values that their statements do not fit
        into a transaction take several, each of which can be run again.
        """
        there = await self._columns(self._stream)
        named = [column for column in columns if column in there]
        if not named:
            return 0
        rows = 0
        for theirs in sql.visitors_rows(self._stream, named, values):
            delete = [] if dry else [f"DELETE {theirs}"]
            _, [(count,)], *_ = await self._ask([sql.LOCK, f"SELECT count(*) {theirs}", *delete])
            rows += _integer(count)
        return rows

    async def remove(self) -> None:
        """See :meth:`streamproc.sinks.warehouse.Swaps.remove`."""
        if await self._columns("loads"):
            await self._do(sql.remove(self._stream))

    async def _load_groups(
        self, groups: Sequence[SchemaGroup], store: ObjectStore, instead: Collection[str]
    ) -> LoadReport:
        plans = [each.plan for group in groups for each in group.objects]
        types: dict[str, str] = {}
        for group in groups:
            types, mistakes = await self._extend(group.columns)
            if mistakes:
                # Of this object's columns, not of the page's: those were compared when the table was opened.
                raise Inconsistent(f"{group.objects[0].plan.key}: {mistakes[0]}")
        parts = await self._parts([plan for plan in plans if plan.key in instead])
        manifests = dict(zip(manifest_keys(self._stream), groups, strict=False))
        for key, group in manifests.items():
            sizes = {store.url(each.plan.key): each.size for each in group.objects}
            await store.put(key, sql.manifest(sizes))
        urls = [store.url(key) for key in manifests]
        batch = load_batch(self._stream, self._iam_role, groups, urls, types=types, parts=parts)
        try:
            await self._change(batch.statements)
        except BatchFailed as error:
            await _delete(store, manifests)
            if batch.refuses(error):
                rest = [each for group in groups for each in group.objects]
                return await self._load_rest(rest, store, instead)
            if (blamed := batch.blames(error)) is not None:
                problem = (
                    f"not the {blamed.rows} rows of the ledger" if error.divided_by_zero else error.message
                )
                first = f"{blamed.objects[0].plan.key}{_others(blamed.objects)}"
                raise Inconsistent(f"{first}: {problem}") from error
            raise self._unexpected(error, batch.statements) from error
        # Not after an answer was lost: the transaction may be at work with them. A lifecycle rule takes what stays.
        await _delete(store, manifests)
        failpoint("load.committed")
        return LoadReport(len(plans), sum(plan.rows for plan in plans) - sum(parts.values()))

    async def _parts(self, plans: Sequence[PlannedObject]) -> dict[str, int]:
        """How many rows were loaded of what the objects were made of, by their keys; of those where it is any.

        They are found by position and hour. Where there are more of them than came with those objects, somebody
        else's are among them, and all stay.
        """
        loads: dict[str, list[tuple[str, int]]] = {}
        for batch in batches(sql.loads_with(self._stream, sorted({siblings(plan.key) for plan in plans}))):
            for found in await self._ask(batch):
                for key, rows in found:
                    loads.setdefault(siblings(str(key)), []).append((str(key), _integer(rows)))
        known = {plan.key: rows_within(plan, loads.get(siblings(plan.key), ())) for plan in plans}
        made = [plan for plan in plans if known[plan.key] > 0 and plan.max_time_us is not None]
        counts: list[int] = []
        for batch in batches(sql.count_rows(self._stream, plan) for plan in made):
            counts += [_integer(count) for [(count,)] in await self._ask(batch)]
        there = zip(made, counts, strict=True)
        return {plan.key: count for plan, count in there if 0 < count <= known[plan.key]}

    async def _load_rest(
        self, refused: Sequence[CommittedObject], store: ObjectStore, instead: Collection[str]
    ) -> LoadReport:
        """Load those that another loader has not loaded meanwhile."""
        missing = await self.missing([each.plan.key for each in refused])
        if len(missing) == len(refused):
            raise DependencyError(f"warehouse {self._stream}", "refuses what it says it has not")
        return await self.load([each for each in refused if each.plan.key in missing], store, instead)

    async def _extend(self, columns: Mapping[str, pl.DataType]) -> tuple[dict[str, str], list[Mistake]]:
        """Create the table or add the columns it lacks; the table's columns then, and what does not fit.

        Others may do the same at this moment: what fails is looked at again.
        """
        wanted = {
            name: sql.column_type(dtype, is_json=name in self._layout.json) for name, dtype in columns.items()
        }
        for attempt in range(_TRIES):
            there = await self._columns(self._stream)
            lacking = [name for name in wanted if name not in there]
            mistakes = self._unfit(there, wanted)
            if mistakes or not lacking:
                return there, mistakes
            changes = [sql.add_column(self._stream, name, wanted[name]) for name in lacking]
            if not there:
                changes = [sql.create_table(self._stream, wanted, self._layout)]
            try:
                for batch in batches(changes, MOST_STATEMENTS - 1):
                    await self._change([sql.LOCK, *batch])
            except BatchFailed as error:
                if attempt == _TRIES - 1:
                    raise self._unexpected(error, []) from error
        raise DependencyError(f"warehouse {self._stream}", "has not the columns it was given")

    def _unfit(self, there: Mapping[str, str], wanted: Mapping[str, str]) -> list[Mistake]:
        return [
            Mistake(
                f"warehouse table {sql.table(self._stream)}, column {name}",
                f"is {there[name]} and should be {kind}",
                "Rename the column in the topic page, or the table",
            )
            for name, kind in wanted.items()
            if name in there and not sql.fits(there[name], kind)
        ]

    async def _columns(self, stream: str) -> dict[str, str]:
        [rows] = await self._ask([sql.columns_of(stream)])
        return {str(name): str(kind) for name, kind in rows}

    async def _ask(self, statements: Sequence[str]) -> list[list[tuple[object, ...]]]:
        try:
            return await self._change(statements)
        except BatchFailed as error:
            raise self._unexpected(error, statements) from error

    async def _do(self, statements: Sequence[str]) -> None:
        await self._ask(statements)

    async def _change(self, statements: Sequence[str]) -> list[list[tuple[object, ...]]]:
        """Run the batch, again while other transactions are in its way."""
        pause = _FIRST_PAUSE
        for attempt in range(1, _TRIES + 1):
            try:
                return await self._session.run(statements)
            except BatchFailed as error:
                if not error.in_the_way or attempt == _TRIES:
                    raise
                _log.info("redshift_transaction_repeated", attempt=attempt, problem=error.message)
            await asyncio.sleep(pause)
            pause *= 2
        raise AssertionError("the last attempt returns or raises")

    def _unexpected(self, error: BatchFailed, statements: Sequence[str]) -> DependencyError:
        known = error.index is not None and error.index < len(statements)
        what = statements[error.index or 0].split("(")[0].strip()[:60] if known else "statement"
        return DependencyError(
            f"warehouse {self._stream}", f"{what}: {error.message}", "see docs/redshift.md, Failures"
        )


def open_redshift(url: str, stream: str, layout: TableLayout) -> RedshiftWarehouse:
    """The warehouse behind the URL. Raises :class:`ConfigError`."""
    try:
        target = parse_redshift(url)
    except Invalid as error:
        raise ConfigError([Mistake("warehouse", error.problem, error.fix)]) from None
    session: Session
    if isinstance(target, DataApi):
        from streamproc.sinks.redshift_data_api import DataApiSession  # noqa: PLC0415 - loaded when used

        session = DataApiSession(target)
    else:
        from streamproc.sinks.redshift_direct import DirectSession  # noqa: PLC0415 - loaded when used

        session = DirectSession(target)
    return RedshiftWarehouse(session, stream, target.iam_role, layout)


async def _delete(store: ObjectStore, keys: Mapping[str, Any]) -> None:
    for key in keys:
        with contextlib.suppress(DependencyError):
            await store.delete(key)


def _others(objects: Sequence[CommittedObject]) -> str:
    return f" and {len(objects) - 1} more" if len(objects) > 1 else ""


def _integer(value: object) -> int:
    return int(str(value))


def _moment(seconds: object) -> datetime:
    return datetime.fromtimestamp(_integer(seconds), UTC)
