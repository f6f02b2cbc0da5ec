"""How a shard is read when the service refuses, forgets or is late: a stub does it on demand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from streamproc.errors import ConfigError, Gap, UnexpectedPosition
from streamproc.ledger import Ledger, NewPosition
from streamproc.ledger.shards import Shards
from streamproc.model import Partition
from streamproc.ops.shard_positions import place
from streamproc.sources import kinesis_sharing
from streamproc.sources.kinesis_connection import KinesisConnection
from tests.sources.consuming import until
from tests.sources.kinesis_consuming import REGION, Member, assert_seamless, member, read_until, records
from tests.support.kinesis_stub import CHILD, SHARD, KinesisStub

HOUR = 3600.0
PARTITION = Partition("s", SHARD)


@pytest.fixture
async def stub(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[KinesisStub]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    async with KinesisStub() as stub:
        yield stub


def numbered(count: int) -> list[bytes]:
    return [b"%d" % n for n in range(count)]


async def committed(postgres: str, stub: KinesisStub, count: int) -> None:
    """A worker reads and commits that many records and goes."""
    async with member(postgres, stub.url, "s", name="before") as one:
        await read_until(lambda: len(records(one.batches)) >= count, one, committing=True)
        await read_until(lambda: one.source.behind == {PARTITION: 0.0}, one)


async def forget_completeness(postgres: str) -> None:
    """As if nobody had been there for two days."""
    import psycopg

    async with await psycopg.AsyncConnection.connect(postgres, autocommit=True) as conn:
        await conn.execute("UPDATE streamproc.shards SET complete_at = complete_at - interval '2 days'")
        await conn.execute("UPDATE streamproc.shard_marks SET arrived_ms = arrived_ms - 172800000")


# -- limits ------------------------------------------------------------------------------------------------


async def test_refusals_are_waited_out_and_cost_nothing(stub, postgres):
    stub.put(*numbered(10))
    stub.errors.extend(["ProvisionedThroughputExceededException"] * 4 + ["InternalFailure"])
    async with member(postgres, stub.url, "s") as one:
        await read_until(lambda: len(records(one.batches)) >= 10, one)
        assert [value for _, _, value in records(one.batches)] == numbered(10)
    assert not stub.errors
    assert sum(1 for operation, _ in stub.requests if operation == "GetShardIterator") == 1


async def test_an_expired_iterator_is_renewed_behind_the_record_that_was_read_last(stub, postgres):
    stub.limit, stub.iterators_last = 5, 2
    stub.put(*numbered(40))
    async with member(postgres, stub.url, "s") as one:
        await read_until(lambda: len(records(one.batches)) >= 40, one)
        assert [value for _, _, value in records(one.batches)] == numbered(40)
        assert_seamless(one.batches)
    assert sum(1 for operation, _ in stub.requests if operation == "GetShardIterator") > 4


async def test_fetching_stops_while_too_much_is_waiting(stub, postgres):
    stub.limit = 10
    stub.put(*[b"x" * 1000] * 100)
    async with member(postgres, stub.url, "s", prefetch=15_000) as one:
        await one.take(5.0, max_records=1)
        reads = stub.reads
        assert one.source.buffered_bytes < 30_000
        await read_until(lambda: len(records(one.batches)) >= 100, one)
    assert stub.reads > reads


async def test_a_paused_shard_gives_nothing_until_it_is_resumed(stub, postgres):
    stub.put(*numbered(5))
    async with member(postgres, stub.url, "s") as one:
        await read_until(lambda: len(records(one.batches)) >= 5, one)
        one.source.pause([PARTITION])
        stub.put(b"later")
        assert await one.take(1.0) == []
        one.source.resume([PARTITION])
        await read_until(lambda: len(records(one.batches)) >= 6, one)


# -- lag ---------------------------------------------------------------------------------------------------


async def test_lag_is_the_streams_millis_behind_latest(stub, postgres):
    stub.behind_ms = 12_500
    stub.put(*numbered(5))
    async with member(postgres, stub.url, "s", lease_timeout=1.0) as one:
        await read_until(lambda: len(records(one.batches)) >= 5, one)
        assert one.source.behind == {PARTITION: 12.5}
        assert await one.source.end_positions() == {PARTITION: 5}, "there is one more at least"
        await _until_told(one, 12_500)
        stub.behind_ms = 0
        await read_until(lambda: one.source.behind == {PARTITION: 0.0}, one)
        assert await one.source.end_positions() == {PARTITION: 4}


async def test_the_lag_of_a_shard_is_in_the_ledger_after_its_first_read_whenever_heartbeats_are_due(
    stub, postgres
):
    stub.behind_ms = 12_500
    stub.put(*numbered(5))
    async with member(postgres, stub.url, "s", lease_timeout=3600.0) as one:
        await _until_told(one, 12_500)


async def _until_told(one: Member, behind_ms: int) -> None:
    """Let it read until the ledger says that its shard is that far behind."""
    async with asyncio.timeout(60):
        while (await one.ledger.shards())[PARTITION].behind_ms != behind_ms:
            await one.take(0.05)


# -- retention ---------------------------------------------------------------------------------------------


async def test_a_gap_behind_the_position_stops_the_shard_and_says_so(stub, postgres):
    stub.put(*numbered(10))
    await committed(postgres, stub, 10)
    await forget_completeness(postgres)
    stub.put(*numbered(10))
    stub.trimmed = 15
    async with member(postgres, stub.url, "s") as one:
        await read_until(lambda: one.source.stopped, one)
        error = one.source.stopped[PARTITION]
        assert isinstance(error, Gap)
        assert "position 9" in str(error) and "--accept-gap" in str(error)
        assert one.batches == []


async def test_that_everything_is_gone_after_a_long_absence_may_be_a_gap(stub, postgres):
    stub.put(*numbered(10))
    await committed(postgres, stub, 10)
    await forget_completeness(postgres)
    stub.trimmed = 10
    async with member(postgres, stub.url, "s") as one:
        await read_until(lambda: one.source.stopped, one)
        assert isinstance(one.source.stopped[PARTITION], Gap)


@pytest.mark.parametrize("later", [0, 3])
async def test_an_idle_shard_whose_last_record_ran_out_has_no_gap(stub, postgres, later):
    """All that arrived was committed within the retention, so nothing else can be gone."""
    stub.put(*numbered(10), arrived=time.time() - 30 * HOUR)
    await committed(postgres, stub, 10)
    stub.trimmed = 10
    stub.put(*[b"later"] * later)
    async with member(postgres, stub.url, "s") as one:
        await read_until(lambda: len(records(one.batches)) >= later and one.source.behind, one)
        stub.put(b"new")
        await read_until(lambda: len(records(one.batches)) > later, one)
        assert one.source.stopped == {}
        assert [position for _, position, _ in records(one.batches)] == list(range(10, 11 + later))


async def test_a_record_too_young_to_be_gone_means_another_stream(stub, postgres):
    stub.put(*numbered(10))
    await committed(postgres, stub, 10)
    stub.trimmed = 10
    async with member(postgres, stub.url, "s") as one:
        await read_until(lambda: one.source.stopped, one)
        assert isinstance(one.source.stopped[PARTITION], UnexpectedPosition)


async def test_a_worker_that_reads_notices_as_well_that_the_stream_is_another(stub, postgres):
    """Nothing was missing when it looked last; what came then and went with the old stream would be, unnoticed."""
    async with member(postgres, stub.url, "s") as one:
        stub.put(*numbered(10))
        await read_until(lambda: len(records(one.batches)) >= 10, one, committing=True)
        await read_until(lambda: one.source.behind == {PARTITION: 0.0}, one)
        stub.put(*numbered(5))
        stub.trimmed = 13
        stub.errors.append("ExpiredIteratorException")
        await read_until(lambda: one.source.stopped, one)
        assert isinstance(one.source.stopped[PARTITION], UnexpectedPosition)
        assert len(records(one.batches)) == 10


async def nearly_a_day_behind(postgres: str, stub: KinesisStub) -> None:
    """Of twenty records five are committed, and all of them run out in a hundred seconds."""
    stub.put(*numbered(5))
    await committed(postgres, stub, 5)
    await forget_completeness(postgres)
    old = time.time() - 24 * HOUR + 100
    stub.records = [(value, old) for value in numbered(20)]
    stub.limit, stub.behind_ms = 5, 86_300_000


async def test_records_that_run_out_before_a_slow_worker_gets_to_them_are_a_gap(stub, postgres):
    await nearly_a_day_behind(postgres, stub)
    async with member(postgres, stub.url, "s", prefetch=1) as one:
        await until(lambda: one.source.buffered_bytes == 4)  # those after the one that was read before
        stub.trimmed = 12
        await read_until(lambda: one.source.stopped, one, seconds=30)
        error = one.source.stopped[PARTITION]
        assert isinstance(error, Gap) and "position 8" in str(error)
        assert [value for _, _, value in records(one.batches)] == numbered(9)[5:]


async def test_records_that_are_about_to_run_out_are_read_once_each(stub, postgres):
    await nearly_a_day_behind(postgres, stub)
    async with member(postgres, stub.url, "s") as one:
        await read_until(lambda: len(records(one.batches)) >= 15, one)
        stub.behind_ms = 0
        await read_until(lambda: one.source.behind == {PARTITION: 0.0}, one)
        assert [value for _, _, value in records(one.batches)] == numbered(20)[5:]
        assert_seamless(one.batches, begin=4)
        assert one.source.stopped == {}


async def test_a_stream_that_is_begun_at_its_oldest_records_is_read_on_while_they_run_out(stub, postgres):
    """Which of them are still there is chance; none is missed behind one that was committed."""
    stub.limit, stub.behind_ms = 5, 86_300_000
    stub.put(*numbered(20), arrived=time.time() - 24 * HOUR + 100)
    async with member(postgres, stub.url, "s", prefetch=1) as one:
        await until(lambda: one.source.buffered_bytes == 5)
        stub.trimmed = 12
        await read_until(lambda: len(records(one.batches)) >= 13, one)
        assert [value for _, _, value in records(one.batches)] == numbered(5) + numbered(20)[12:]


async def test_a_retention_that_was_shortened_while_a_worker_reads_makes_no_other_stream_of_it(
    stub, postgres, monkeypatch
):
    monkeypatch.setattr(kinesis_sharing, "_LIST_EVERY", 0.05)
    stub.retention_hours = 168

    def lists() -> int:
        return sum(operation == "ListShards" for operation, _ in stub.requests)

    async with member(postgres, stub.url, "s") as one:
        stub.put(*numbered(10), arrived=time.time() - 30 * HOUR)
        await read_until(lambda: len(records(one.batches)) >= 10, one, committing=True)
        await read_until(lambda: one.source.behind == {PARTITION: 0.0}, one)
        stub.retention_hours, before = 24, lists()
        await until(lambda: lists() >= before + 3)
        stub.trimmed = 10
        stub.put(b"later")
        stub.errors.append("ExpiredIteratorException")
        await read_until(lambda: len(records(one.batches)) > 10 or one.source.stopped, one)
        assert one.source.stopped == {}
        assert_seamless(one.batches)


async def test_a_worker_that_reads_goes_on_when_the_last_record_of_an_idle_shard_ran_out(stub, postgres):
    async with member(postgres, stub.url, "s") as one:
        stub.put(*numbered(10), arrived=time.time() - 30 * HOUR)
        await read_until(lambda: len(records(one.batches)) >= 10, one, committing=True)
        await read_until(lambda: one.source.behind == {PARTITION: 0.0}, one)
        stub.trimmed = 10
        stub.put(b"later")
        stub.errors.append("ExpiredIteratorException")
        await read_until(lambda: len(records(one.batches)) > 10, one)
        assert one.source.stopped == {}
        assert_seamless(one.batches)


async def test_an_operator_goes_past_a_gap_to_the_oldest_record_kept(stub, postgres):
    stub.put(*numbered(10))
    await committed(postgres, stub, 10)
    await forget_completeness(postgres)
    stub.put(*numbered(10))
    stub.trimmed = 15
    async with member(postgres, stub.url, "s") as one:
        await read_until(lambda: one.source.stopped, one)
        connection = KinesisConnection(REGION, stub.url)
        found = await place(connection, one.ledger, PARTITION, 9, "earliest")
        change = NewPosition(PARTITION, found.position, accept_gap=True, note="gap", mark=found.mark)
        assert await one.ledger.set_position(change) == 9
        await read_until(lambda: len(records(one.batches)) >= 5, one)
        assert [value for _, _, value in records(one.batches)] == numbered(10)[5:]
        (made,) = await one.ledger.position_changes()
        assert made.before == 9 and made.after == found.position > 9


async def test_an_operator_ends_a_shard_that_the_stream_has_forgotten_and_what_was_made_from_it_begins(
    stub, postgres
):
    stub.put(*numbered(10))
    await committed(postgres, stub, 10)
    await forget_completeness(postgres)
    stub.gone, stub.records = True, []
    stub.put(b"of the child")
    async with member(postgres, stub.url, "s") as one:
        await read_until(lambda: one.source.stopped, one)
        assert isinstance(one.source.stopped[PARTITION], Gap) and not one.batches
        connection = KinesisConnection(REGION, stub.url)
        with pytest.raises(ConfigError, match="does not have this shard any more"):
            await place(connection, one.ledger, PARTITION, 9, 3)
        found = await place(connection, one.ledger, PARTITION, 9, "earliest")
        change = NewPosition(PARTITION, found.position, True, False, "gone", found.mark, found.ended)
        assert await one.ledger.set_position(change) == 9
        await read_until(lambda: one.batches, one, committing=True)
        assert records(one.batches) == [(CHILD, 0, b"of the child")]
        assert (await one.ledger.shards())[PARTITION].finished


async def test_a_position_older_than_every_mark_is_refused_and_stops_only_its_shard_until_another_is_set(
    stub, postgres
):
    stub.put(*numbered(10))
    await committed(postgres, stub, 10)
    connection = KinesisConnection(REGION, stub.url)
    async with Ledger(postgres, "clicks", "operator") as ledger:
        await Shards(ledger.database, "clicks", "s", "operator", 2.0).thin(0.0)
        with pytest.raises(ConfigError, match="Give one from 9 on"):
            await place(connection, ledger, PARTITION, 9, -1)
        # As if the marks had gone in the moment between the question and this.
        await ledger.set_position(NewPosition(PARTITION, -1, accept_repeat=True, note="too old"))
    async with member(postgres, stub.url, "s") as one:
        await read_until(lambda: one.source.stopped, one)
        assert isinstance(one.source.stopped[PARTITION], Gap)
        found = await place(connection, one.ledger, PARTITION, -1, 9)
        await one.ledger.set_position(NewPosition(PARTITION, found.position, accept_gap=True, note="back"))
        stub.put(b"new")
        await read_until(lambda: one.batches, one)
        assert records(one.batches) == [(SHARD, 10, b"new")]
        assert not one.source.stopped


async def test_earliest_does_not_read_again_what_was_read(stub, postgres):
    """Also where the newest mark is a place in time and no record: after an operator skipped to the latest."""
    stub.put(*numbered(10))
    await committed(postgres, stub, 10)
    connection = KinesisConnection(REGION, stub.url)
    async with member(postgres, stub.url, "s") as one:
        await one.source.close()
        latest = await place(connection, one.ledger, PARTITION, 9, "latest")
        change = NewPosition(PARTITION, latest.position, accept_gap=True, note="skip", mark=latest.mark)
        await one.ledger.set_position(change)
        with pytest.raises(ConfigError, match="no record is missing"):
            await place(connection, one.ledger, PARTITION, latest.position, "earliest")


# -- ends --------------------------------------------------------------------------------------------------


async def test_an_empty_closed_shard_is_finished_at_once(stub, postgres):
    stub.closed = True
    async with member(postgres, stub.url, "s", lease_timeout=1.0) as one:
        await read_until(lambda: one.source.rebalances and not one.source.assignment, one)
        assert (await one.ledger.shards())[PARTITION].finished


async def test_a_closed_shard_is_finished_when_its_last_record_is_committed(stub, postgres):
    stub.closed = True
    stub.put(*numbered(5))
    async with member(postgres, stub.url, "s", lease_timeout=1.0) as one:
        await read_until(lambda: len(records(one.batches)) >= 5, one)
        await one.take(1.0)
        assert not (await one.ledger.shards())[PARTITION].finished
        await one.commit()
        await read_until(lambda: not one.source.assignment, one)
        assert (await one.ledger.shards())[PARTITION].finished


async def test_credentials_that_are_refused_are_waited_for_and_named(stub, postgres):
    said = []
    stub.errors.append("AccessDeniedException")
    stub.put(*numbered(1))
    async with member(postgres, stub.url, "s", waiting=lambda error, failing: said.append(error)) as one:
        await read_until(lambda: one.batches, one)
    assert "kinesis:ListShards" in said[0].hint
