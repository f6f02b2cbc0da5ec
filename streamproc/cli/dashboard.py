"""``streamproc dashboard``: the pages, and the rights their database role needs."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from streamproc.cli.options import Group, load_topics, only_itself, settings_options
from streamproc.cli.streams import named, set_up_options

if TYPE_CHECKING:
    from streamproc.settings import Bind, Settings
    from streamproc.topology import Topology

#: The role that the dashboard makes for itself in an embedded database.
EMBEDDED_ROLE = "streamproc_dashboard"


@click.group(name="dashboard", cls=Group, invoke_without_command=True)
@click.option(
    "--stream", "topic", metavar="STREAM", help="Only this stream. [default: all topic pages that ever ran]"
)
@click.option(
    "--bind", metavar="HOST:PORT", help="Where to listen. [default: dashboard.bind, 127.0.0.1:8090]"
)
@click.option("--open", "open_", is_flag=True, help="Open a browser.")
@only_itself
@partial(set_up_options, level="warning")
def dashboard_command(settings: Settings, topic: str | None, bind: str | None, open_: bool) -> None:
    """Serve the pages: visitors, tables, the pipeline.

    It runs until SIGTERM and only reads, as the role of dashboard.database. Without a password or a proxy it
    listens on localhost only. docs/dashboard.md says how to let others look.
    """
    asyncio.run(_serve(settings, topic, bind, open_))


@dashboard_command.command(name="grant")
@click.argument("role")
@settings_options
def grant_command(role: str, config: Path | None, topics: Path | None) -> None:
    """Write the SQL that creates ROLE and gives it what the pages read.

    For psql, as the owner of the tables, who needs CREATEROLE to make it, once the streams have run; again when a
    stream is added. Give the role a password yourself: ALTER ROLE … PASSWORD.
    """
    from streamproc.cli.options import load_settings  # noqa: PLC0415 - keeps --help fast
    from streamproc.dashboard.role import grants  # noqa: PLC0415

    settings = load_settings(config, topics)
    beside = settings.warehouse.embedded or settings.warehouse == settings.ledger
    click.echo(grants(role, list(load_topics(settings)), warehouse=beside).as_string(None), nl=False)


async def _serve(settings: Settings, topic: str | None, where: str | None, open_: bool) -> None:
    from streamproc.dashboard.access import access  # noqa: PLC0415 - keeps --help fast
    from streamproc.dashboard.server import Sources, serve  # noqa: PLC0415
    from streamproc.runtimes.attach import attached, running_broker  # noqa: PLC0415
    from streamproc.runtimes.service import signals  # noqa: PLC0415
    from streamproc.sinks.object_store import lake_store  # noqa: PLC0415

    own = settings.dashboard
    bind = _bind(where) if where else own.bind
    allowed = access(own, bind.host)
    pages = named(load_topics(settings), topic)
    stop = asyncio.Event()
    async with AsyncExitStack() as stack:
        stack.enter_context(signals(stop))
        if own.database is not None and not own.database.embedded:
            database, warehouse = own.database.reveal(), settings.warehouse.reveal()
            if settings.warehouse.embedded:  # beside the ledger, which is there, or in the data folder
                warehouse = "none" if settings.ledger.embedded else database
        else:
            endpoints = await stack.enter_async_context(attached(settings))
            database, warehouse = endpoints.ledger, endpoints.warehouse or "none"
        if settings.ledger.embedded and (own.database is None or own.database.embedded):
            database = await _as_reader(database, [page.name for page in pages])
            warehouse = database if settings.warehouse.embedded else warehouse
        if topic is None:
            pages = await _that_ran(database, pages)
        # What is away has its next chance soon: nobody waits for many tries.
        store = lake_store(settings, attempts=2)
        stack.push_async_callback(store.close)
        broker = partial(running_broker, settings)

        def ready(address: str) -> None:
            click.echo(f"Dashboard: {address}")
            if open_:
                click.launch(address)

        sources = Sources(pages, database, broker, warehouse, store, own.statement_timeout)
        await serve(sources, bind, allowed, stop, ready)


def _bind(text: str) -> Bind:
    from streamproc.quantities import Invalid  # noqa: PLC0415 - keeps --help fast
    from streamproc.settings.parse import bind  # noqa: PLC0415

    try:
        return bind(text, Path())
    except Invalid as error:
        raise click.BadParameter(str(error), param_hint="--bind") from None


async def _as_reader(database: str, streams: list[str]) -> str:
    """The embedded database as a role that may only read; it is made here, as nobody else would."""
    from psycopg import AsyncConnection  # noqa: PLC0415 - keeps --help fast
    from psycopg.conninfo import make_conninfo  # noqa: PLC0415

    from streamproc.dashboard.role import existing, grants  # noqa: PLC0415
    from streamproc.database import Database  # noqa: PLC0415

    with Database(database, "streamproc dashboard").speaking("make the dashboard's role"):
        async with await AsyncConnection.connect(database) as conn:
            there = await existing(conn, ["streamproc", "warehouse", *streams])
            if "streamproc" in there:
                readable = [name for name in streams if name in there]
                await conn.execute(grants(EMBEDDED_ROLE, readable, warehouse="warehouse" in there))
    return make_conninfo(database, user=EMBEDDED_ROLE) if "streamproc" in there else database


async def _that_ran(database: str, pages: list[Topology]) -> list[Topology]:
    """The pages whose streams ever ran; all when none did or the database does not say."""
    from streamproc.database import Database  # noqa: PLC0415 - keeps --help fast
    from streamproc.errors import StreamprocError  # noqa: PLC0415
    from streamproc.ledger.reading import streams  # noqa: PLC0415

    try:
        async with Database(database, "streamproc dashboard", timeout=3.0) as opened:
            ran = await streams(opened)
    except StreamprocError:
        return pages
    return [page for page in pages if page.name in ran] or pages
