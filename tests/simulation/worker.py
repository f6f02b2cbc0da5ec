"""The service's worker on simulated servers.

Everything but Faust is the real thing: pump, take, rejoin and wind-down of the worker, its pipeline, source,
ledger, lake, upkeep and watch. Faust's channel and agent are a queue and a task here; they do no more there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

from streamproc.epoch import Epoch
from streamproc.model import RecordBatch, Transformed
from streamproc.pipeline import Limits, Pipeline
from streamproc.runtimes.observation import Observation
from streamproc.runtimes.upkeep import Upkeep
from streamproc.runtimes.worker import Worker
from streamproc.sinks.lake import Lake
from streamproc.sinks.loader import Loader
from streamproc.sinks.warehouse_postgres import PostgresWarehouse
from streamproc.sources.kafka import KafkaOptions
from streamproc.sources.kafka_client import KafkaConnection
from tests.simulation import stream
from tests.simulation.broker import TOPIC, Broker
from tests.simulation.connection import Line, Network
from tests.simulation.consumer import SimulatedSource
from tests.simulation.database import SimulatedDatabase, SimulatedLedger
from tests.simulation.postgres import Answer, Server, Transaction
from tests.simulation.store import Bucket, SimulatedStore

CONNECTION = KafkaConnection("simulated:9092")


class _Upkeep(Upkeep):
    """A run lasts minutes: nothing is old enough to be let go of, and those statements are tried on PostgreSQL."""

    async def retain(self) -> None:
        """Nothing."""


class Transforms:
    """A pool that works when the result is asked for: in the fold's thread."""

    def __init__(self, transform: Callable[[Sequence[RecordBatch]], Transformed]) -> None:
        self._transform = transform

    def submit(self, batches: Sequence[RecordBatch]) -> Future[Transformed]:
        future: Future[Transformed] = Future()
        future.set_result(self._transform(batches))
        return future

    def close(self) -> None:
        """No threads."""


class SimulatedSummaries:
    """Merges deltas into the stream's one table, row by row in key order, in the caller's transaction."""

    async def ensure(self, conn: Any) -> None:
        """The table is there."""

    async def apply(
        self, conn: Any, deltas: Mapping[str, Any], *, changed: bool = False
    ) -> Mapping[str, Any]:
        for delta in deltas.values():
            rows = sorted(stream.delta_rows(delta).items())
            if rows:
                await conn.execute("merge", rows)
        return {}

    async def expire(self, conn: Any, name: str, watermark_us: int, *, reopening: bool = False) -> int:
        return 0


async def merge(transaction: Transaction, values: Any, server: Server) -> Answer:
    """The statement ``merge``: add to each row."""
    for key, (events, amount) in values:
        await transaction.lock("per_minute", key)
        before = transaction.get("per_minute", key) or {"events": 0, "amount": 0}
        transaction.put(
            "per_minute", key, {"events": before["events"] + events, "amount": before["amount"] + amount}
        )
    return Answer(count=len(values))


class _Channel:
    """A Faust channel of ``maxsize=1`` and the agent on it."""

    def __init__(self, take: Callable[[int, list[RecordBatch]], Awaitable[None]]) -> None:
        self._take = take
        self._queue: asyncio.Queue[tuple[int, list[RecordBatch]]] = asyncio.Queue(1)

    async def send(self, *, value: tuple[int, list[RecordBatch]]) -> None:
        await self._queue.put(value)

    async def run(self) -> None:
        while True:
            await self._take(*await self._queue.get())


class _App:
    """What the worker asks of its Faust application."""

    def __init__(self, channel: _Channel) -> None:
        self._channel = channel
        self._agent: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._agent = asyncio.create_task(self._channel.run())

    async def stop(self) -> None:
        if self._agent is not None:
            self._agent.cancel()
            await asyncio.gather(self._agent, return_exceptions=True)


class SimulatedWorker(Worker):
    """``limits`` as the pipeline takes them."""

    def __init__(self, name: str, servers: Servers, limits: Limits, *, real: bool) -> None:
        self.settings: Any = SimpleNamespace(
            worker=name,
            group="simulated",
            start="earliest",
            batch_records=limits.fold_records,
            flush_interval=limits.flush_interval,
            drain_deadline=limits.drain_deadline,
            kafka=SimpleNamespace(session_timeout=4.0),
        )
        self.topology = stream.TOPOLOGY
        self.state = "starting"
        self.line = Line(servers.database, servers.network, name)
        self.loading = Line(servers.database, servers.network, f"{name} loader")
        self.ledger = SimulatedLedger(self.line, self.topology.name, name)
        self._broker = CONNECTION
        self._simulated_broker = servers.broker
        self._store = SimulatedStore(servers.bucket)
        self._lake = Lake(self._store, self.topology)
        self._summaries: Any = SimulatedSummaries()
        self._transform: Any = SimpleNamespace(wants_visitor_key=False)
        self._publication = None
        self._agents = None
        transform = stream.real_transform() if real else stream.PlainTransform()
        self.pipeline = Pipeline(
            self.topology,
            Transforms(transform),
            ledger=self.ledger,
            lake=self._lake,
            summaries=self._summaries,
            limits=limits,
            tell=self._copy_positions,
            committed=self._settled,
        )
        if not real:
            self.pipeline._folds = {table.name: stream.PlainFold(table) for table in self.topology.tables}
            self.pipeline._open_epoch()
        self.observation = Observation(self)
        endpoints: Any = SimpleNamespace(
            broker=CONNECTION, warehouse=None, settings=SimpleNamespace(sweep="on")
        )
        self.upkeep = _Upkeep(self.topology, self.ledger, self._store, self._summaries, endpoints)
        warehouse = loader_of(self.loading)
        self.upkeep._loader = Loader(self.ledger, warehouse, self._store)
        self.upkeep._warehouse = _Opened(warehouse)
        self._source = None
        self._failure = None
        self._fenced = False
        self._ended = asyncio.Event()
        self._limits = limits
        self._taken = 0
        self._generation = 0
        #: Most records that were held at once, taken and not known to be committed.
        self.most_held = 0
        #: Record batches that came from partitions that were being taken away.
        self.too_late: list[RecordBatch] = []

    def _host(self) -> Any:
        self._channel: Any = _Channel(self._take)
        return _App(self._channel)

    async def _start_source(self) -> None:
        self._source = SimulatedSource(
            self._simulated_broker,
            CONNECTION,
            TOPIC,
            KafkaOptions(group="simulated"),
            listener=self.pipeline,
            waiting=self._waiting_for_broker,
            too_late=self.too_late,
        )
        await self._source.start()

    async def _take(self, generation: int, batches: list[RecordBatch]) -> None:
        if generation == self.pipeline.generation:
            if generation != self._generation:
                self._generation, self._taken = generation, 0
            self._taken += sum(map(len, batches))
            self.most_held = max(self.most_held, self._taken)
        await super()._take(generation, batches)

    def _settled(self, epoch: Epoch, seconds: float) -> None:
        self._taken -= epoch.records


class _Opened:
    """The warehouse's table is there: only the connection is made."""

    def __init__(self, warehouse: PostgresWarehouse) -> None:
        self._warehouse = warehouse

    async def open(self) -> None:
        await self._warehouse.open()

    async def ensure(self, columns: Any) -> None:
        """It is."""

    async def close(self) -> None:
        await self._warehouse.close()


class Servers:
    """What all workers share."""

    def __init__(self, database: Server, broker: Broker, bucket: Bucket) -> None:
        self.database = database
        self.broker = broker
        self.bucket = bucket
        self.network = Network()


def loader_of(line: Line) -> PostgresWarehouse:
    warehouse = PostgresWarehouse("", stream.TOPOLOGY.name)
    warehouse._database = SimulatedDatabase(line, size=2)
    return warehouse
