"""``streamproc warehouse``: the loader by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import click

from streamproc.cli.options import json_option
from streamproc.cli.rendering import Section, show
from streamproc.cli.streams import (
    OpenedStream,
    opened_store,
    opened_streams,
    set_up_options,
    topic_argument,
)
from streamproc.errors import ConfigError, Mistake
from streamproc.ledger import Ledger
from streamproc.settings import Settings
from streamproc.sinks.loader import Loader
from streamproc.sinks.warehouse import LoadReport, Warehouse, WarehouseStatus, open_warehouse


@click.group(name="warehouse")
def warehouse_command() -> None:
    """Load the warehouse by hand."""


@warehouse_command.command(name="load")
@topic_argument
@set_up_options
@json_option
def load_command(settings: Settings, topic: str | None, as_json: bool) -> None:
    """Load every committed object that is not loaded yet.

    The workers do the same every few seconds; this is for a warehouse that was switched on or restored
    later. Any number of loaders may run: each object is loaded once.
    """
    loaded = asyncio.run(_load(settings, topic))
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
    """Show what is loaded, beside what the lake has."""
    found = asyncio.run(_status(settings, topic))
    if as_json:
        click.echo(json.dumps({"streams": [_as_dict(*each) for each in found]}, indent=2))
    else:
        rows = [[name, s.objects, s.rows, lake - s.rows, s.loaded_at] for name, s, lake in found]
        header = ["stream", "objects", "rows", "rows behind the lake", "loaded at"]
        show([Section("warehouse", header, rows)])


async def _load(settings: Settings, topic: str | None) -> list[tuple[str, LoadReport]]:
    loaded = []
    async with opened_store(settings) as store, _opened(settings, topic) as opened:
        for stream, warehouse in opened:
            await warehouse.ensure(stream.page.columns)
            report = await Loader(stream.ledger, warehouse, store).run_once()
            loaded.append((stream.page.name, report))
    return loaded


async def _status(settings: Settings, topic: str | None) -> list[tuple[str, WarehouseStatus, int]]:
    async with _opened(settings, topic) as opened:
        return [
            (stream.page.name, await warehouse.status(), await _lake_rows(stream.ledger))
            for stream, warehouse in opened
        ]


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
            if stream.page.sinks.warehouse:
                warehouse = open_warehouse(stream.endpoints.warehouse or "none", stream.page.name)
                assert warehouse is not None, "asked before"
                stack.push_async_callback(warehouse.close)
                await warehouse.open()
                opened.append((stream, warehouse))
        if not opened:
            raise ConfigError([Mistake("sinks.warehouse", "is false in the topic page", "Set it to true")])
        yield opened


async def _lake_rows(ledger: Ledger) -> int:
    totals = await ledger.object_totals()
    return sum(each.rows for each in totals if (each.kind, each.state) == ("events", "committed"))


def _as_dict(stream: str, status: WarehouseStatus, lake_rows: int) -> dict[str, object]:
    return {
        "stream": stream,
        "objects": status.objects,
        "rows": status.rows,
        "lake_rows": lake_rows,
        "rows_behind_lake": lake_rows - status.rows,
        "loaded_at": None if status.loaded_at is None else status.loaded_at.isoformat(),
    }
