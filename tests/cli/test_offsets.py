from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc.cli.offsets import effect
from streamproc.errors import Fenced
from streamproc.ledger import Ledger
from streamproc.model import Advance, Claim, Counts
from streamproc.sources.kafka_admin import admin
from streamproc.sources.kafka_client import KafkaConnection
from streamproc.sources.kafka_positions import Span
from tests.cli.shop import Shop
from tests.ledger.epochs import nothing, record
from tests.support.apache_kafka import ApacheKafka

SET = ("offsets", "set", "shop", "0")
WHY = ("--note", "because", "--yes")


def released(shop: Shop) -> None:
    """The worker that committed is gone, and was long ago."""
    with psycopg.connect(shop.ledger) as connection:
        connection.execute(
            "UPDATE streamproc.partitions SET claimed_at = claimed_at - interval '1 hour',"
            " updated_at = updated_at - interval '1 hour'"
        )


@pytest.fixture
def at_five(shop: Shop) -> Shop:
    """Partition 0 has records 0..9 and is committed through 5."""
    shop.produce(0, [b"x"] * 10)
    shop.commit(0, list(range(6)))
    released(shop)
    return shop


def position(shop: Shop) -> int | None:
    return shop.with_ledger(lambda ledger: ledger.status())[0].position


def test_show_gives_positions_and_the_topics_own(at_five: Shop) -> None:
    (stream,) = at_five.json("offsets", "show")["streams"]
    assert [
        (p["partition"], p["position"], p["first"], p["end"], p["lag"]) for p in stream["partitions"]
    ] == [
        ("0", 5, 0, 9, 4),
        ("1", None, 0, -1, 0),
        ("2", None, 0, -1, 0),
        ("3", None, 0, -1, 0),
    ]
    assert stream["changes"] == []


@pytest.mark.parametrize(
    ("where", "next_read"),
    [
        ("8", 9),
        ("-1", 0),
        ("earliest", 0),
        ("latest", 10),
        ("2000-01-01", 0),
        ("2100-01-01", 10),
    ],
)
def test_a_position_is_set_by_number_end_or_time(at_five: Shop, where: str, next_read: int) -> None:
    done = at_five.json(*SET, where, *WHY, "--accept-gap", "--accept-repeat")
    assert (done["before"], done["position"], done["next"]) == (5, next_read - 1, next_read)
    # Committed through 5 means that 6 would have been next.
    assert done["skipped"] == len(range(6, next_read))
    assert done["repeated"] == len(range(next_read, 6))
    assert position(at_five) == next_read - 1


async def stamped_by_producers(apache_kafka: ApacheKafka, shop: Shop) -> None:
    """The page's topic as another tool makes it, so that records can be as old as the test says."""
    async with admin(KafkaConnection(apache_kafka.bootstrap)) as broker:
        await broker.apply(replace(shop.topology.topic, append_time=False))


@pytest.mark.kafka
@pytest.mark.parametrize("late", [0, 1, 59])
def test_a_time_between_two_records_means_the_later_one(
    tmp_path: Path, postgres: str, apache_kafka: ApacheKafka, late: int
) -> None:
    shop = Shop(tmp_path / "shop", postgres, apache_kafka.bootstrap, f"shop-{late}")
    asyncio.run(stamped_by_producers(apache_kafka, shop))
    first = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=10)
    shop.produce(0, [b"x"] * 10, first)
    shop.commit(0, list(range(6)))
    released(shop)
    moment = first + timedelta(minutes=6, seconds=late)
    done = shop.json(*SET, moment.isoformat(), *WHY, "--accept-gap")
    assert done["next"] == (6 if late == 0 else 7)


def test_every_change_is_kept_with_its_reason(at_five: Shop) -> None:
    at_five.call(*SET, "7", "--accept-gap", "--note", "poison pill", "--yes")
    at_five.call(*SET, "6", "--accept-repeat", "--note", "not so bad", "--yes")
    changes = at_five.json("offsets", "show")["streams"][0]["changes"]
    assert [(c["from"], c["to"], c["note"]) for c in changes] == [(5, 7, "poison pill"), (7, 6, "not so bad")]
    assert "poison pill" in at_five.call("offsets", "show").stdout


def test_without_a_note_nothing_is_set(at_five: Shop) -> None:
    at_five.call(*SET, "7", "--accept-gap", "--yes", code=2)


@pytest.mark.parametrize(
    ("where", "said"),
    [("8", "3 records would be skipped"), ("2", "3 records would be read again and stand twice")],
)
def test_loss_and_repetition_must_be_accepted(at_five: Shop, where: str, said: str) -> None:
    wrong_one = "--accept-repeat" if where == "8" else "--accept-gap"
    assert said in at_five.call(*SET, where, *WHY, wrong_one, code=2).stderr
    assert position(at_five) == 5


def test_the_question_names_the_number_of_records_and_no_means_no(at_five: Shop) -> None:
    command = (*SET, "8", "--note", "because", "--accept-gap")
    answer = at_five.call(*command, code=1, stdin="n\n")
    assert "3 records will be skipped" in answer.stderr
    assert position(at_five) == 5
    at_five.call(*command, stdin="y\n")
    assert position(at_five) == 8


@pytest.mark.parametrize("where", ["10", "-2", "123456789012345678901234567890"])
def test_a_position_outside_the_topic_is_refused(at_five: Shop, where: str) -> None:
    said = at_five.call(*SET, "--accept-gap", "--accept-repeat", *WHY, "--", where, code=2).stderr
    assert "which has 0 to 9" in said
    assert position(at_five) == 5


def test_a_partition_that_the_topic_does_not_have_is_refused(at_five: Shop) -> None:
    said = at_five.call("offsets", "set", "shop", "4", "earliest", *WHY, code=2).stderr
    assert "There are: 0, 1, 2, 3" in said


def test_while_the_embedded_broker_is_at_rest_the_ledger_says_which_partitions_there_are(
    at_five: Shop, tmp_path: Path
) -> None:
    at_five.settings |= {"STREAMPROC_BROKER": "embedded:", "STREAMPROC_DATA_DIR": str(tmp_path / "rest")}
    said = at_five.call("offsets", "set", "shop", "99", "8", *WHY, "--accept-gap", code=2).stderr
    assert "there is no such partition. There are: 0" in said
    assert "was 5" in at_five.call(*SET, "8", *WHY, "--accept-gap").stdout


def test_nonsense_for_a_position_is_a_usage_mistake(at_five: Shop) -> None:
    assert "'soon' is not a time" in at_five.call(*SET, "soon", *WHY, code=2).stderr


def test_a_partition_never_committed_can_be_set_to_its_beginning_without_accepting_anything(
    shop: Shop,
) -> None:
    shop.produce(0, [b"x"] * 3)
    assert shop.json(*SET, "earliest", *WHY)["position"] == -1
    assert position(shop) == -1


def test_a_connected_worker_keeps_its_partition(at_five: Shop) -> None:
    # The application name that a worker's ledger gives its connections.
    with psycopg.connect(at_five.ledger, application_name="streamproc w1"):
        said = at_five.call(*SET, "8", *WHY, "--accept-gap", code=2).stderr
    assert "worker w1 owns it and is connected" in said
    assert position(at_five) == 5
    with psycopg.connect(at_five.ledger, autocommit=True) as connection:
        deadline = time.monotonic() + 20
        while connection.execute(
            "SELECT FROM pg_stat_activity WHERE application_name = 'streamproc w1'"
        ).fetchall():
            assert time.monotonic() < deadline
    at_five.call(*SET, "8", *WHY, "--accept-gap")


def test_a_worker_that_has_just_written_is_taken_for_alive_though_it_cannot_be_seen(shop: Shop) -> None:
    shop.produce(0, [b"x"] * 10)
    shop.commit(0, list(range(6)))
    assert "w1 owns it and wrote" in shop.call(*SET, "8", *WHY, "--accept-gap", code=2).stderr


def test_force_takes_the_position_from_under_a_worker_whose_commit_then_fails(at_five: Shop) -> None:
    async def claim(ledger: Ledger) -> Claim:
        return (await ledger.claim([at_five.partition(0)]))[at_five.partition(0)]

    held = at_five.with_ledger(claim)
    at_five.call(*SET, "8", *WHY, "--accept-gap", "--force")
    advance = Advance(held, 5, 6, None, Counts(records=1, accepted=1))

    async def commit(ledger: Ledger) -> None:
        await ledger.commit(record(advance), nothing)

    with pytest.raises(Fenced):
        at_five.with_ledger(commit)
    assert position(at_five) == 8


@given(
    committed=st.none() | st.integers(-1, 30),
    wanted=st.integers(-1, 30),
    first=st.none() | st.integers(0, 30),
)
def test_skipped_and_repeated_are_the_positions_between(
    committed: int | None, wanted: int, first: int | None
) -> None:
    span = None if first is None else Span(first, 30)
    begins = (first or 0) if committed is None else committed + 1
    would_read = set(range(begins, 40))
    reads_now = set(range(wanted + 1, 40))
    assert effect(committed, wanted, span) == (len(would_read - reads_now), len(reads_now - would_read))
