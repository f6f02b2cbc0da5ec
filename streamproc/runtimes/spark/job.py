"""What the driver does: connect, read the logs of a period or the lake by Spark, disconnect."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from streamproc.ledger import Ledger
from streamproc.ledger.logs import Logs
from streamproc.log_objects import Period
from streamproc.runtimes.endpoints import Endpoints
from streamproc.runtimes.spark.history import Done, History, Sizes
from streamproc.runtimes.spark.rebuild import Rebuild, Rebuilt
from streamproc.runtimes.spark.setup import Setup
from streamproc.runtimes.spark.stages import Reads
from streamproc.settings import Settings
from streamproc.sinks.object_store import StoreSettings
from streamproc.sinks.summaries import Summaries
from streamproc.sources.log_store import LogConnection
from streamproc.sources.logs import open_log_store
from streamproc.topology import Topology
from streamproc.transform.weblog_formats import PARSERS as LOG_PARSERS

#: Buckets of a job at least. A cluster that grows as it is asked says that it has two cores before it has any.
_BUCKETS = 64

#: Seconds for which done logs have been done before their partitions are folded into one.
_COMPACT_AFTER = 3_600.0


async def rebuild(
    settings: Settings,
    page: Topology,
    engine: Reads,
    tables: Sequence[str],
    *,
    dates: tuple[int, int],
    task_bytes: int,
    tell: Callable[[str, Rebuilt], None],
) -> Rebuilt:
    """Compute tables anew from the lake for some dates; see :class:`Rebuild`. ``dates``: Unix microseconds."""
    async with (
        Endpoints(settings, needs_broker=False) as endpoints,
        Ledger(endpoints.ledger, page.name, settings.worker) as ledger,
    ):
        await ledger.migrate()
        async with ledger.database.connection("create the tables") as conn:
            await Summaries.of(page).ensure(conn)
        # Neither logs nor the visitors' key: the lake's events have their ids.
        setup = _setup(settings, page, engine, LogConnection(""), b"")
        return await Rebuild(setup, ledger, engine).run(tables, *dates, task_bytes, tell)


async def history(
    settings: Settings,
    page: Topology,
    period: Period,
    engine: Reads,
    *,
    sizes: Sizes,
    tell: Callable[[str, Done], None],
) -> Done:
    """Read the logs of ``settings.broker`` that were changed in the period; see :class:`History`."""
    async with Endpoints(settings) as endpoints:
        connection = endpoints.broker
        assert isinstance(connection, LogConnection)
        store = open_log_store(connection)
        await store.open()
        try:
            async with Ledger(endpoints.ledger, page.name, settings.worker) as ledger:
                await ledger.migrate()
                async with ledger.database.connection("create the tables") as conn:
                    await Summaries.of(page).ensure(conn)
                needs_key = page.contract.decoder in LOG_PARSERS
                key = await ledger.visitor_key() if needs_key else b""
                setup = _setup(settings, page, engine, connection, key)
                timeout = settings.logs.lease_timeout
                logs = Logs(ledger.database, page.name, str(connection), settings.worker, timeout)
                done = await History(setup, ledger, logs, engine).run(store, period, sizes, tell)
                if not connection.folder:
                    await logs.compact(_COMPACT_AFTER)
                return done
        finally:
            await store.close()


def _setup(settings: Settings, page: Topology, engine: Reads, connection: LogConnection, key: bytes) -> Setup:
    return Setup(
        topics=settings.topics,
        stream=page.name,
        fingerprint=page.fingerprint,
        visitor_key=key,
        logs=connection,
        lake=settings.lake.reveal(),
        store=StoreSettings.of(settings),
        buckets=max(_BUCKETS, engine.slots),
        batch_records=settings.batch_records,
    )
