"""How often a shard is asked, on a clock that the test turns: a busy machine cannot change what it says."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc.leases import Mark
from streamproc.sources import kinesis_polling
from streamproc.sources.kinesis_client import KinesisError
from streamproc.sources.kinesis_polling import Pace, Polling
from streamproc.sources.kinesis_records import Page

#: https://docs.aws.amazon.com/streams/latest/dev/service-sizes-and-limits.html: of one shard, a second.
READS = 5
BYTES = 2 * 2**20


class Clock:
    """In the place of asyncio for the module that is tested: sleeping turns the clock and takes no time."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def get_running_loop(self) -> SimpleNamespace:
        return SimpleNamespace(time=lambda: self.now)

    async def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.slept.append(seconds)
        self.now += seconds


class Server:
    """Answers as told: ``answers`` are pages, each with the seconds that it takes, or errors."""

    def __init__(self, clock: Clock, answers: Sequence[tuple[float, Page | KinesisError]]) -> None:
        self.clock = clock
        self.answers = list(answers)
        #: Time of each read, and the bytes it gave.
        self.reads: list[tuple[float, int]] = []
        #: The sequence number of each iterator that was asked for.
        self.places: list[int | None] = []

    async def iterator(self, stream: str, shard: str, where: Mark) -> str:
        self.places.append(where.sequence)
        return "begin"

    async def page(self, iterator: str, limit: int) -> Page:
        at = self.clock.now
        seconds, answer = self.answers.pop(0)
        self.clock.now += seconds
        if isinstance(answer, KinesisError):
            self.reads.append((at, 0))
            raise answer
        self.reads.append((at, answer.size))
        return answer


def page(size: int, *, behind_ms: int = 0, last: bool = False) -> Page:
    """``size`` bytes in one record, or no record."""
    iterator = None if last else "next"
    if not size:
        return Page(iterator=iterator, behind_ms=behind_ms)
    return Page([b"x" * size], ["1"], [1.7e9], iterator, behind_ms, size)


def poll(answers: Sequence[tuple[float, Page | KinesisError]], idle: float = 0.5) -> Server:
    """Read to the end of the shard."""
    clock = Clock()
    server = Server(clock, [*answers, (0.0, page(0, last=True))])

    async def read() -> int:
        pages = Polling(server, "s", "shard", Pace(idle)).pages(Mark(-1))  # type: ignore[arg-type]  # as much of it as is called
        return len([one async for one in pages])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kinesis_polling, "asyncio", clock)
        assert asyncio.run(read()) == 1 + sum(isinstance(answer, Page) for _, answer in answers)
    return server


answered = st.tuples(
    st.floats(0, 3), st.builds(page, st.integers(0, 3 * 2**20), behind_ms=st.sampled_from((0, 70)))
)


@given(st.lists(answered, min_size=1, max_size=12))
def test_a_shard_is_read_five_times_a_second_at_most_and_two_megabytes_of_it(answers):
    server = poll(answers)
    for (at, size), (after, _) in itertools.pairwise(server.reads):
        assert after - at > max(1 / READS, size / BYTES) - 1e-6


def test_a_shard_that_is_behind_is_read_as_fast_as_allowed_and_an_idle_one_at_the_interval():
    behind = poll([(0.05, page(10, behind_ms=70))] * 5 + [(0.05, page(0, behind_ms=70))] * 5)
    assert [b - a for (a, _), (b, _) in itertools.pairwise(behind.reads)] == pytest.approx([0.2] * 10)
    idle = poll([(0.05, page(0))] * 5, idle=3.0)
    assert [b - a for (a, _), (b, _) in itertools.pairwise(idle.reads)] == pytest.approx([3.0] * 5)


def test_an_answer_that_took_longer_is_followed_at_once():
    server = poll([(2.0, page(10)), (7.0, page(0))])
    assert [at for at, _ in server.reads] == [1000.0, 1002.0, 1009.0]


def test_refusals_are_waited_out_longer_and_longer_up_to_ten_seconds(monkeypatch):
    refused = KinesisError("ProvisionedThroughputExceededException", "Kinesis", "too much")
    for part, expected in ((0.5, 5.0), (1.0, 10.0)):  # what chance makes of it, at the least and the most
        monkeypatch.setattr(random, "uniform", lambda least, most, part=part: part)
        server = poll([(0.0, refused)] * 9)
        waits = [b - a for (a, _), (b, _) in itertools.pairwise(server.reads)]
        assert waits[:5] == pytest.approx([part * 0.25 * 2**n for n in range(5)])
        assert waits[-1] == pytest.approx(expected)
        assert len(server.places) == 1, "the iterator is still good"


@pytest.mark.parametrize("code", ["InvalidArgumentException", "ResourceNotFoundException"])
def test_a_place_that_is_refused_at_its_first_read_begins_at_the_oldest_record(code):
    """Not again and again by iterators that are taken for expired."""
    refused = KinesisError(code, "Kinesis", "no such sequence number")
    clock = Clock()
    server = Server(clock, [(0.0, refused), (0.0, page(10)), (0.0, page(0, last=True))])

    async def sizes() -> list[int]:
        pages = Polling(server, "s", "shard", Pace(0.5)).pages(Mark(7, 42))  # type: ignore[arg-type]  # as above
        return [one.size async for one in pages]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kinesis_polling, "asyncio", clock)
        assert asyncio.run(sizes()) == [10, 0]
    assert server.places == [42, None]


def test_a_shard_whose_oldest_record_cannot_be_read_is_an_error():
    refused = KinesisError("InvalidArgumentException", "Kinesis", "no such shard")
    with pytest.raises(KinesisError):
        poll([(0.0, refused)] * 2)
