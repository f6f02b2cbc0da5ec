"""A promoter with what it works on: lake, warehouse, and the replay's own ledger."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from streamproc.errors import ConfigError, Mistake
from streamproc.ledger import Ledger
from streamproc.ledger.replays import Replay
from streamproc.runtimes.endpoints import Endpoints
from streamproc.runtimes.replay.promote import Promoter
from streamproc.runtimes.replay.work import page_of
from streamproc.settings import Settings
from streamproc.sinks.lake import Lake
from streamproc.sinks.loader import Loader
from streamproc.sinks.object_store import lake_store
from streamproc.sinks.warehouse import Swaps, Warehouse, layout_of, open_warehouse
from streamproc.topology import Topology


@asynccontextmanager
async def opened(
    settings: Settings, page: Topology, replay: Replay, ledger: Ledger, endpoints: Endpoints
) -> AsyncIterator[Promoter]:
    """The promoter of a replay of ``page``'s stream, with lake and warehouse connected.

    Raises :class:`ConfigError` when the page is not the one the replay began with.
    """
    if replay.fingerprint != page.fingerprint and replay.state != "promoted":
        problem = f"the topic page has changed since replay {replay.name} began"
        fix = f"Put it back, or `streamproc replay discard {replay.name}` and replay again"
        raise ConfigError([Mistake(page.name, problem, fix)])
    async with AsyncExitStack() as stack:
        store = lake_store(settings)
        await store.open()
        stack.push_async_callback(store.close)
        loader, warehouses = None, dict[str, Warehouse]()
        if endpoints.warehouse is not None and page.sinks.warehouse:
            for name in (page.name, replay.namespace):
                warehouse = open_warehouse(endpoints.warehouse, name, layout_of(page))
                if warehouse is None:
                    continue
                if not isinstance(warehouse, Swaps):
                    problem = "cannot put a replay's rows in the place of others"
                    raise ConfigError([Mistake("warehouse", problem, "Use one in PostgreSQL or Redshift")])
                stack.push_async_callback(warehouse.close)
                await warehouse.open()
                warehouses[name] = warehouse
            own_ledger = Ledger(endpoints.ledger, replay.namespace, ledger.worker, pool_size=1)
            await stack.enter_async_context(own_ledger)
            loader = Loader(own_ledger, warehouses[replay.namespace], store)
        yield Promoter(
            page,
            replay,
            ledger,
            Lake(store, page_of(page, replay)),
            loader=loader,
            live=warehouses.get(page.name),
            own=warehouses.get(replay.namespace),
        )
