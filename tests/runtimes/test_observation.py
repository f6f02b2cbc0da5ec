"""What a worker says of itself: which sink is down, what it waits for, and when it is stuck."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from streamproc.errors import DependencyError, Gap, SourceError, Stuck
from streamproc.model import Partition
from streamproc.runtimes.observation import LOOK_EVERY, Observation
from streamproc.sources.kafka import KafkaOptions, KafkaSource
from streamproc.sources.kafka_client import KafkaConnection
from tests.sources.consuming import Memory

ALL = {"summaries", "lake", "warehouse", "publication"}
P, Q = Partition("clicks", "0"), Partition("clicks", "1")
AWAY = DependencyError("Kafka at kafka:9092", "does not say what it has")


@pytest.mark.parametrize(
    ("state", "step", "failing", "published", "down"),
    [
        ("running", None, set(), True, set()),
        ("running", "claim", set(), True, {"summaries"}),
        ("running", "intend", set(), True, {"summaries"}),
        ("running", "commit", set(), True, {"summaries"}),
        ("running", "put", set(), True, {"lake"}),
        ("running", "recall", set(), True, {"lake"}),
        ("running", None, {"load"}, True, {"warehouse"}),
        ("running", None, {"sweep", "expire"}, True, set()),
        ("running", None, set(), False, {"publication"}),
        ("waiting for the ledger", None, set(), True, {"summaries"}),
        ("waiting for the lake", None, set(), True, {"lake"}),
        ("waiting for the warehouse", None, set(), True, {"warehouse"}),
        ("waiting for the broker", None, set(), True, set()),
    ],
)
def test_a_worker_names_the_sink_it_waits_for(state, step, failing, published, down):
    worker = SimpleNamespace(
        state=state,
        settings=SimpleNamespace(flush_interval=5.0),
        topology=SimpleNamespace(sinks=SimpleNamespace(lake=True)),
        pipeline=SimpleNamespace(stats=SimpleNamespace(waiting_steps={step} if step else set())),
        upkeep=SimpleNamespace(loads=True, failing=failing),
        publication=SimpleNamespace(well=published),
    )
    sinks = Observation(worker)._sinks()
    assert set(sinks) == ALL
    assert {sink for sink, up in sinks.items() if not up} == down


class Ends:
    """A source that says what there is, or why it cannot. ``begins``, ``stopped``: see the protocol."""

    def __init__(self, newest: int | None = None, begins: int | None = None) -> None:
        self.answer: dict[Partition, int] | BaseException = {} if newest is None else {P: newest}
        self.begins = {} if begins is None else {P: begins}
        self.stopped: dict[Partition, SourceError] = {}

    async def end_positions(self) -> dict[Partition, int]:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


class Clock:
    """The observation's, which is looked at again and again."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    async def look(self, observation: Observation, seconds: float = LOOK_EVERY) -> None:
        """As often as a worker does in so many seconds."""
        end = self.now + seconds
        while self.now < end:
            self.now += LOOK_EVERY
            await observation.look()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("streamproc.runtimes.observation.time", made)
    return made


def worker(source: object, *, committed: int | None = None, state: str = "running") -> Any:
    """One that holds a partition; with that state, whatever it does."""
    return SimpleNamespace(
        state=state,
        source=source,
        settings=SimpleNamespace(flush_interval=5.0),
        pipeline=SimpleNamespace(
            committed={P: (committed, None)}, stats=SimpleNamespace(waiting_for=None, waiting_steps=set())
        ),
    )


async def test_a_position_that_stands_still_makes_the_worker_not_ready_and_ends_it_at_last(clock):
    observation = Observation(worker(Ends(9), committed=5))
    await clock.look(observation, 120)
    assert observation.not_ready() is None
    await clock.look(observation)
    assert observation.not_ready() == "stuck: clicks/0 has records and its position has not moved for 120 s"
    with pytest.raises(Stuck, match=r"clicks/0.*600 s"):
        await clock.look(observation, 480)


@pytest.mark.parametrize("newest", [300, 6_000_000])
async def test_a_partition_that_has_stopped_makes_the_worker_not_ready_and_never_ends_it(clock, newest):
    """Also of a topic that was made anew and ends before the position: nothing seems to wait there."""
    source = Ends(newest)
    observed = worker(source, committed=5_000_000)
    observation = Observation(observed)
    source.stopped = {Q: Gap("clicks/1: 7 offsets are gone"), P: Gap("clicks/0: it was made anew")}
    await clock.look(observation, 3_600)
    assert observation.not_ready() == "stopped: clicks/0: it was made anew"
    source.stopped, observed.pipeline.committed = {}, {P: (newest, None)}
    await clock.look(observation, 3_600)
    assert observation.not_ready() is None


async def test_beside_a_partition_that_has_stopped_another_one_can_be_stuck(clock):
    source = Ends()
    source.answer, source.stopped = {P: 9, Q: 9}, {P: Gap("clicks/0: 7 offsets are gone")}
    observed = worker(source)
    observed.pipeline.committed = {P: (1, None), Q: (5, None)}
    observation = Observation(observed)
    await clock.look(observation, 600)
    assert observation.not_ready() == "stopped: clicks/0: 7 offsets are gone"
    with pytest.raises(Stuck, match=r"clicks/1.*600 s"):
        await clock.look(observation, 60)


@pytest.mark.parametrize("problem", [AWAY, TimeoutError()])
async def test_a_broker_that_answers_no_more_makes_a_running_worker_not_ready(clock, problem):
    source = Ends()
    observation = Observation(worker(source))
    await clock.look(observation)
    source.answer = problem
    await clock.look(observation)
    assert observation.not_ready() is None, "one answer may be late"
    await clock.look(observation)
    assert observation.not_ready() == "waiting for the broker"
    source.answer = {}
    await clock.look(observation)
    assert observation.not_ready() is None


async def test_a_source_that_its_readers_ask_is_waited_for_when_one_of_them_has_failed_for_a_while(clock):
    observation = Observation(worker(Ends()))
    for _ in range(20):
        observation.source_failed(DependencyError("Kinesis in eu-central-1", "InternalFailure"), 0.0)
        await clock.look(observation, 30)
        assert observation.not_ready() is None, "of many readers one may fail now and then"
    observation.source_failed(DependencyError("Kinesis in eu-central-1", "no answer"), 30.0)
    assert observation.not_ready() == "waiting for Kinesis in eu-central-1"
    observation.source_started()
    assert observation.not_ready() is None


@pytest.mark.parametrize("away", ["PostgreSQL", "the broker", "the source", "the group"])
async def test_what_stood_still_for_an_outage_is_not_stuck_when_it_is_over(clock, away):
    """An hour of it, with records that wait; the first commit afterwards takes some time."""
    source = Ends(9)
    waiting = worker(source, committed=5)
    observation = Observation(waiting)
    await clock.look(observation)
    for _ in range(240):
        match away:
            case "PostgreSQL":
                waiting.pipeline.stats.waiting_for = "PostgreSQL db/streamproc"
            case "the broker":
                source.answer = AWAY
            case "the source":
                observation.source_failed(AWAY, 60.0)
            case "the group":
                waiting.state = "waiting for the broker"
        await clock.look(observation)
    assert observation.not_ready().startswith("waiting for")
    waiting.pipeline.stats.waiting_for, source.answer, waiting.state = None, {P: 9}, "running"
    if away in {"the source", "the group"}:
        observation.source_started()
    await clock.look(observation, 90)
    assert observation.not_ready() is None
    waiting.pipeline.committed = {P: (9, None)}
    await clock.look(observation, 900)
    assert observation.not_ready() is None


@pytest.mark.parametrize("begins", [999, -1])
async def test_a_partition_with_nothing_to_read_is_not_stuck(clock, begins):
    """``latest``, or everything was deleted; or nothing was ever written."""
    observation = Observation(worker(Ends(begins, begins)))
    await clock.look(observation, 1_200)
    assert observation.not_ready() is None


async def test_a_partition_that_was_never_committed_is_stuck_with_records_to_read(clock):
    observation = Observation(worker(Ends(1_000, 999)))
    await clock.look(observation, 150)
    assert observation.not_ready().startswith("stuck: clicks/0")


async def test_a_source_that_is_joining_is_not_asked(clock):
    source = KafkaSource(KafkaConnection("127.0.0.1:1"), "clicks", KafkaOptions("readers"), Memory())
    assert source.stopped == {}
    observation = Observation(worker(source, state="waiting for the broker"))
    await clock.look(observation)
    assert observation.not_ready() == "waiting for the broker"
