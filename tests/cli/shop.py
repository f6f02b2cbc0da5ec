"""A small stream with a real ledger, lake and topic, filled through the ledger's own API."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from click.testing import CliRunner, Result

from streamproc.cli import main
from streamproc.ledger import Ledger
from streamproc.model import REJECT_SCHEMA, Advance, Claim, Counts, EpochRecord, Partition
from streamproc.sinks.lake import Lake
from streamproc.sinks.object_store import StoreSettings, open_store
from streamproc.topic_pages import load_pages
from streamproc.topology import Topology

T = TypeVar("T")

PAGE = """
[stream]
name = "shop"
[topic]
name = "{topic}"
partitions = 4
[contract.fields]
time = {{ type = "integer", required = true }}
kind = {{ type = "string" }}
[contract.event_time]
field = "time"
disorder = "30s"
[tables.kinds]
window = {{ kind = "tumbling", size = "1m" }}
by = ["kind"]
measures.events = {{ kind = "count" }}
"""

#: Event time of the first event; the others follow by a minute.
NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)
#: When the broker had the first reject; the others follow by a minute.
RECEIVED = datetime(2026, 7, 2, 8, tzinfo=UTC)


@dataclass(frozen=True)
class Reject:
    position: int
    original: bytes | None
    reason: str = "not_json"


@dataclass
class Shop:
    """``call`` runs a ``streamproc`` command against it."""

    directory: Path
    ledger: str
    broker: str
    topic: str
    settings: dict[str, str] = field(default_factory=dict)
    #: Of events that are no views, by position.
    kinds: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pages = self.directory / "topics"
        self.pages.mkdir(parents=True)
        (self.pages / "shop.toml").write_text(PAGE.format(topic=self.topic))
        self.lake = self.directory / "lake"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "STREAMPROC_LEDGER": self.ledger,
            "STREAMPROC_WAREHOUSE": self.ledger,
            "STREAMPROC_BROKER": f"kafka://{self.broker}",
            "STREAMPROC_LAKE": self.lake.as_uri(),
            "STREAMPROC_TOPICS": str(self.pages),
            "STREAMPROC_DATA_DIR": str(self.directory / "data"),
            **self.settings,
        }

    def call(self, *arguments: str, code: int | None = 0, stdin: str | None = None) -> Result:
        result = CliRunner().invoke(main, list(arguments), env=self.environment, input=stdin)
        assert code in {None, result.exit_code}, f"{result.output}\n{result.exception!r}"
        return result

    def json(self, *arguments: str, code: int | None = 0) -> Any:
        return json.loads(self.call(*arguments, "--json", code=code).stdout)

    def lines(self, *arguments: str) -> list[Any]:
        return [json.loads(line) for line in self.call(*arguments, "--json").stdout.splitlines()]

    @property
    def topology(self) -> Topology:
        return load_pages(self.pages)["shop"]

    def partition(self, number: int) -> Partition:
        return Partition(self.topic, str(number))

    # -- the ledger and the lake ---------------------------------------------------------------------

    def with_ledger(self, act: Callable[[Ledger], Awaitable[T]], worker: str = "w1") -> T:
        async def opened() -> T:
            async with Ledger(self.ledger, "shop", worker) as ledger:
                await ledger.migrate()
                return await act(ledger)

        return asyncio.run(opened())

    def commit(
        self,
        number: int,
        accepted: Sequence[int] = (),
        rejects: Sequence[Reject] = (),
        **other: int,
    ) -> None:
        """One epoch of one partition: events at the positions ``accepted``, and the rejects.

        ``other``: ``filtered`` and ``duplicate`` counts, ``late`` events of the table, ``through``.
        """
        self.with_ledger(lambda ledger: self._commit(ledger, number, accepted, rejects, other))

    async def _commit(
        self,
        ledger: Ledger,
        number: int,
        accepted: Sequence[int],
        rejects: Sequence[Reject],
        other: Mapping[str, int],
    ) -> None:
        (claim,) = (await ledger.claim([self.partition(number)])).values()
        events = self.events(number, accepted)
        advance = self._advance(claim, events, rejects, other)
        store = open_store(self.lake.as_uri(), StoreSettings(durable=False))
        await store.open()
        lake = Lake(store, self.topology)
        rows = [*lake.encode_events(events), *lake.encode_rejects(self.rejects(number, rejects))]
        files = lake.plan(rows, advance)
        epoch = uuid.uuid4()
        await ledger.intend(epoch, [file.plan for file in files], {claim.partition: claim})
        objects = await lake.write(files)
        late = {"kinds": other["late"]} if "late" in other else {}
        record = EpochRecord(epoch, datetime.now(UTC), [advance], objects, late, {"put": 0.25})
        await ledger.commit(record, _nothing)
        await store.close()

    def _advance(
        self, claim: Claim, events: pl.DataFrame, rejects: Sequence[Reject], other: Mapping[str, int]
    ) -> Advance:
        counts = Counts(
            accepted=events.height,
            filtered=other.get("filtered", 0),
            rejected=len(rejects),
            duplicate=other.get("duplicate", 0),
        )
        counts.records = counts.accepted + counts.filtered + counts.rejected + counts.duplicate
        last = max([*events["position"].to_list(), *(each.position for each in rejects)], default=0)
        clock = events["event_time"].dt.epoch("us").max()
        assert clock is None or isinstance(clock, int)
        return Advance(claim, claim.position, other.get("through", last), clock, counts)

    def events(self, number: int, positions: Sequence[int]) -> pl.DataFrame:
        times = [NOON + timedelta(minutes=position) for position in positions]
        known = {
            "time": [int(moment.timestamp() * 1000) for moment in times],
            "kind": [self.kinds.get(position, "view") for position in positions],
            "event_time": times,
            "source_partition": [str(number)] * len(times),
            "position": list(positions),
            "received_at": times,
        }
        columns = self.topology.columns
        return pl.DataFrame(
            {name: known.get(name, [None] * len(times)) for name in columns}, schema=dict(columns)
        )

    def rejects(self, number: int, rejects: Sequence[Reject]) -> pl.DataFrame:
        rows = [
            (
                str(number),
                each.position,
                RECEIVED + timedelta(minutes=each.position),
                each.reason,
                None,
                "why",
                each.original,
            )
            for each in rejects
        ]
        return pl.DataFrame(rows, schema=REJECT_SCHEMA, orient="row")

    # -- the topic -----------------------------------------------------------------------------------

    def produce(self, number: int, values: Sequence[bytes], first: datetime | None = None) -> None:
        """With timestamps a minute apart from ``first`` on; without it, the last is now."""
        first = first or datetime.now(UTC) - timedelta(minutes=len(values) - 1)

        async def send() -> None:
            async with AIOKafkaProducer(bootstrap_servers=self.broker) as producer:
                for place, value in enumerate(values):
                    moment = int((first + timedelta(minutes=place)).timestamp() * 1000)
                    await producer.send_and_wait(self.topic, value, partition=number, timestamp_ms=moment)

        asyncio.run(send())

    def records(self, number: int) -> list[Any]:
        """Everything the partition holds, as aiokafka's own records."""
        return asyncio.run(self._records(number))

    async def _records(self, number: int) -> list[Any]:
        partition = TopicPartition(self.topic, number)
        async with AIOKafkaConsumer(bootstrap_servers=self.broker) as consumer:
            consumer.assign([partition])
            await consumer.seek_to_beginning(partition)
            end = (await consumer.end_offsets([partition]))[partition]
            found: list[Any] = []
            async with asyncio.timeout(20):
                more: list[Any] = []
                # The embedded broker gives the newest batch's first offset as the end: read until no more comes.
                while len(found) < end or more:
                    more = (await consumer.getmany(partition, timeout_ms=200)).get(partition, [])
                    found += more
            return found


async def _nothing(conn: Any) -> None:
    """An epoch without tables."""
