"""From what an operator asks for to whole commits: a real ledger, and a topic of which only positions matter."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from streamproc.cli.replay_verbs import _bound as bound
from streamproc.errors import ConfigError
from streamproc.ledger import Ledger
from streamproc.model import Partition
from streamproc.runtimes.replay.ranges import Bound, Plan, offsets, plan
from streamproc.sources import kafka_positions
from streamproc.sources.kafka_client import KafkaConnection
from tests.ledger.epochs import advance, nothing, planned, record, written

BROKER = KafkaConnection("none:9092")
P0, P1 = (Partition("clicks", str(number)) for number in range(2))


@dataclass
class Stream:
    """Two partitions, each record a second younger than the one before. ``first``: what retention has left."""

    ledger: Ledger
    first: dict[Partition, int] = field(default_factory=lambda: {P0: 0, P1: 0})
    last: int = 99

    async def commit(self, *through: int) -> None:
        """One commit of both partitions, or of the first."""
        claims = await self.ledger.claim([P0, P1][: len(through)])
        advances = [advance(claim, end) for claim, end in zip(claims.values(), through, strict=True)]
        plans = [planned(part) for part in advances]
        done = record(*advances, objects=written(*plans))
        await self.ledger.intend(done.id, plans, claims)
        await self.ledger.commit(done, nothing)

    async def plan(self, begin: str, end: str | None = None, *, exact: bool = False) -> Plan:
        return await plan(
            self.ledger, BROKER, "clicks", bound("--from", begin), bound("--to", end), exact=exact
        )

    async def spans(self, *_: object) -> dict[Partition, kafka_positions.Span]:
        return {each: kafka_positions.Span(first, self.last) for each, first in self.first.items()}

    async def first_since(self, broker: object, topic: str, time_ms: int) -> dict[Partition, int | None]:
        seconds = -(-time_ms // 1000) - 1_767_225_600  # since 2026 began
        return {
            each: None if seconds > self.last else max(first, seconds) for each, first in self.first.items()
        }


@pytest.fixture
async def stream(postgres: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stream]:
    """Commits end with 9/9, 19/29, 39 (of the first alone), 59/49."""
    async with Ledger(postgres, "clicks", "w1") as ledger:
        await ledger.migrate()
        stream = Stream(ledger)
        monkeypatch.setattr(kafka_positions, "spans", stream.spans)
        monkeypatch.setattr(kafka_positions, "first_since", stream.first_since)
        for through in ([9, 9], [19, 29], [39], [59, 49]):
            await stream.commit(*through)
        yield stream


@pytest.mark.parametrize(
    ("begin", "end", "expected", "widened"),
    [
        ("earliest", None, "--from 0:0,1:0 --to 0:59,1:49", False),
        ("0:10,1:10", None, "--from 0:10,1:10 --to 0:59,1:49", False),
        ("0:10,1:10", "0:39,1:29", "--from 0:10,1:10 --to 0:39,1:29", False),
        ("0:25", "0:30", "--from 0:20 --to 0:39", True),
        ("0:45", None, "--from 0:40,1:30 --to 0:59,1:49", True),
        ("12", "12", "--from 0:10,1:10 --to 0:19,1:29", True),
        ("1:12", "1:12", "--from 0:10,1:10 --to 0:19,1:29", True),
        ("2026-01-01T00:00:20Z", "2026-01-01T00:00:40Z", "--from 0:10,1:10 --to 0:59,1:49", True),
        ("2026-01-01T00:00:40Z", "2100-01-01", "--from 0:40,1:30 --to 0:59,1:49", True),
    ],
)
async def test_a_range_is_the_whole_commits_that_hold_it(
    stream: Stream, begin: str, end: str | None, expected: str, widened: bool
) -> None:
    found = await stream.plan(begin, end)
    assert (offsets(found.spans), found.widened) == (expected, widened)
    if widened:
        with pytest.raises(ConfigError, match=expected):
            await stream.plan(begin, end, exact=True)
    again = expected.split()
    assert (await stream.plan(again[1], again[3], exact=True)).spans == found.spans


@pytest.mark.parametrize(
    ("begin", "end", "problem"),
    [
        ("2100-01-01", None, "no record that live has committed and the topic still has is in the range"),
        ("0s", None, "no record that live has committed"),
        ("60", None, "no record that live has committed"),
        ("30", "20", "no record that live has committed"),
        ("earliest", "2020-01-01", "no record that live has committed"),
        ("earliest", "0:60", "live has committed partition 0 through 59. End with 59 at most"),
        ("7:3", None, "there is no partition 7. There are: 0, 1"),
        ("earliest", "7:3", "there is no partition 7"),
    ],
)
async def test_what_is_not_there_is_refused_in_words(
    stream: Stream, begin: str, end: str | None, problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        await stream.plan(begin, end)


@pytest.mark.parametrize(
    "text", ["2026-01-01T13:00", "2026-01-01 13:00", "20260101T13:00", "2026-01-01T13:00:00Z"]
)
def test_a_time_without_seconds_is_not_taken_for_an_offset(text: str) -> None:
    assert bound("--from", text) == Bound(text, time_us=(1_767_225_600 + 13 * 3_600) * 1_000_000)


def test_a_partition_of_an_embedded_broker_can_be_named_by_its_id() -> None:
    assert bound("--from", "3fa9c2d1.0:7,3fa9c2d1.1:8").offsets == {"3fa9c2d1.0": 7, "3fa9c2d1.1": 8}


@pytest.mark.parametrize("text", ["nonsense", "0:1,0:2", "0:x", "-", "", "0:-1"])
def test_a_bound_that_is_neither_offsets_nor_a_time_says_what_to_write(text: str) -> None:
    with pytest.raises(ConfigError, match="Write offsets"):
        bound("--to", text)


@pytest.mark.parametrize(
    ("begin", "problem"),
    [
        ("0:10,1:10", "no longer has partition 0 before offset 15"),  # removed
        ("0:16,1:31", "the commit that partition 0 begins in reaches back to offset 10"),  # by widening only
        ("2026-01-01T00:00:05Z", "no longer has partition 0 before offset 15"),
        ("-40000h", "no longer has partition 0 before offset 15"),
    ],
)
async def test_a_range_that_retention_has_cut_is_refused_with_the_offsets_that_are_left(
    stream: Stream, begin: str, problem: str
) -> None:
    stream.first = {P0: 15, P1: 5}
    with pytest.raises(ConfigError, match=problem) as refused:
        await stream.plan(begin)
    left = "--from 0:20,1:30 --to 0:59,1:49"
    assert f"Of the range there is {left}" in str(refused.value)
    assert offsets((await stream.plan("0:20,1:30", exact=True)).spans) == left
    assert offsets((await stream.plan("earliest")).spans) == left


async def test_a_range_of_which_nothing_is_left_is_refused(stream: Stream) -> None:
    stream.first = {P0: 50, P1: 45}
    with pytest.raises(ConfigError, match="Nothing of the range is there any more"):
        await stream.plan("0:20,1:30", "0:39,1:49")
