"""What a warm instance of the function keeps: connections, claims, and the pipeline that commits."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import structlog

from streamproc.database import Database
from streamproc.errors import ConfigError, DependencyError, Mistake
from streamproc.ledger import Ledger
from streamproc.model import Partition, RecordBatch
from streamproc.pipeline import Limits, Pipeline
from streamproc.runtimes.erased import read_erased
from streamproc.settings import Settings
from streamproc.sinks.lake import Lake
from streamproc.sinks.object_store import ObjectStore, lake_store
from streamproc.sinks.summaries import Summaries
from streamproc.transform import Transform
from streamproc.transform.pool import TransformPool

log = structlog.get_logger(__name__)

#: Seconds without an invocation after which connections are made anew: the instance was frozen, and what lies between
#: it and the database may have forgotten them without a word (a NAT gateway does after 350 s).
_STALE = 240.0

#: Seconds for a commit to be given up: of the second that an invocation keeps for its answer.
_ROLLBACK = 0.7

#: Connections of an instance: a thousand instances may run, and PostgreSQL has to bear all of them.
_CONNECTIONS = 2

#: An epoch of an instance, which has less memory than a worker.
_MOST_RECORDS, _MOST_BYTES = 200_000, 128 * 1024 * 1024


class Engine:
    """Ledger, lake and pipeline of one stream, connected when they are first needed.

    Raises :class:`ConfigError` for settings and pages that a function cannot do.
    """

    def __init__(self, settings: Settings, transform: Transform) -> None:
        page = transform.topology
        mistakes = []
        if settings.ledger.embedded and settings.function.ledger_secret is None:
            fix = "Set STREAMPROC_LEDGER, or STREAMPROC_FUNCTION_LEDGER_SECRET"
            mistakes.append(Mistake("ledger", "is embedded, and a function has no server in it", fix))
        if page.sinks.published:
            fix = "Remove publish_events and publish_tables, or let a worker read the topic"
            mistakes.append(Mistake(f"{page.name}: sinks", "publishes, which a function does not", fix))
        if mistakes:
            raise ConfigError(mistakes)
        self.settings = settings
        self.transform = transform
        self._ledger: Ledger | None = None
        self._pipeline: Pipeline | None = None
        self._store: ObjectStore | None = None
        self._used = 0.0
        self._doubtful = False

    async def ready(self) -> None:
        """Connect what is not, or not any more. Raises :class:`DependencyError`."""
        idle = time.time() - self._used
        self._used = time.time()
        try:
            if self._ledger is None:
                await self._connect()
            elif self._doubtful or idle > _STALE:
                log.info("connecting_again", idle=round(idle))
                await self._ledger.close()
                await self._ledger.open()
            self._doubtful = False
        except DependencyError:
            await self._disconnect()  # a password may have changed: all is made anew next time
            raise

    async def _connect(self) -> None:
        settings, page = self.settings, self.transform.topology
        url = settings.ledger
        if settings.function.ledger_secret is not None:
            from streamproc.secrets_manager import secret_url  # noqa: PLC0415 - Amazon's client takes a second

            url = await secret_url(url, settings.function.ledger_secret, settings.s3.region)
        ledger = Ledger(url.reveal(), page.name, settings.worker, pool_size=_CONNECTIONS)
        summaries = Summaries.of(page)
        try:
            await ledger.open()
            await ledger.migrate()
            async with ledger.database.connection("create the tables") as conn:
                await summaries.ensure(conn)
            if self.transform.wants_visitor_key:
                self.transform.visitor_key = await ledger.visitor_key()
            lake = await self._open_lake()
        except BaseException:
            await self._close_store()
            await ledger.close()
            raise
        self._ledger = ledger
        self._pipeline = Pipeline(
            page,
            TransformPool(self.transform),
            ledger=ledger,
            lake=lake,
            summaries=summaries,
            limits=Limits(
                flush_interval=settings.flush_interval,
                fold_records=settings.batch_records,
                max_records=min(settings.max_epoch_records, _MOST_RECORDS),
                max_bytes=min(settings.max_epoch_bytes, _MOST_BYTES),
            ),
            claimed=self._read_erasures if page.erasure else None,
        )

    async def _read_erasures(self) -> None:
        page = self.transform.topology
        self.transform.erased = await read_erased(self.database, page.name, page)

    async def _open_lake(self) -> Lake | None:
        if not self.transform.topology.sinks.lake:
            return None
        self._store = lake_store(self.settings)
        await self._store.open()
        return Lake(self._store, self.transform.topology)

    async def _disconnect(self) -> None:
        ledger, pipeline = self._ledger, self._pipeline
        self._ledger = self._pipeline = None
        if pipeline is not None:
            try:
                await pipeline.close()
            except DependencyError as error:  # whoever claims next takes them
                log.warning("claims_not_released", on=error.what, problem=error.problem)
        await self._close_store()
        if ledger is not None:
            await ledger.close()

    async def _close_store(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            await store.close()

    async def close(self) -> None:
        """Release the claims and disconnect."""
        await self._disconnect()

    @property
    def database(self) -> Database:
        """The ledger's."""
        assert self._ledger is not None, "ready() first"
        return self._ledger.database

    @property
    def pipeline(self) -> Pipeline:
        """Which :meth:`positions` has claimed partitions for."""
        assert self._pipeline is not None, "ready() first"
        return self._pipeline

    async def positions(self, partitions: Sequence[Partition]) -> Mapping[Partition, int | None]:
        """Through where each is committed, all of them being claimed by us.

        A claim of an earlier invocation is kept while nobody else has claimed the partition: the ids that duplicates
        are recognised by need not be read from the lake again.
        """
        held = await self.pipeline.held()
        if missing := [partition for partition in partitions if partition not in held]:
            await self.pipeline.assigned(missing)
        committed = self.pipeline.committed
        return {partition: committed[partition][0] for partition in partitions}

    async def commit(self, batches: Sequence[RecordBatch]) -> None:
        """Commit these records of partitions that :meth:`positions` was asked for. Raises as the pipeline does.

        After any error :meth:`forget`.
        """
        await self.pipeline.take(batches, self.pipeline.generation)
        await self.pipeline.drain()

    async def forget(self) -> None:
        """Drop what is not committed, and the claims in memory: the ledger says where to go on.

        Connections are made anew before the next work. Those of a busy instance are never stale, and a database that
        has another password by now would be asked with the old one for ever.
        """
        self._doubtful = True
        if self._pipeline is not None:
            await self._pipeline.abandon(_ROLLBACK)
