"""What streamproc.sources.kafka_fetch takes from inside aiokafka is still there, and means the same.

When one of these fails after an upgrade, read the new ``aiokafka/consumer/fetcher.py`` before changing
anything: what moved may also have changed what it promises.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import weakref
from importlib.metadata import version

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.consumer.fetcher import READ_COMMITTED, Fetcher, FetchError, FetchResult, PartitionRecords
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.consumer.subscription_state import Assignment, SubscriptionState
from aiokafka.errors import OffsetOutOfRangeError
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.legacy_records import LegacyRecordBatch
from aiokafka.record.memory_records import MemoryRecords

from streamproc.sources import kafka_fetch
from tests.sources.batches import record_batch

TP = TopicPartition("clicks", 0)


class ConsumerStub:
    """What ``take`` sees of a consumer, with the real fetch results in it."""

    def __init__(self, result: object) -> None:
        self._fetcher = FetcherStub({TP: result})


class FetcherStub:
    def __init__(self, records: dict[TopicPartition, object]) -> None:
        self._records = records
        self._wait_consume_future = asyncio.get_running_loop().create_future()

    _notify = Fetcher._notify


def fetch_result(assignment: Assignment, *batches: bytes, offset: int = 0) -> FetchResult:
    records = PartitionRecords(
        TP, MemoryRecords(b"".join(batches)), [(7, 3)], offset, None, None, True, READ_COMMITTED
    )
    return FetchResult(TP, assignment=assignment, partition_records=records, backoff=0)


@pytest.fixture
async def assignment() -> Assignment:
    assigned = Assignment({TP})
    assigned.state_value(TP).seek(0)
    return assigned


def test_the_release_is_one_that_these_tests_were_read_against() -> None:
    assert version("aiokafka").startswith("0.14.")


async def test_taking_moves_the_position_frees_the_slot_and_lets_the_next_fetch_begin(
    assignment: Assignment,
) -> None:
    first, second = record_batch(0, [b"a", b"b"]), record_batch(2, [b"c"])
    consumer = ConsumerStub(fetch_result(assignment, first, second))
    fetched = kafka_fetch.take(consumer, TP)
    assert isinstance(fetched, kafka_fetch.Fetched)
    assert (len(fetched), fetched.size, fetched.through) == (2, len(first) + len(second), 2)
    assert list(fetched._aborted) == [(7, 3)]
    assert assignment.state_value(TP).position == 3
    assert not consumer._fetcher._records
    assert consumer._fetcher._wait_consume_future.done()
    assert kafka_fetch.take(consumer, TP) is None


async def test_an_answer_goes_with_the_last_that_uses_it_and_not_with_the_next_garbage_collection(
    assignment: Assignment,
) -> None:
    result = fetch_result(assignment, record_batch(0, [b"a"]))
    kept = weakref.ref(result._partition_records)
    gc.disable()
    try:
        fetched = kafka_fetch.take(ConsumerStub(result), TP)
        assert isinstance(fetched, kafka_fetch.Fetched)
        del result, fetched
        assert kept() is None
    finally:
        gc.enable()


async def test_what_was_fetched_before_a_seek_is_not_taken(assignment: Assignment) -> None:
    result = fetch_result(assignment, record_batch(0, [b"a"]))
    assignment.state_value(TP).seek(9)
    assert kafka_fetch.take(ConsumerStub(result), TP) is None
    assert assignment.state_value(TP).position == 9


async def test_what_was_fetched_for_an_assignment_that_is_over_is_not_taken(assignment: Assignment) -> None:
    result = fetch_result(assignment, record_batch(0, [b"a"]))
    assignment._unassign()
    assert kafka_fetch.take(ConsumerStub(result), TP) is None


async def test_a_record_batch_cut_short_by_the_size_of_the_answer_is_left_for_the_next(
    assignment: Assignment,
) -> None:
    whole, cut = record_batch(0, [b"a"]), record_batch(1, [b"b" * 100])[:-50]
    fetched = kafka_fetch.take(ConsumerStub(fetch_result(assignment, whole, cut)), TP)
    assert isinstance(fetched, kafka_fetch.Fetched)
    assert fetched.through == 0
    assert assignment.state_value(TP).position == 1


async def test_errors_of_a_fetch_are_returned() -> None:
    error = OffsetOutOfRangeError({TP: 5})
    assert kafka_fetch.take(ConsumerStub(FetchError(error=error, backoff=0)), TP) is error


async def test_a_consumer_has_what_is_used_of_its_inside() -> None:
    consumer = AIOKafkaConsumer(group_id="g")
    try:
        assert isinstance(consumer._subscription, SubscriptionState)
        assert {"_client", "_coordinator", "_fetcher"} <= vars(consumer).keys()
        with kafka_fetch.polling(consumer):
            assert consumer._subscription.fetcher_idle_time == 0
    finally:
        await consumer.stop()


def test_the_fetcher_has_what_is_used_of_it() -> None:
    source = inspect.getsource(Fetcher.__init__)
    assert "self._records = " in source
    assert "self._wait_consume_future = " in source
    assert inspect.isfunction(Fetcher._create_fetch_waiter)
    assert isinstance(Fetcher.error_future, property)
    # A result that waits to be taken must not be asked for again, and taking it must make it so.
    assert "if tp in self._records:" in inspect.getsource(Fetcher._get_actions_per_node)


def test_the_coordinator_has_what_is_used_of_it() -> None:
    assert inspect.isfunction(GroupCoordinator.check_errors)
    assert "self._coordination_task = " in inspect.getsource(GroupCoordinator.__init__)
    # None before it was found, and when it does not answer any more.
    assert "self.coordinator_id = None" in inspect.getsource(GroupCoordinator.__init__)
    assert "self.coordinator_id = None" in inspect.getsource(GroupCoordinator.coordinator_dead)


def test_the_listener_is_called_the_way_the_claims_rely_on() -> None:
    complete = inspect.getsource(GroupCoordinator._on_join_complete)
    # A plain function is fine for assignments, and the new assignment is in place before it is called.
    assert "asyncio.iscoroutine(res)" in complete
    assert complete.index("assign_from_subscribed") < complete.index("on_partitions_assigned")
    # Revocation is awaited, before the group is joined again and while heartbeats go on.
    rejoin = inspect.getsource(GroupCoordinator.ensure_active_group)
    prepare, heartbeat, join = map(
        rejoin.index, ["_on_join_prepare(", "_stop_heartbeat_task(", "_do_rejoin_group("]
    )
    assert prepare < heartbeat < join
    assert "await res" in inspect.getsource(GroupCoordinator._on_join_prepare)


def test_record_batches_tell_what_the_reader_asks_them() -> None:
    batch = DefaultRecordBatch(record_batch(5, [b"a", b"b"], producer=9, transactional=True))
    assert (batch.base_offset, batch.last_offset_delta, batch.next_offset) == (5, 1, 7)
    assert (batch.producer_id, batch.is_transactional, batch.is_control_batch) == (9, True, False)
    assert batch.max_timestamp == 1_006
    assert batch.validate_crc()
    assert [(record.offset, record.value) for record in batch] == [(5, b"a"), (6, b"b")]
    assert LegacyRecordBatch.producer_id is None or hasattr(LegacyRecordBatch, "producer_id")


def test_a_fetch_request_can_be_made_by_hand() -> None:
    FetchRequest(1, 1, 1, 0, [("clicks", [(0, 0, 1)])], rack_id="")
