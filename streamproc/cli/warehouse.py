"""``streamproc warehouse``: set it up, run the loader by hand, see what is loaded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import click
import structlog

from streamproc.cli.options import Group, json_option
from streamproc.cli.rendering import Section, show
from streamproc.cli.streams import (
    OpenedStream,
    opened_store,
    opened_streams,
    set_up_options,
    topic_argument,
)
from streamproc.errors import ConfigError, DependencyError, Inconsistent, Mistake, StreamprocError
from streamproc.runtimes import expiry
from streamproc.settings import Settings
from streamproc.sinks.loader import Loader
from streamproc.sinks.warehouse import (
    LoadReport,
    Quarantined,
    Quarantines,
    Warehouse,
    WarehouseStatus,
    warehouse_of,
)

_log = structlog.get_logger(__name__)


@click.group(name="warehouse", cls=Group)
def warehouse_command() -> None:
    """Set up, load and look at the warehouse."""


@warehouse_command.command(name="init")
@topic_argument
@set_up_options
def init_command(settings: Settings, topic: str | None) -> None:
    """Create the tables, and add the columns they lack.

    The workers do the same when they start; this is for setting a warehouse up before the first of them, as a
    user with more rights than theirs. It can be run again and again.
    """
    for name in asyncio.run(_init(settings, topic)):
        click.echo(f"{name}: ready")


@warehouse_command.command(name="load")
@click.option("--retry-quarantined", is_flag=True, help="Try what was put aside once more.")
@click.option("--all", "everything", is_flag=True, help="Compare all that was ever committed.")
@topic_argument
@partial(set_up_options, level="warning")
@json_option
def load_command(
    settings: Settings, topic: str | None, retry_quarantined: bool, everything: bool, as_json: bool
) -> None:
    """Load every committed object that is not loaded yet.

    The workers do the same every few seconds; this is for a warehouse that was switched on or restored
    later, and for one that the workers do not know. Any number of workers may load beside it: each object is loaded
    once. A stream that another run of this command is loading is left to that one.
    It looks back from the newest object: at 50,000 of them, and a day behind the oldest that is missing.
    Then objects go that the page keeps no longer ([retention] events), and that are loaded.
    """
    loaded = asyncio.run(_load(settings, topic, retry_quarantined, everything))
    if as_json:
        answer = [{"stream": name, "objects": each.objects, "rows": each.rows} for name, each in loaded]
        click.echo(json.dumps({"loaded": answer}, indent=2))
    else:
        rows = [[name, each.objects, each.rows] for name, each in loaded]
        show([Section("loaded", ["stream", "objects", "rows"], rows)])


@warehouse_command.command(name="status")
@topic_argument
@set_up_options
@json_option
def status_command(settings: Settings, topic: str | None, as_json: bool) -> None:
    """Show what is loaded and what was put aside, beside what the lake has."""
    found = asyncio.run(_status(settings, topic))
    if as_json:
        click.echo(json.dumps({"streams": [_as_dict(each) for each in found]}, indent=2))
        return
    rows = [[f.stream, f.status.objects, f.status.rows, f.rows_behind, f.status.loaded_at] for f in found]
    header = ["stream", "objects", "rows", "rows behind the lake", "loaded at"]
    aside = [[f.stream, each.key, each.since, each.problem] for f in found for each in f.quarantined]
    sections = [Section("warehouse", header, rows)]
    if aside:
        sections.append(Section("quarantined", ["stream", "object", "since", "problem"], aside))
    show(sections)


@dataclass(frozen=True)
class _Found:
    """What the warehouse has of a stream, how many rows the lake has, and how many of these the warehouse lacks."""

    stream: str
    status: WarehouseStatus
    quarantined: list[Quarantined]
    lake_rows: int
    rows_behind: int


async def _init(settings: Settings, topic: str | None) -> list[str]:
    async with _opened(settings, topic) as opened:
        for stream, warehouse in opened:
            await warehouse.ensure(stream.page.columns)
        return [stream.page.name for stream, _ in opened]


async def _load(
    settings: Settings, topic: str | None, retry: bool, everything: bool
) -> list[tuple[str, LoadReport]]:
    """Of every stream what can be loaded; then raises what was wrong with the page, the table or the objects of one."""
    loaded: list[tuple[str, LoadReport]] = []
    failed: StreamprocError | None = None
    async with opened_store(settings) as store, _opened(settings, topic) as opened:
        for stream, warehouse in opened:
            async with _alone(stream) as alone:
                if not alone:
                    _log.warning("another_loader", stream=stream.page.name)
                    continue
                try:
                    await warehouse.ensure(stream.page.columns)
                except (ConfigError, DependencyError) as error:
                    failed = failed or error
                    continue
                if retry and isinstance(warehouse, Quarantines):
                    await warehouse.release()
                loader = Loader(stream.ledger, warehouse, store)
                try:
                    # What was put aside may have been committed at any time.
                    report = await (loader.run_once() if everything or retry else loader.load_rest())
                except (Inconsistent, DependencyError) as error:
                    failed = failed or error
                else:
                    # An alarm waits for this line: observability.yaml counts it, as upkeep tells workers' metrics.
                    _log.info(
                        "warehouse_up_to_date",
                        stream=stream.page.name,
                        objects=report.objects,
                        rows=report.rows,
                    )
                    loaded.append((stream.page.name, report))
                try:
                    await _expire(stream, warehouse)  # what is loaded; one bad object holds up no other
                except StreamprocError as error:
                    failed = failed or error
    if failed is not None:
        raise failed
    return loaded


def _alone(stream: OpenedStream) -> AbstractAsyncContextManager[bool]:
    """Whether no other run of the command is loading the stream.

    A scheduler starts it every few minutes: while something holds a lock in the warehouse, each would wait there.
    """
    return stream.ledger.database.alone(
        f"streamproc warehouse load {stream.page.name}", "look for other loaders"
    )


async def _expire(stream: OpenedStream, warehouse: Warehouse) -> None:
    """Let go of the objects that the page keeps no longer: workers that know no warehouse leave it to its loader."""
    if stream.page.retention.events is not None:
        clock = await expiry.without_broker(stream.ledger, stream.page)
        expired = await expiry.expire_events(stream.ledger, stream.page, clock, warehouse)
        _log.debug("retained", stream=stream.page.name, expired_events=expired)


async def _status(settings: Settings, topic: str | None) -> list[_Found]:
    async with _opened(settings, topic) as opened:
        return [await _found(stream, warehouse) for stream, warehouse in opened]


async def _found(stream: OpenedStream, warehouse: Warehouse) -> _Found:
    """By its objects: of sums nobody knows which rows the lake has let go of since they were loaded."""
    status = await warehouse.status()
    aside = await warehouse.quarantined() if isinstance(warehouse, Quarantines) else []
    lake = behind = 0
    async for page in stream.ledger.committed("events"):
        rows = {each.plan.key: each.plan.rows for each in page}
        # Before the first load there may be nothing to ask.
        lacking = set(rows) if status.loaded_at is None else await warehouse.missing(list(rows))
        lacking |= {each.key for each in aside}
        lake += sum(rows.values())
        behind += sum(count for key, count in rows.items() if key in lacking)
    return _Found(stream.page.name, status, aside, lake, behind)


@asynccontextmanager
async def _opened(
    settings: Settings, topic: str | None
) -> AsyncIterator[list[tuple[OpenedStream, Warehouse]]]:
    """Each stream that feeds the warehouse, and its table there, connected.

    Raises ConfigError when there is no warehouse, or no such stream.
    """
    if settings.warehouse.scheme == "none":
        fix = "Name one, such as postgresql://user@host/database"
        raise ConfigError([Mistake("warehouse", "is none", fix)])
    async with AsyncExitStack() as stack:
        streams = await stack.enter_async_context(opened_streams(settings, topic))
        opened = []
        for stream in streams:
            if (warehouse := warehouse_of(stream.page, stream.endpoints.warehouse)) is not None:
                stack.push_async_callback(warehouse.close)
                await warehouse.open()
                opened.append((stream, warehouse))
        if not opened:
            raise ConfigError([Mistake("sinks.warehouse", "is false in the topic page", "Set it to true")])
        yield opened


def _as_dict(found: _Found) -> dict[str, object]:
    status = found.status
    return {
        "stream": found.stream,
        "objects": status.objects,
        "rows": status.rows,
        "lake_rows": found.lake_rows,
        "rows_behind_lake": found.rows_behind,
        "loaded_at": None if status.loaded_at is None else status.loaded_at.isoformat(),
        "quarantined": [
            {"key": each.key, "since": each.since.isoformat(), "problem": each.problem}
            for each in found.quarantined
        ],
    }
