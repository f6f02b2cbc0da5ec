"""A worker's share of a stream, on a Kinesis server that nobody here wrote and a real ledger."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import time
from collections.abc import AsyncIterator

import pytest

from streamproc.leases import Mark
from streamproc.ledger import NewPosition
from streamproc.model import Partition
from streamproc.ops.shard_positions import place
from streamproc.sources.kinesis_connection import KinesisConnection
from streamproc.sources.kinesis_records import pack
from tests.sources.consuming import until
from tests.sources.kinesis_consuming import (
    REGION,
    Stream,
    assert_seamless,
    member,
    read_until,
    records,
)

pytestmark = pytest.mark.timeout(240)


def numbered(first: int, after: int) -> list[bytes]:
    return [b"%d" % n for n in range(first, after)]


@pytest.fixture
def url(kinesis_local) -> str:
    return kinesis_local.url


@pytest.fixture
async def stream(url: str) -> AsyncIterator[Stream]:
    """A stream of two shards."""
    stream = Stream(url, 2)
    await stream.create()
    yield stream
    await asyncio.to_thread(stream.close)


def assert_all_there(stream: Stream, read: list[tuple[str, int, bytes]]) -> None:
    """Each shard's records were read once, in order, numbered from 0."""
    expected = [
        (shard, number, value)
        for shard, values in stream.put_by_shard.items()
        for number, value in enumerate(values)
    ]
    assert sorted(read) == sorted(expected)


async def test_every_record_of_every_shard_comes_once_in_order_and_numbered(stream, url, postgres):
    await stream.put(numbered(0, 300))
    async with member(postgres, url, stream.name) as one:
        await read_until(lambda: len(records(one.batches)) >= 150, one)
        await stream.put(numbered(300, 400))
        await read_until(lambda: len(records(one.batches)) >= 400, one)
        assert_seamless(one.batches)
        assert_all_there(stream, records(one.batches))
        assert one.source.assignment == {Partition(stream.name, shard) for shard in stream.put_by_shard}
        await read_until(lambda: set(one.source.behind.values()) == {0.0}, one)


async def test_reading_goes_on_behind_any_committed_position_with_the_same_numbers(stream, url, postgres):
    """Marks are few; what lies between them is counted, through packed records as well."""
    shard = next(iter(await stream.open_shards()))
    inside = [(b"k", b"in-%d" % n) for n in range(5)]
    keys = list(itertools.islice((key for key in map(str, range(2000)) if _shard_of(key) == 0), 8))
    values = [
        b"a",
        b"b",
        pack([(key.encode(), v) for key, (_, v) in zip(keys, inside, strict=False)]),
        b"c",
        b"d",
    ]
    await stream.put(values, [keys[0]] * len(values))
    expected = [b"a", b"b", *(value for _, value in inside), b"c", b"d"]
    async with member(postgres, url, stream.name) as one:
        await read_until(lambda: len(records(one.batches)) >= len(expected), one)
        assert [value for _, _, value in records(one.batches)] == expected
        first_time = records(one.batches)
    for committed in range(-1, len(expected) - 1, 2):
        async with member(postgres, url, stream.name, name=f"again-{committed}") as again:
            partition = Partition(stream.name, shard)
            change = NewPosition(partition, committed, accept_gap=True, accept_repeat=True, note="test")
            await again.ledger.set_position(change)
            await again.source.reclaim()
            again.batches.clear()
            left = len(expected) - committed - 1
            await read_until(lambda left=left: len(records(again.batches)) >= left, again)
            assert records(again.batches) == first_time[committed + 1 :]


def _shard_of(key: str) -> int:
    return int(int(hashlib.md5(key.encode()).hexdigest(), 16) >= 2**127 - 1)


async def test_what_was_not_committed_is_read_again_by_the_next_worker(stream, url, postgres):
    await stream.put(numbered(0, 60))
    async with member(postgres, url, stream.name) as one:
        await read_until(lambda: len(records(one.batches)) >= 60, one)
        await one.commit()
        await stream.put(numbered(60, 100))
        await read_until(lambda: len(records(one.batches)) >= 100, one)
        one.drop()
    async with member(postgres, url, stream.name, name="w2") as two:
        await read_until(lambda: len(records(two.batches)) >= 40, two)
        assert_all_there(stream, records(one.batches, two.batches))


async def test_parents_are_drained_before_their_children_on_split_and_merge(stream, url, postgres):
    """Two shards become four, then three, while records come."""
    fed = [0]

    async def feed(count: int) -> None:
        await stream.put(numbered(fed[0], fed[0] + count))
        fed[0] += count

    await feed(100)
    async with member(postgres, url, stream.name) as one:
        await read_until(lambda: one.batches, one)
        first, second = sorted(await stream.open_shards())
        await stream.split(first)
        await feed(60)
        await stream.split(second)
        await feed(60)
        before = len(records(one.batches))
        parents = sum(len(stream.put_by_shard[shard]) for shard in (first, second))
        await read_until(lambda: len(records(one.batches)) >= parents, one)
        await one.take(1.0)
        assert len(records(one.batches)) == parents >= before, "not committed: the children wait"
        await read_until(lambda: len(records(one.batches)) >= fed[0], one, committing=True)
        left, right = sorted((await stream.open_shards()).items(), key=lambda item: item[1])[1:3]
        await stream.merge(left[0], right[0])
        await feed(60)
        await read_until(lambda: len(records(one.batches)) >= fed[0], one, committing=True)
        assert_seamless(one.batches)
        assert_all_there(stream, records(one.batches))
        assert len(stream.put_by_shard) == 7
        order = [batch.partition.id for batch in one.batches]
        child = next(iter(sorted(stream.put_by_shard)[6:]))
        last_of = {shard: len(order) - 1 - order[::-1].index(shard) for shard in set(order)}
        assert order.index(child) > max(last_of[left[0]], last_of[right[0]])
        await until(lambda: len(one.source.assignment) == 3, seconds=100)
        finished = {shard for event, shards in one.events if event == "finished" for shard in shards}
        assert finished == {first, second, left[0], right[0]}, "or the listener would keep them for ever"


@pytest.mark.slow
async def test_a_second_worker_gets_its_share_and_nothing_is_read_twice(stream, url, postgres):
    await stream.put(numbered(0, 100))
    lease = {"lease_timeout": 15.0}  # longer than a busy machine keeps a heartbeat waiting
    async with member(postgres, url, stream.name, **lease) as one:
        await read_until(lambda: len(records(one.batches)) >= 100, one)
        async with member(postgres, url, stream.name, name="w2", **lease) as two:
            await read_until(lambda: two.source.assignment, one, two)
            assert one.events[1][0] == "revoked", "it was asked, and could commit what it had"
            assert len(one.source.assignment) == len(two.source.assignment) == 1
            await stream.put(numbered(100, 200))
            total = lambda: records(one.batches, two.batches)  # noqa: E731
            await read_until(lambda: len(total()) >= 200, one, two)
            assert_all_there(stream, total())
            await two.commit()
        await read_until(lambda: len(one.source.assignment) == 2, one)
        await stream.put(numbered(200, 220))
        await read_until(lambda: len(total()) >= 220, one)
        assert_all_there(stream, total())


async def test_the_shards_of_a_worker_that_died_are_taken_over(stream, url, postgres):
    await stream.put(numbered(0, 100))
    async with member(postgres, url, stream.name, name="victim") as victim:
        await read_until(lambda: len(records(victim.batches)) >= 100, victim)
        coordinating = victim.source._sharing._coordinating
        coordinating.cancel()  # its heart stops
        await asyncio.wait({coordinating})
        async with victim.ledger.database.connection("test") as conn:
            expiry = await conn.execute("SELECT max(expires_at) FROM streamproc.shards")
            (expires_at,) = await expiry.fetchone()
        victim.drop()
        async with member(postgres, url, stream.name, name="heir") as heir:
            await read_until(lambda: len(records(heir.batches)) >= 100, heir)
            claimed_at = {status.claimed_at for status in await heir.ledger.status()}
            assert min(claimed_at) >= expires_at, "not before the lease was over"
            assert_all_there(stream, records(heir.batches))


async def test_latest_begins_with_what_comes_from_now_on(stream, url, postgres):
    await stream.put(numbered(0, 50))
    await asyncio.sleep(1.1)  # the server's timestamps are those of its clock, to the millisecond
    async with member(postgres, url, stream.name, start="latest") as one:
        stream.put_by_shard.clear()
        await stream.put(numbered(50, 80))
        await read_until(lambda: len(records(one.batches)) >= 30, one)
        assert_all_there(stream, records(one.batches))


async def test_a_stream_can_begin_at_a_time(stream, url, postgres):
    await stream.put(numbered(0, 50))
    await asyncio.sleep(1.1)
    border = int(time.time() * 1000)
    await asyncio.sleep(0.1)
    stream.put_by_shard.clear()
    await stream.put(numbered(50, 80))
    async with member(postgres, url, stream.name, start="timestamp", since_ms=border) as one:
        await read_until(lambda: len(records(one.batches)) >= 30, one)
        assert_all_there(stream, records(one.batches))


async def test_a_stream_that_is_not_there_yet_is_waited_for(url, postgres):
    stream = Stream(url, 1)
    async with asyncio.TaskGroup() as group:

        async def work() -> None:
            async with member(postgres, url, stream.name) as one:
                await read_until(lambda: len(records(one.batches)) >= 10, one)

        working = group.create_task(work())
        await asyncio.sleep(0.5)
        assert not working.done()
        await stream.create()
        await stream.put(numbered(0, 10))
    await asyncio.to_thread(stream.close)


async def test_a_position_in_a_stream_that_was_made_anew_stops_the_shard(stream, url, postgres):
    await stream.put(numbered(0, 20))
    async with member(postgres, url, stream.name) as one:
        await read_until(lambda: len(records(one.batches)) >= 20, one)
        await one.commit()
    again = Stream(url, 2)
    again.name = stream.name
    await again.make_anew()
    await again.put(numbered(0, 20))
    async with member(postgres, url, stream.name, name="w2") as two:
        await read_until(lambda: len(two.source.stopped) == 2, two)
        assert two.batches == []
        assert all("made anew" in str(error) for error in two.source.stopped.values())


async def test_a_time_before_the_position_is_the_number_that_was_counted_then(stream, url, postgres):
    shard = min(await stream.open_shards())
    keys = [key for key in map(str, range(500)) if _shard_of(key) == 0]
    await stream.put(numbered(0, 30), [keys[0]] * 30)
    await asyncio.sleep(1.1)
    border = int(time.time() * 1000)
    await asyncio.sleep(0.1)
    await stream.put(numbered(30, 50), [keys[0]] * 20)
    partition = Partition(stream.name, shard)
    async with member(postgres, url, stream.name) as one:
        await read_until(lambda: len(records(one.batches)) >= 50, one)
        await one.commit()
    async with member(postgres, url, stream.name) as one:
        await one.source.close()
        connection = KinesisConnection(REGION, url)
        found = await place(connection, one.ledger, partition, 49, Mark(0, since_ms=border))
        assert (found.position, found.mark, found.last) == (29, None, 49)
        latest = await place(connection, one.ledger, partition, 49, "latest")
        assert latest.position == 50
        assert latest.mark is not None
        assert (await place(connection, one.ledger, partition, 49, 17)).position == 17
        # As if a worker had died between its last commit and its next heartbeat.
        async with one.ledger.database.connection("test") as conn:
            await conn.execute("DELETE FROM streamproc.shard_marks WHERE position > 0")
        found = await place(connection, one.ledger, partition, 49, Mark(0, since_ms=border))
        assert (found.position, found.mark, found.last) == (29, None, 49)
        assert (await place(connection, one.ledger, partition, 49, "latest")).position == 50
