"""Members that come and go: every record reaches one owner's claim, in order, and none twice."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from streamproc.errors import DependencyError
from streamproc.model import Partition, RecordBatch
from streamproc.sources.kafka import KafkaSource
from streamproc.sources.kafka_client import KafkaConnection
from streamproc.sources.kafka_produce import KafkaProducer
from tests.sources.consuming import Memory, consuming, read, until


@dataclass
class FencedLedger:
    """Positions and owners that all members share: what the real ledger does, without a database."""

    owners: dict[Partition, str] = field(default_factory=dict)
    positions: dict[Partition, int | None] = field(default_factory=dict)
    records: dict[tuple[Partition, int], bytes | None] = field(default_factory=dict)
    fenced: int = 0

    def commit(self, member: str, batch: RecordBatch) -> None:
        if self.owners.get(batch.partition) != member:
            self.fenced += 1  # handed out before the revocation, committed after it: dropped
            return
        committed = self.positions.get(batch.partition)
        assert batch.after == (-1 if committed is None else committed), "the claim was not where it started"
        for position, value in zip(batch.positions, batch.values, strict=True):
            assert (batch.partition, position) not in self.records, "handed out twice"
            self.records[batch.partition, position] = value
        self.positions[batch.partition] = batch.through


class Member:
    """A listener and a loop that commits what its source gives."""

    def __init__(self, name: str, ledger: FencedLedger) -> None:
        self.name = name
        self.ledger = ledger
        self.assignments: list[tuple[Partition, ...]] = []

    async def assigned(self, partitions: Sequence[Partition]) -> Mapping[Partition, int | None]:
        self.assignments.append(tuple(partitions))
        for partition in partitions:
            self.ledger.owners[partition] = self.name
        await asyncio.sleep(0)
        return {partition: self.ledger.positions.get(partition) for partition in partitions}

    async def read_from(self, partitions: Sequence[Partition], log: str) -> Mapping[Partition, str]:
        return dict.fromkeys(partitions, log)

    async def revoked(self, partitions: Sequence[Partition]) -> None:
        await asyncio.sleep(0)

    async def work(self, source: KafkaSource) -> None:
        while True:
            try:
                batches = await source.next(50, 0.2)
            except DependencyError:  # the coordinator while it moves; the source recovers by itself
                continue
            for batch in batches:
                await asyncio.sleep(0)  # let a rebalance get in between
                self.ledger.commit(self.name, batch)


@contextlib.asynccontextmanager
async def working(kafka: KafkaConnection, topic: str, member: Member):  # type: ignore[no-untyped-def]  # yields None
    async with consuming(kafka, topic, member) as source:
        loop = asyncio.create_task(member.work(source))
        try:
            yield
        finally:
            loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await loop


async def test_members_join_and_leave_under_load_and_every_record_is_committed_once(
    kafka: KafkaConnection, topic: str
) -> None:
    ledger = FencedLedger()
    first, second = Member("first", ledger), Member("second", ledger)
    sent = 0
    enough = asyncio.Event()

    async def produce() -> None:
        nonlocal sent
        async with KafkaProducer(kafka) as producer:
            while not enough.is_set():
                await producer.publish(topic, [b"%d" % (sent + i) for i in range(40)])
                sent += 40
                await asyncio.sleep(0.01)

    producing = asyncio.create_task(produce())
    async with working(kafka, topic, first):
        await until(lambda: len(ledger.records) > 100)
        async with working(kafka, topic, second):
            await until(lambda: set(ledger.owners.values()) == {"first", "second"})
            now = len(ledger.records)
            await until(lambda: len(ledger.records) > now + 100)
        await until(lambda: set(ledger.owners.values()) == {"first"})
        enough.set()
        await producing
        await until(lambda: len(ledger.records) >= sent)
    assert sorted(ledger.records.values(), key=lambda v: int(v or b"")) == [b"%d" % i for i in range(sent)]
    assert sorted(map(len, [first.assignments[0], second.assignments[0], first.assignments[-1]])) == [2, 4, 4]


async def test_the_next_owner_claims_after_the_last_one_has_let_go(
    kafka: KafkaConnection, topic: str
) -> None:
    order: list[str] = []

    class Slow(Memory):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        async def assigned(self, partitions: Sequence[Partition]) -> Mapping[Partition, int | None]:
            order.append(f"{self.name} claims {len(partitions)}")
            return await super().assigned(partitions)

        async def revoked(self, partitions: Sequence[Partition]) -> None:
            await asyncio.sleep(0.5)
            order.append(f"{self.name} lets {len(partitions)} go")

    async with consuming(kafka, topic, Slow("first")) as first:
        await read(first, lambda _: len(first.lag) == 4)
        async with consuming(kafka, topic, Slow("second")) as second:
            await until(lambda: len(second.assignment) == 2 and len(first.assignment) == 2)
            await until(lambda: len(order) == 4)
    assert order[:2] == ["first claims 4", "first lets 4 go"]
    assert set(order[2:]) == {"first claims 2", "second claims 2"}


async def test_a_revocation_cancels_the_claim_that_is_under_way(kafka: KafkaConnection, topic: str) -> None:
    cancelled: list[int] = []

    class Stuck(Memory):
        async def assigned(self, partitions: Sequence[Partition]) -> Mapping[Partition, int | None]:
            await super().assigned(partitions)
            if len(self.events) == 1:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    cancelled.append(len(partitions))
                    raise
            return {}.fromkeys(partitions)

    stuck = Stuck()
    async with consuming(kafka, topic, stuck) as first:
        await until(lambda: bool(stuck.events))
        async with consuming(kafka, topic, Memory()) as second:
            await until(lambda: bool(second.assignment))
            await read(first, lambda _: len(first.lag) == 2)
    assert cancelled == [4]


async def test_a_claim_that_something_else_cancelled_is_made_again(
    kafka: KafkaConnection, topic: str
) -> None:
    class CancelledOnce(Memory):
        async def assigned(self, partitions: Sequence[Partition]) -> Mapping[Partition, int | None]:
            positions = await super().assigned(partitions)
            if len(self.events) == 1:
                raise asyncio.CancelledError  # as a library may whose own time is over
            return positions

    listener = CancelledOnce()
    async with KafkaProducer(kafka) as producer:
        await producer.publish(topic, [b"%d" % i for i in range(8)])
    async with consuming(kafka, topic, listener) as source:
        batches = await read(source, lambda batches: sum(map(len, batches)) >= 8)
    assert sorted(value for batch in batches for value in batch.values) == [b"%d" % i for i in range(8)]
    assert [name for name, _ in listener.events] == ["assigned", "assigned"]


async def test_what_a_revocation_raises_is_raised_by_next(kafka: KafkaConnection, topic: str) -> None:
    class Failing(Memory):
        async def revoked(self, partitions: Sequence[Partition]) -> None:
            raise ValueError("cannot let go")

    async with consuming(kafka, topic, Failing()) as first:
        await read(first, lambda _: len(first.lag) == 4)
        async with consuming(kafka, topic, Memory()):
            raised: list[str] = []

            async def until_raised() -> None:
                while not raised:
                    try:
                        await first.next(10, 0.05)
                    except ValueError as error:
                        raised.append(str(error))

            async with asyncio.timeout(20):
                await until_raised()
    assert raised == ["cannot let go"]


async def test_a_member_that_closes_while_its_claim_hangs_is_gone_at_once(
    kafka: KafkaConnection, topic: str
) -> None:
    class Stuck(Memory):
        async def assigned(self, partitions: Sequence[Partition]) -> Mapping[Partition, int | None]:
            await super().assigned(partitions)
            await asyncio.Event().wait()
            raise AssertionError("unreachable")

    stuck = Stuck()
    async with asyncio.timeout(20), consuming(kafka, topic, stuck):
        await until(lambda: bool(stuck.events))
