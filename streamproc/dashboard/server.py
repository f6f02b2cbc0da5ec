"""The dashboard's server: pages, downloads, health; one process that only reads."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI
from nicegui import ui
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from streamproc.dashboard.access import LARGEST_TOKEN, Access
from streamproc.dashboard.catalog import explorable
from streamproc.dashboard.compressed import Compressed
from streamproc.dashboard.downloads import Downloads
from streamproc.dashboard.gate import Gate
from streamproc.dashboard.groups import Groups
from streamproc.dashboard.live import Live
from streamproc.dashboard.login_page import ICON
from streamproc.dashboard.page_explore import explore_page
from streamproc.dashboard.page_live import live_page
from streamproc.dashboard.page_pipeline import pipeline_page
from streamproc.dashboard.pipeline_view import Ends, PipelineView, ledger_over
from streamproc.dashboard.reading import POOL, Reader, Shared, explain, read_only
from streamproc.dashboard.reject_samples import RejectReader
from streamproc.dashboard.shell import Site, Stream
from streamproc.database import Database
from streamproc.errors import DependencyError
from streamproc.ledger import ObjectTotal
from streamproc.settings import Bind
from streamproc.settings.redshift import SCHEMES
from streamproc.sinks.object_store import ObjectStore
from streamproc.sinks.warehouse import WarehouseStatus
from streamproc.sinks.warehouse_postgres import PostgresWarehouse
from streamproc.sources.kafka_client import KafkaConnection
from streamproc.sources.kafka_positions import spans
from streamproc.sources.opening import Connection
from streamproc.topology import Topology

#: Seconds for which answers are shared: what costs little, what asks the broker, what reads a whole list.
QUICK, ASKED, COUNTED = 1.5, 5.0, 30.0

#: Seconds for the warehouse to answer: a page waits for it, and has the rest by then.
_WAREHOUSE = 3.0

_NO_ENDS = "The broker was not asked: the end of the topic, and so the lag, is unknown."

#: Each look would be paid for, and wake a workgroup that sleeps.
_REDSHIFT = "in Redshift, which the pages do not ask: streamproc warehouse status does"


@dataclass(frozen=True, slots=True)
class Sources:
    """What is read. ``database``: conninfo of ledger and tables.

    ``broker`` is asked each time: an embedded one comes, goes and comes again at another port; ``None`` when there is
    none now. ``warehouse``: conninfo or ``none``. ``store``: the lake, for samples of rejects, not opened, or ``None``.
    """

    topologies: Sequence[Topology]
    database: str
    broker: Callable[[], AbstractAsyncContextManager[Connection | None]] = nullcontext
    warehouse: str = "none"
    store: ObjectStore | None = None
    statement_timeout: float = 5.0


async def serve(
    sources: Sources, bind: Bind, access: Access, stop: asyncio.Event, ready: Callable[[str], None]
) -> None:
    """Serve until ``stop``; ``ready`` is told the address once the port answers.

    The database may be away, at the start too: the pages say so. Raises :class:`DependencyError` when the port is
    taken, :class:`ConfigError` for a connection string that is none.
    """
    database = Database(
        read_only(sources.database, sources.statement_timeout), "streamproc dashboard", size=POOL, timeout=3.0
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(database.close)
        reader = Reader(database)
        site = Site(
            {topology.name: _stream(topology, reader, sources) for topology in sources.topologies},
            password=access.password is not None,
        )
        # The library of WebSockets, loaded later, leaves a handshake hanging that has a line of more than 8 kB.
        os.environ.setdefault("WEBSOCKETS_MAX_LINE_LENGTH", str(LARGEST_TOKEN + 1_024))
        config = uvicorn.Config(
            Gate(Compressed(application(site), "/_nicegui/"), access),
            host=bind.host,
            port=bind.port,
            log_config=None,
            access_log=False,
            proxy_headers=False,  # the gate judges proxies by itself
            server_header=False,
            ws_max_size=1_048_576,
            timeout_graceful_shutdown=2,
        )
        await _run(_Server(config), bind, stop, ready)


class _Server(uvicorn.Server):
    """A server that leaves signals to whoever runs it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _run(server: uvicorn.Server, bind: Bind, stop: asyncio.Event, ready: Callable[[str], None]) -> None:
    config = server.config
    try:
        socket = config.bind_socket()
    except (OSError, SystemExit) as error:  # uvicorn exits by itself when a port is taken
        raise DependencyError(str(bind), "the dashboard cannot listen there", "set dashboard.bind") from error
    host = "localhost" if bind.host in {"127.0.0.1", "::1"} else bind.host
    port = socket.getsockname()[1]
    serving = asyncio.create_task(server.serve(sockets=[socket]))
    stopping = asyncio.create_task(stop.wait())
    while not server.started and not serving.done():
        await asyncio.wait({serving}, timeout=0.02)
    if not serving.done():
        ready(f"http://{host}:{port}/")
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    stopping.cancel()
    await serving


def _stream(topology: Topology, reader: Reader, sources: Sources) -> Stream:
    ledger = ledger_over(reader, topology.name)
    totals = Shared[Sequence[ObjectTotal]](ledger.object_totals, COUNTED)
    late = Shared[Mapping[str, int]](ledger.late, COUNTED)
    ends = Shared(lambda: _ends(sources.broker, topology), ASKED)
    loaded = Shared(lambda: _warehouse(sources, topology), COUNTED)

    async def newest_ends() -> Ends:
        seen = await ends.get()
        return seen.value or Ends({}, {}, str(seen.problem))

    async def warehouse() -> WarehouseStatus | str | None:
        seen = await loaded.get()
        if seen.value is None and seen.problem is not None:
            return f"not known: {explain(seen.problem)[0]}"
        return seen.value

    live = Live(topology, reader)
    view = PipelineView(
        topology, reader, ends=newest_ends, totals=totals.get, late=late.get, warehouse=warehouse
    )
    rejects = None
    if sources.store is not None:
        rejects = Shared(RejectReader(topology.name, reader, sources.store).look, ASKED)
    return Stream(
        topology,
        reader,
        explorable(topology),
        Groups(reader),
        live,
        Shared(live.clock, QUICK),
        Shared(live.look, QUICK),
        Shared(view.look, QUICK),
        rejects,
    )


async def _ends(
    running: Callable[[], AbstractAsyncContextManager[Connection | None]], topology: Topology
) -> Ends:
    async with running() as broker:
        if not isinstance(broker, KafkaConnection):
            return Ends({}, {}, _NO_ENDS if broker is None else None)
        return Ends(await spans(broker, topology.topic.name), {})


async def _warehouse(sources: Sources, topology: Topology) -> WarehouseStatus | str | None:
    if not topology.sinks.warehouse or sources.warehouse == "none":
        return None
    if urlsplit(sources.warehouse).scheme in SCHEMES:
        return _REDSHIFT
    warehouse = PostgresWarehouse(read_only(sources.warehouse, sources.statement_timeout), topology.name)
    try:
        async with asyncio.timeout(_WAREHOUSE):
            await warehouse.open()
            return await warehouse.status()
    except TimeoutError as error:
        problem = f"no answer within {_WAREHOUSE:.0f} s"
        raise DependencyError("warehouse", problem, "is it up, and reachable from here?") from error
    finally:
        await warehouse.close()


def application(site: Site) -> FastAPI:
    """The ASGI application; NiceGUI keeps its pages for the whole process, so there can be one."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.router.routes.append(Route("/download.{kind}", Downloads(site), methods=["GET"]))

    @app.get("/healthz")
    async def health() -> Response:
        return PlainTextResponse("ok\n")

    @ui.page("/")
    async def live(request: Request) -> None:
        await live_page(site, request)

    @ui.page("/explore")
    async def explore(request: Request) -> None:
        await explore_page(site, request)

    @ui.page("/pipeline")
    async def pipeline(request: Request) -> None:
        await pipeline_page(site, request)

    ui.run_with(
        app,
        title="streamproc",
        dark=None,
        language="en-US",
        show_welcome_message=False,
        tailwind=False,
        favicon=ICON,
        # What is left of it: pages are small, and 1 takes a quarter of what 9, the default, does.
        gzip_middleware_factory=lambda app: GZipMiddleware(app, compresslevel=1),
    )
    return app
