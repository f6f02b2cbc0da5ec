"""The function behind mappings of Kinesis and Kafka, on a real ledger and lake: each record once, none passed over."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pytest

from streamproc.errors import ConfigError, DependencyError, Fenced, Gap, UnexpectedPosition
from streamproc.ledger import Ledger as ServiceLedger
from streamproc.ledger.erasures import Erasures
from streamproc.runtimes.aws_lambda import engine
from streamproc.runtimes.aws_lambda.function import Function
from streamproc.runtimes.aws_lambda.mapping import OutOfTime
from streamproc.sources.kinesis_records import pack
from streamproc.topology import Topology
from streamproc.transform.erased import visitor_hash
from tests.conftest import S3Server
from tests.runtimes.lambda_events import (
    REGION,
    Context,
    click,
    function,
    kafka_event,
    kinesis_event,
    page,
)
from tests.runtimes.lambda_events import page as small
from tests.sources.kinesis_consuming import member, read_until, records

pytestmark = pytest.mark.aws

SHARD = "shardId-000000000000"
DONE: dict[str, Any] = {"batchItemFailures": []}


class Ledger:
    """What a test asks the database and the lake, without the service's code."""

    def __init__(self, conninfo: str, lake: Path) -> None:
        self.conninfo, self.lake = conninfo, lake

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.conninfo, autocommit=True) as conn:
            cursor = conn.execute(query.encode())
            return cursor.fetchall() if cursor.description else []

    def counts(self) -> dict[str, int]:
        """Events by kind, as the table has them."""
        return {
            kind: int(events)
            for kind, events in self.ask("SELECT kind, sum(events) FROM clicks.kinds GROUP BY 1")
        }

    def position(self, partition: str) -> int | None:
        found = self.ask(f"SELECT position FROM streamproc.partitions WHERE partition = '{partition}'")
        return None if not found or found[0][0] is None else int(found[0][0])

    def ids(self) -> list[tuple[int, str]]:
        """Position and id of every event in the lake's committed objects."""
        import duckdb

        keys = [
            str(self.lake / key)
            for (key,) in self.ask(
                "SELECT key FROM streamproc.objects WHERE state = 'committed' AND kind = 'events'"
            )
        ]
        if not keys:
            return []
        return duckdb.execute("SELECT position, id FROM read_parquet($1) ORDER BY 1", [keys]).fetchall()


@pytest.fixture
def ledger(postgres: str, tmp_path: Path) -> Ledger:
    return Ledger(postgres, tmp_path / "lake")


@pytest.fixture
def environ(ledger: Ledger) -> dict[str, str]:
    return {"STREAMPROC_LEDGER": ledger.conninfo, "STREAMPROC_LAKE": ledger.lake.as_uri()}


@pytest.fixture
def made(environ: dict[str, str], tmp_path: Path) -> Iterator[Any]:
    """Makes instances of the function, and ends them."""
    instances: list[Function] = []

    def make(topic: str = "clicks", page: Topology | None = None, **more: str) -> Function:
        instances.append(function(page or small(topic), environ | more, tmp_path))
        return instances[-1]

    yield make
    for instance in instances:
        instance.close()


class Stream:
    """A stream of moto's Kinesis, of one shard; reads what was put as a mapping would deliver it."""

    def __init__(self, server: S3Server, name: str) -> None:
        self.name, self.url = name, server.endpoint_url
        self.api = boto3.client("kinesis", endpoint_url=server.endpoint_url, region_name=REGION)
        self.api.create_stream(StreamName=name, ShardCount=1)

    def put(self, *values: bytes) -> None:
        for value in values:  # one by one: put_records has no order
            self.api.put_record(StreamName=self.name, Data=value, PartitionKey="k")

    def records(self) -> list[tuple[str, bytes]]:
        iterator = self.api.get_shard_iterator(
            StreamName=self.name, ShardId=SHARD, ShardIteratorType="TRIM_HORIZON"
        )["ShardIterator"]
        found = self.api.get_records(ShardIterator=iterator)["Records"]
        return [(record["SequenceNumber"], record["Data"]) for record in found]

    def event(self, some: slice | Sequence[int]) -> dict[str, Any]:
        records = self.records()
        chosen = records[some] if isinstance(some, slice) else [records[n] for n in some]
        return kinesis_event(self.name, chosen)


@pytest.fixture
def stream(s3_server: S3Server, tmp_path: Path) -> Iterator[Stream]:
    made = Stream(s3_server, f"s-{tmp_path.name[-40:].replace('_', '-')}")
    yield made
    made.api.delete_stream(StreamName=made.name)
    made.api.close()


def kinesis(made: Any, stream: Stream) -> Function:
    instance: Function = made(stream.name, STREAMPROC_KINESIS_ENDPOINT_URL=stream.url)
    return instance


# -- Kinesis ---------------------------------------------------------------------------------------------


def test_the_sample_event_is_committed_with_no_stream_at_hand(
    made: Any, ledger: Ledger, shared_data: Path
) -> None:
    """A first batch needs only the ledger. "Hello World" is no event: both records are rejects."""
    event = json.loads((shared_data / "lambda_events" / "kinesis-event.json").read_text())
    instance = made("simple-stream")
    assert instance(event, Context()) == DONE
    assert ledger.position(SHARD) == 1
    assert instance(event, Context()) == DONE, "and once more, as mappings do"
    assert ledger.ask("SELECT records, rejected FROM streamproc.partitions") == [(2, 2)]


def test_batches_are_committed_once_however_often_they_come(
    made: Any, ledger: Ledger, stream: Stream
) -> None:
    stream.put(*(click(n) for n in range(5)), click(5, "robot"), b"{", click(0))
    first, second = kinesis(made, stream), kinesis(made, stream)
    assert first(stream.event(slice(0, 4)), Context()) == DONE
    assert second(stream.event(slice(0, 4)), Context()) == DONE, "a retry, at another instance"
    assert first(stream.event(slice(2, 6)), Context()) == DONE, "part of it is new"
    assert second(stream.event(slice(6, 8)), Context()) == DONE
    assert first(stream.event(slice(1, 3)), Context()) == DONE, "a bisected one, long done"
    assert ledger.ids() == [(n, f"e{n}") for n in range(5)]
    assert ledger.counts() == {"view": 5}
    assert ledger.ask(
        "SELECT records, accepted, filtered, rejected, duplicate FROM streamproc.partitions"
    ) == [(8, 5, 1, 1, 1)]


def test_records_that_the_mapping_left_out_are_read_from_the_stream(
    made: Any, ledger: Ledger, stream: Stream
) -> None:
    stream.put(*(click(n) for n in range(9)))
    instance = kinesis(made, stream)
    assert instance(stream.event(slice(0, 2)), Context()) == DONE
    assert instance(stream.event(slice(5, 8)), Context()) == DONE
    assert ledger.ids() == [(n, f"e{n}") for n in range(8)]
    assert instance(stream.event(slice(2, 5)), Context()) == DONE, "they come after all"
    assert instance(stream.event(slice(8, 9)), Context()) == DONE
    assert ledger.ids() == [(n, f"e{n}") for n in range(9)]


def test_batches_with_holes_are_noticed_and_not_taken_for_done(made: Any, stream: Stream) -> None:
    """What a ParallelizationFactor of 2, or a filter, makes of a shard."""
    stream.put(*(click(n) for n in range(6)))
    instance = kinesis(made, stream)
    assert instance(stream.event([0, 2, 4]), Context()) == DONE, "nobody can see that yet"
    with pytest.raises(UnexpectedPosition, match="ParallelizationFactor of 1"):
        instance(stream.event([1, 3]), Context())
    with pytest.raises(UnexpectedPosition, match="ParallelizationFactor of 1"):
        instance(stream.event([3, 5]), Context())


def test_packed_records_are_unpacked_and_numbered_one_by_one(
    made: Any, ledger: Ledger, stream: Stream
) -> None:
    stream.put(click(0), pack([(b"k", click(n)) for n in (1, 2, 3)]), click(4))
    instance = kinesis(made, stream)
    assert instance(stream.event(slice(0, 2)), Context()) == DONE
    assert instance(stream.event(slice(2, 3)), Context()) == DONE
    assert ledger.ids() == [(n, f"e{n}") for n in range(5)]


def test_a_committed_record_that_is_gone_is_a_gap_unless_all_was_known_to_be_done(
    made: Any, ledger: Ledger, stream: Stream
) -> None:
    """The committed record has a sequence number below all that the stream has, like one that has expired."""
    instance = kinesis(made, stream)
    assert instance(kinesis_event(stream.name, [("0", click(0))]), Context()) == DONE
    stream.put(click(1), click(2))
    with pytest.raises(Gap, match="accept-gap"):
        instance(stream.event(slice(0, 1)), Context())
    assert ledger.position(SHARD) == 0
    ledger.ask("UPDATE streamproc.shards SET complete_at = clock_timestamp() - interval '1 hour'")
    assert instance(stream.event(slice(0, 1)), Context()) == DONE
    assert ledger.ids() == [(0, "e0"), (1, "e1")]


def test_a_stream_that_is_read_to_its_end_is_noted_as_complete(
    made: Any, ledger: Ledger, stream: Stream
) -> None:
    stream.put(click(0), click(1), click(2))
    instance = kinesis(made, stream)
    assert instance(stream.event(slice(0, 1)), Context()) == DONE
    assert instance(stream.event(slice(1, 2)), Context()) == DONE
    assert ledger.ask("SELECT complete_at IS NULL FROM streamproc.shards") == [(True,)]
    assert instance(stream.event(slice(2, 3)), Context()) == DONE
    assert ledger.ask("SELECT complete_at IS NULL FROM streamproc.shards") == [(False,)]


async def test_a_worker_goes_on_where_the_function_ended_and_the_other_way_round(
    made: Any, ledger: Ledger, stream: Stream, postgres: str
) -> None:
    """A worker's marks are fewer: what lies between one and the position is counted in the stream."""
    instance = kinesis(made, stream)

    async def call(some: slice) -> Any:
        return await asyncio.to_thread(lambda: instance(stream.event(some), Context()))

    await asyncio.to_thread(stream.put, *(click(n) for n in range(3)))
    assert await call(slice(0, 3)) == DONE
    await asyncio.to_thread(stream.put, click(3), click(4))
    async with member(postgres, stream.url, stream.name) as worker:
        await read_until(lambda: len(records(worker.batches)) == 2, worker, committing=True)
    assert records(worker.batches) == [(SHARD, 3, click(3)), (SHARD, 4, click(4))]
    ledger.ask("DELETE FROM streamproc.shard_marks WHERE position > 2")
    await asyncio.to_thread(stream.put, click(5), click(6))
    assert await call(slice(5, 7)) == DONE
    assert ledger.position(SHARD) == 6
    assert ledger.ids() == [(0, "e0"), (1, "e1"), (2, "e2"), (5, "e5"), (6, "e6")], (
        "the worker here has no lake"
    )


def test_the_first_record_not_done_is_named_where_a_part_was_done_before(made: Any, stream: Stream) -> None:
    stream.put(click(0), click(1), click(2))
    instance: Any = kinesis(made, stream)
    assert instance(stream.event(slice(0, 2)), Context()) == DONE

    async def fails(batches: Any) -> None:
        raise DependencyError("the lake", "does not answer")

    instance._engine.commit = fails
    first_new, _ = stream.records()[2]
    assert instance(stream.event(slice(1, 3)), Context()) == {
        "batchItemFailures": [{"itemIdentifier": first_new}]
    }


def test_a_mapping_with_a_consumer_of_its_own_reads_the_stream_that_the_consumer_is_of(
    made: Any, ledger: Ledger
) -> None:
    """Enhanced fan-out: the mapping's source, and so the events', is the consumer."""
    event = kinesis_event("clicks/consumer/own:1700000000", [("1", click(0))])
    assert made()(event, Context()) == DONE
    assert ledger.ids() == [(0, "e0")]


def test_an_event_of_another_stream_is_refused(made: Any, stream: Stream) -> None:
    with pytest.raises(ConfigError, match="mapping's stream is 'other'"):
        kinesis(made, stream)(kinesis_event("other", [("1", b"{}")]), Context())


# -- time, fences and broken connections -------------------------------------------------------------------


def test_without_time_nothing_is_committed_and_the_batch_comes_again(made: Any, ledger: Ledger) -> None:
    instance, event = made(), kafka_event("clicks", {0: [(0, click(0))]})
    with pytest.raises(OutOfTime):
        instance(event, Context(1.0))
    assert instance(event, Context()) == DONE
    assert ledger.ids() == [(0, "e0")]


def test_a_commit_that_is_given_up_holds_no_locks_while_the_instance_is_frozen(
    made: Any, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_ROLLBACK", 60.0)
    instance, event = made(), kafka_event("clicks", {0: [(1, click(1))]})
    assert instance(kafka_event("clicks", {0: [(0, click(0))]}), Context()) == DONE
    with psycopg.connect(ledger.conninfo) as other:
        other.execute("LOCK TABLE clicks.kinds IN EXCLUSIVE MODE")
        with pytest.raises(OutOfTime):
            instance(event, Context(4.0))
        open_still = "SELECT query FROM pg_stat_activity WHERE application_name LIKE 'streamproc %' AND state <> 'idle'"
        assert ledger.ask(open_still) == []
    assert instance(event, Context()) == DONE
    assert ledger.ids() == [(0, "e0"), (1, "e1")]


def test_an_invocation_that_lost_its_claim_commits_nothing(made: Any, ledger: Ledger) -> None:
    """Two instances get the same batch; whoever claims first loses, and finds it done when it comes again."""
    slow, fast = made(), made()
    event = kafka_event("clicks", {0: [(0, click(0)), (1, click(1))]})
    assert slow(kafka_event("clicks", {0: [(0, click(0))]}), Context()) == DONE
    committing = slow._engine.commit

    async def after_the_other(batches: Any) -> None:
        other = threading.Thread(target=lambda: answers.append(fast(event, Context())))
        other.start()
        other.join()
        await committing(batches)

    answers: list[Any] = []
    slow._engine.commit = after_the_other
    with pytest.raises(Fenced, match="claimed again"):
        slow(event, Context())
    assert answers == [DONE]
    slow._engine.commit = committing
    assert slow(event, Context()) == DONE
    assert ledger.ids() == [(0, "e0"), (1, "e1")]
    assert ledger.counts() == {"view": 2}


def test_connections_that_broke_between_two_invocations_are_made_again(made: Any, ledger: Ledger) -> None:
    instance = made()
    assert instance(kafka_event("clicks", {0: [(0, click(0))]}), Context()) == DONE
    fence = ledger.ask("SELECT fence FROM streamproc.partitions")
    ledger.ask(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'streamproc %'"
    )
    assert instance(kafka_event("clicks", {0: [(1, click(1))]}), Context()) == DONE
    instance._engine._used = 0.0  # frozen for long
    assert instance(kafka_event("clicks", {0: [(2, click(2))]}), Context()) == DONE
    assert ledger.ids() == [(n, f"e{n}") for n in range(3)]
    assert ledger.ask("SELECT fence FROM streamproc.partitions") == fence, "the claim is kept"


def test_a_database_that_is_not_there_is_told_and_tried_anew(made: Any, ledger: Ledger) -> None:
    instance = made(STREAMPROC_LEDGER="postgresql://nobody@127.0.0.1:1/x?connect_timeout=2")
    event = kafka_event("clicks", {0: [(0, click(0))]})
    for _ in range(2):
        with pytest.raises(DependencyError, match=r"127\.0\.0\.1"):
            instance(event, Context())


def test_settings_that_a_function_cannot_do_are_refused(made: Any) -> None:
    event = kafka_event("clicks", {0: [(0, click(0))]})
    with pytest.raises(ConfigError, match="embedded"):
        made(STREAMPROC_LEDGER="")(event, Context())
    with pytest.raises(ConfigError, match="publishes"):
        made(page=page(sinks={"publish_events": "enriched", "warehouse": False}))(event, Context())


# -- Kafka -----------------------------------------------------------------------------------------------


def test_the_sample_kafka_event_is_committed(made: Any, ledger: Ledger, shared_data: Path) -> None:
    event = json.loads((shared_data / "lambda_events" / "kafka-event.json").read_text())
    assert made("AWSKafkaTopic")(event, Context()) == DONE
    assert ledger.ask("SELECT partition, position, rejected FROM streamproc.partitions") == [("0", 0, 1)]


def test_partitions_of_an_event_are_committed_together_and_once(made: Any, ledger: Ledger) -> None:
    instance = made()
    event = kafka_event("clicks", {0: [(7, click(0)), (8, None)], 1: [(3, click(1)), (4, click(1))]})
    assert instance(event, Context()) == DONE
    assert made()(event, Context()) == DONE
    more = kafka_event("clicks", {0: [(8, None), (9, click(2))], 1: [(4, click(1))]})
    assert instance(more, Context()) == DONE
    assert ledger.ask(
        "SELECT partition, position, records, accepted, rejected, duplicate FROM streamproc.partitions ORDER BY 1"
    ) == [("0", 9, 3, 2, 1, 0), ("1", 4, 2, 1, 0, 1)]
    assert ledger.ask("SELECT count(*) FROM streamproc.epochs") == [(2,)]


def test_a_partition_with_missing_offsets_is_named_and_the_others_go_on(made: Any, ledger: Ledger) -> None:
    instance = made()
    assert instance(kafka_event("clicks", {0: [(0, click(0))], 1: [(0, click(1))]}), Context()) == DONE
    jump = kafka_event("clicks", {0: [(2, click(2))], 1: [(1, click(3))]})
    assert instance(jump, Context()) == {
        "batchItemFailures": [{"itemIdentifier": {"partition": "clicks-0", "offset": 2}}]
    }
    assert (ledger.position("0"), ledger.position("1")) == (0, 1)
    with pytest.raises(Gap, match="offsets set"):
        instance(kafka_event("clicks", {0: [(2, click(2))]}), Context())
    with pytest.raises(Gap, match="offsets set"):
        instance(kafka_event("clicks", {0: [(1, click(2)), (3, click(4))]}), Context())


ONLY_PARTLY_NEW = {
    "of one partition": {0: [(1, click(1)), (2, click(2))]},
    "one of two partitions": {0: [(2, click(2))], 1: [(0, click(9))]},
    "beside one that cannot go on": {0: [(2, click(2))], 1: [(5, click(9))]},
}


@pytest.mark.parametrize("some", list(ONLY_PARTLY_NEW.values()), ids=list(ONLY_PARTLY_NEW))
def test_a_commit_that_fails_is_raised_whatever_was_done_before(
    made: Any, ledger: Ledger, some: dict[int, list[tuple[int, bytes]]]
) -> None:
    """A mapping without ReportBatchItemFailures takes every answer for success, and would go past the rest."""
    instance = made()
    before = {0: [(0, click(0)), (1, click(1))], 1: [(0, click(9))]}
    assert instance(kafka_event("clicks", before), Context()) == DONE
    committing = instance._engine.commit

    async def fails(batches: Any) -> None:
        raise DependencyError("the lake", "does not answer")

    instance._engine.commit = fails
    with pytest.raises(DependencyError, match="does not answer"):
        instance(kafka_event("clicks", some), Context())
    assert ledger.position("0") == 1
    instance._engine.commit = committing
    instance(kafka_event("clicks", some), Context())
    assert ledger.position("0") == 2
    assert ledger.counts() == {"view": 4}


def test_a_redriven_record_names_its_reject(made: Any, ledger: Ledger) -> None:
    """Its headers come as numbers, and of Java's bytes some are negative."""
    origin = {"source": "clicks", "partition": "0", "position": "3", "reason": "bad_json"}
    headers = [{f"streamproc.redrive.{name}": list(value.encode())} for name, value in origin.items()]
    event = kafka_event("clicks", {0: [(7, click(0))]}, [*headers, {"other": [118, -36, 0]}])
    assert made()(event, Context()) == DONE
    import duckdb

    (key,) = ledger.ask("SELECT key FROM streamproc.objects WHERE kind = 'events'")[0]
    path = str(ledger.lake / key)
    assert duckdb.execute("SELECT redriven_from FROM read_parquet($1)", [path]).fetchall() == [(3,)]


async def _forget(conninfo: str, value: str) -> None:
    async with ServiceLedger(conninfo, "clicks", "operator") as service:
        erasures = Erasures(service.database, "clicks")
        await erasures.note([visitor_hash(value, await erasures.key())], "operator")


def test_a_visitor_who_asked_to_be_forgotten_is_left_out_from_then_on(made: Any, ledger: Ledger) -> None:
    instance = made(page=small(erasure={"columns": ["id"]}))
    assert instance(kafka_event("clicks", {0: [(0, click(0)), (1, click(1))]}), Context()) == DONE
    asyncio.run(_forget(ledger.conninfo, "e2"))
    assert instance(kafka_event("clicks", {0: [(2, click(2)), (3, click(3))]}), Context()) == DONE
    assert [name for _, name in ledger.ids()] == ["e0", "e1", "e3"]
    assert ledger.ask("SELECT accepted, filtered FROM streamproc.partitions") == [(3, 1)]
