"""The service: a Faust application that hosts one stream's pipeline.

Faust runs the services, the agent and the timers. The stream itself does not go through Faust's consumer
(see ``docs/decisions``): a ledgered source hands whole record batches to a Faust channel, and the agent on
that channel folds and commits them. The application that hosts the pipeline opens no Kafka connection of
its own and nothing in it ever rebalances, so no queue of it is ever emptied behind our back.

Nothing an agent raises may reach Faust's supervisor, which would restart the agent and go on with the next
batch: a failure is kept, the pump stops, and :meth:`Worker.run` raises it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import faust
import polars as pl
import structlog
from faust.app.base import BootStrategy

from streamproc import failpoints, native
from streamproc.concurrency import cancelled, done_before
from streamproc.epoch import Epoch
from streamproc.errors import DependencyError, Fenced
from streamproc.ledger import Ledger
from streamproc.ledger.logs import Logs
from streamproc.ledger.shards import Shards
from streamproc.model import Partition, RecordBatch
from streamproc.pipeline import Limits, Pipeline, Watcher
from streamproc.runtimes.agents import UserAgents
from streamproc.runtimes.endpoints import Endpoints, until_there
from streamproc.runtimes.erased import read_erased
from streamproc.runtimes.observation import LOOK_EVERY, Observation
from streamproc.runtimes.publication import Publication
from streamproc.runtimes.release import release
from streamproc.runtimes.upkeep import Upkeep
from streamproc.settings import Settings
from streamproc.sinks.lake import Lake
from streamproc.sinks.object_store import lake_store
from streamproc.sinks.summaries import Summaries
from streamproc.sources import Source
from streamproc.sources.kafka_client import KafkaConnection
from streamproc.sources.opening import kafka_only, open_source
from streamproc.topology import Topology
from streamproc.transform import Resources, Transform
from streamproc.transform.pool import TransformPool

log = structlog.get_logger(__name__)

#: Whatever work may fail with: a panic of polars is no Exception.
_ANY_FAILURE = (Exception, pl.exceptions.PanicException)

#: Longest wait for records before the pump looks at the clock again, seconds.
_MAX_WAIT = 0.1

#: Seconds before a source that has refused the worker is asked again.
_ASK_AGAIN = 5.0

#: Seconds for which a start waits for the warehouse, which the stream does without: mistakes are found out first.
_WAREHOUSE_WITHIN = 10.0


class _NoKafka(BootStrategy):
    enable_kafka = False
    enable_web = False
    enable_sensors = False


class _HostApp(faust.App):
    BootStrategy = _NoKafka


class Worker:
    """One worker of one stream. :meth:`run` until its event is set or something fails for good."""

    def __init__(
        self,
        settings: Settings,
        topology: Topology,
        endpoints: Endpoints,
        *,
        pages: Path,
        agents: str | None = None,
        committed: Callable[[Epoch, float], None] | None = None,
        watcher: Watcher | None = None,
    ) -> None:
        """``pages``: the folder of the topic page, for files it names. ``committed``, ``watcher``: see
        :class:`~streamproc.pipeline.Pipeline`. Raises :class:`ConfigError`.
        """
        assert endpoints.broker is not None
        self.settings = settings
        self.topology = topology
        self.state = "starting"
        self.ledger = Ledger(endpoints.ledger, topology.name, settings.worker)
        self._broker = endpoints.broker
        self._store = lake_store(settings) if topology.sinks.lake else None
        self._lake = Lake(self._store, topology) if self._store is not None else None
        self._summaries = Summaries.of(topology)
        self._publication = (
            Publication(topology, self._lake, endpoints, settings.worker) if self._publishes else None
        )
        self._agents = (
            UserAgents(
                agents,
                topology,
                kafka_only(endpoints.broker, "agents run"),
                settings.group,
                settings.data_dir,
            )
            if agents
            else None
        )
        self._transform = Transform(topology, Resources(os.environ, pages))
        self.pipeline = Pipeline(
            topology,
            TransformPool(self._transform),
            ledger=self.ledger,
            lake=self._lake,
            summaries=self._summaries,
            limits=Limits(
                flush_interval=settings.flush_interval,
                fold_records=settings.batch_records,
                max_records=settings.max_epoch_records,
                max_bytes=settings.max_epoch_bytes,
                drain_deadline=settings.drain_deadline,
            ),
            outbox=self._publication.outbox if self._publication else None,
            tell=self._copy_positions,
            committed=committed,
            watcher=watcher,
            claimed=self._read_erasures if topology.erasure else None,
        )
        self.observation = Observation(self)
        failpoints.watch(lambda: self.pipeline.uncommitted)
        self.upkeep = Upkeep(topology, self.ledger, self._store, self._summaries, endpoints)
        self._source: Source | None = None
        self._failure: BaseException | None = None
        self._fenced = False
        self._ended = asyncio.Event()

    # -- life ------------------------------------------------------------------------------------------

    async def run(self, ending: asyncio.Event) -> None:
        """Work until ``ending`` is set, then drain and leave the group. Raises what stopped the work."""
        async with AsyncExitStack() as stack:
            if not await self._connect(stack, ending):
                return
            app = self._host()
            await app.start()
            stack.push_async_callback(app.stop)
            if await done_before(self._join(), ending, self._ended):
                await self._work(stack, app, ending)
            self.state = "draining"
            await self._wind_down()
        self.state = "stopped"
        if self._failure is not None:
            raise self._failure

    async def _work(self, stack: AsyncExitStack, app: faust.App, ending: asyncio.Event) -> None:
        """Process records until ``ending`` is set or something fails for good, which is kept."""
        if self._agents is not None:
            self._agents.start()
            stack.push_async_callback(self._agents.stop)
        log.info(
            "worker_running",
            stream=self.topology.name,
            worker=self.settings.worker,
            compiled=native.records is not None,
        )
        parts: list[Coroutine[Any, Any, object]] = [
            ending.wait(),
            self._ended.wait(),
            self._pump(app),
            self.upkeep.run(),
            self.observation.run(),
        ]
        if self._publication is not None:
            parts.append(self._publication.run())
        if isinstance(self._broker, KafkaConnection):  # the others hear of it by their leases
            parts.append(self._watch_stopped())
        waiting = [asyncio.create_task(part) for part in parts]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        self.state = "draining"
        for task in waiting:
            task.cancel()
        finished = await asyncio.gather(*waiting, return_exceptions=True)
        for result in finished:  # a panic of polars is no Exception, nor a group that holds one
            if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
                self._failure = self._failure or result

    async def _connect(self, stack: AsyncExitStack, ending: asyncio.Event) -> bool:
        """Wait for every endpoint, saying which; false when told to end before all were there."""
        steps: list[tuple[str, Callable[[], Awaitable[object]]]] = [
            ("ledger", self.ledger.open),
            ("ledger schema", self.ledger.migrate),
            ("tables", self._ensure_tables),
        ]
        if self._transform.wants_visitor_key:
            steps.append(("ledger", self._read_visitor_key))
        stack.push_async_callback(self.ledger.close)
        if self._store is not None:
            steps.append(("lake", self._store.open))
            stack.push_async_callback(self._store.close)
        for name, step in steps:
            self.state = f"waiting for the {name}"
            if not await done_before(until_there(self.topology.name, name, step), ending):
                return False
        return await self._try_warehouse(stack, ending)

    async def _try_warehouse(self, stack: AsyncExitStack, ending: asyncio.Event) -> bool:
        """Open the warehouse, which goes on beside the stream when it does not answer soon; false when told to end."""
        self.state = "waiting for the warehouse"
        stack.push_async_callback(self.upkeep.close)
        opening = asyncio.create_task(self._open_warehouse())
        stack.push_async_callback(cancelled, opening)
        in_time = await done_before(asyncio.wait({opening}, timeout=_WAREHOUSE_WITHIN), ending)
        if self._failure is not None:
            raise self._failure
        return in_time

    async def _open_warehouse(self) -> None:
        try:
            await until_there(self.topology.name, "warehouse", self.upkeep.open)
        except Exception as error:  # nobody else waits for this task
            self._failure = self._failure or error
            self._ended.set()

    async def _read_visitor_key(self) -> None:
        self._transform.visitor_key = await self.ledger.visitor_key()

    async def _read_erasures(self) -> None:
        self._transform.erased = await read_erased(self.ledger.database, self.topology.name, self.topology)

    async def _ensure_tables(self) -> None:
        async with self.ledger.database.connection("create the tables") as conn:
            await self._summaries.ensure(conn)

    async def _wind_down(self) -> None:
        """Commit what was taken within the deadline, release the claims, leave the group."""
        try:
            if self._failure is None and not self._fenced:
                async with asyncio.timeout(self.settings.drain_deadline):
                    await self.pipeline.drain()
        except TimeoutError:
            log.warning("drain_deadline_passed", why="the rest is read again by whoever claims next")
        except Fenced as error:  # nothing of ours is lost: whoever has the partition now reads it again
            log.warning("fenced", why=str(error))
        except _ANY_FAILURE as error:  # whatever it is, it must not keep the worker from leaving the group
            self._failure = self._failure or error
        finally:
            try:
                if self._source is not None:
                    await (
                        self._source.close()
                    )  # first: a rebalance under way would claim what was just released
            finally:
                await release(self.pipeline)
            if self._publication is not None:
                await self._publication.close()

    # -- records ---------------------------------------------------------------------------------------

    def _host(self) -> faust.App:
        data = self.settings.data_dir / "faust"
        data.mkdir(parents=True, exist_ok=True)  # Faust makes the last part of it only
        app = _HostApp(
            f"{self.settings.group}-{self.topology.name}",
            autodiscover=False,
            broker="kafka://unused",  # the setting is mandatory; this application opens no connection
            datadir=str(data),
            store="memory://",
            stream_wait_empty=False,
            topic_disable_leader=True,
            web_enabled=False,
        )
        self._channel = app.channel(maxsize=1)

        @app.agent(self._channel, name="pipeline")
        async def fold(stream: faust.StreamT[tuple[int, list[RecordBatch]]]) -> None:
            async for generation, batches in stream:
                await self._take(generation, batches)

        # Channels hold their messages back until a consumer's partitions are assigned; there is none here.
        app.flow_control.resume()
        return app

    async def _take(self, generation: int, batches: list[RecordBatch]) -> None:
        if self._failure is not None or self._fenced:
            return
        try:
            await self.pipeline.take(batches, generation)
        except Fenced as error:
            log.warning("fenced", why=str(error))
            self._fenced = True
        except _ANY_FAILURE as error:  # must not reach Faust's supervisor: see the module's docstring
            self._failure = error
            self._ended.set()

    async def _pump(self, app: faust.App) -> None:
        while True:
            if self._fenced:
                await self._rejoin()
            assert self._source is not None
            try:
                batches = await self._source.next(self.settings.batch_records, _MAX_WAIT)
            except DependencyError as error:
                await self._ask_again(error)
                continue
            await self._channel.send(value=(self.pipeline.generation, batches))

    async def _watch_stopped(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY)
            await self._look_at_stopped()

    async def _look_at_stopped(self) -> None:
        """Join anew when somebody has set the position of a partition that had stopped, which takes our claim on it.

        Of the others a commit is refused then, and of these there is none.
        """
        generation = self.pipeline.generation
        stopped = set() if self._source is None else set(self._source.stopped)
        if not stopped or stopped <= await self.pipeline.held():
            return
        if generation == self.pipeline.generation:
            log.warning("fenced", why="the position of a partition that had stopped was set by hand")
            self._fenced = True

    async def _ask_again(self, error: DependencyError) -> None:
        """The source refuses us, as a group of Kafka does that we may not be in any more: join it anew after a while.

        To call it again would not do: once a heartbeat was refused, aiokafka sends none any more.
        """
        self._waiting_for_broker(error, 0.0)
        self.state = "waiting for the broker"
        await asyncio.sleep(_ASK_AGAIN)
        await self._rejoin()

    async def _join(self) -> None:
        """Ask the group what is ours; waits, as long as it takes, for a broker that has the topic."""
        self.state = "waiting for the broker"
        await self._start_source()
        self.observation.source_started()
        self.state = "running"

    async def _start_source(self) -> None:
        self._source = open_source(
            self._broker,
            self.settings,
            self.topology,
            self.pipeline,
            leases=self._leases,
            logs=self._logs,
            waiting=self._waiting_for_broker,
        )
        await self._source.start()

    def _leases(self) -> Shards:
        topic, settings = self.topology.topic.name, self.settings
        timeout = settings.kinesis.lease_timeout
        return Shards(self.ledger.database, self.topology.name, topic, settings.worker, timeout)

    def _logs(self) -> Logs:
        source, settings = str(self._broker), self.settings
        return Logs(
            self.ledger.database, self.topology.name, source, settings.worker, settings.logs.lease_timeout
        )

    def _waiting_for_broker(self, error: DependencyError, failing: float) -> None:
        self.observation.source_failed(error, failing)
        log.warning(
            "waiting_for_endpoint", endpoint="broker", on=error.what, problem=error.problem, hint=error.hint
        )

    async def _rejoin(self) -> None:
        """Forget all that we held, which others may have claimed, and ask the group what is ours now."""
        self.state = "waiting for the broker"  # from here on the source cannot be asked
        self.pipeline.drop()
        assert self._source is not None
        await self._source.close()
        await self._join()
        self._fenced = False

    async def _copy_positions(self, positions: Mapping[Partition, int]) -> None:
        if self._source is not None:
            await self._source.copy_commit(positions)

    # -- the rest --------------------------------------------------------------------------------------

    @property
    def _publishes(self) -> bool:
        return bool(self.topology.sinks.published)

    @property
    def source(self) -> Source | None:
        """What the records come from; ``None`` until everything else is there."""
        return self._source

    @property
    def publication(self) -> Publication | None:
        """What publishes events and rows, where the page asks for it."""
        return self._publication
