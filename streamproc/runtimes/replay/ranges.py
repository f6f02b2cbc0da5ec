"""From what an operator says to the range of each partition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from streamproc.errors import ConfigError, Mistake
from streamproc.ledger import Ledger, replay_spans
from streamproc.ledger.replay_spans import Span
from streamproc.model import Partition
from streamproc.sources import kafka_positions
from streamproc.sources.kafka_client import KafkaConnection


@dataclass(frozen=True, slots=True)
class Bound:
    """One end of a range as it was asked for; ``text`` in the operator's words.

    Without ``offsets`` and ``time_us`` it is the outermost possible: the oldest record the topic has, or the
    newest that live has committed. ``offsets``: by partition number or id, ``""`` stands for all the others;
    of the first and of the last record to be processed. ``time_us`` (Unix microseconds, on the clock of the
    topic's timestamps): the range begins with the first record as old, or ends before it.
    """

    text: str
    offsets: Mapping[str, int] = field(default_factory=dict)
    time_us: int | None = None

    def offset(self, number: int, partition: Partition) -> int | None:
        """The offset that was named for this partition."""
        for name in (str(number), partition.id, ""):
            if name in self.offsets:
                return self.offsets[name]
        return None


@dataclass(frozen=True, slots=True)
class Plan:
    """What a replay would process: of each partition ``span``; ``kept``: what the topic has.

    ``asked``: the spans before they were widened to whole commits (or, from ``earliest``, narrowed).
    """

    spans: Mapping[Partition, Span]
    asked: Mapping[Partition, Span]
    kept: Mapping[Partition, kafka_positions.Span]
    committed: Mapping[Partition, int]

    @property
    def positions(self) -> int:
        """How many positions there are to process. Compaction may have left fewer records."""
        return sum(span.through - span.after for span in self.spans.values())

    @property
    def widened(self) -> bool:
        """Whether it is not what was asked for."""
        return self.spans != self.asked


async def plan(
    ledger: Ledger, broker: KafkaConnection, topic: str, begin: Bound, end: Bound, *, exact: bool = False
) -> Plan:
    """The range of every partition, in whole commits of the live service.

    Raises :class:`ConfigError` when there is nothing to process, when live has not been there yet, when the
    topic no longer has all of it, or when it would have to be widened and ``exact`` forbids it; it says which
    offsets to use.
    """
    kept = await kafka_positions.spans(broker, topic)
    committed = {
        status.partition: status.position
        for status in await ledger.status()
        if status.position is not None and status.partition in kept
    }
    asked, gone = await _asked(broker, begin, end, kept, committed)
    where = ledger.database, ledger.stream
    outermost = not begin.offsets and begin.time_us is None
    spans = await replay_spans.narrowed(*where, asked) if outermost else asked
    spans = await replay_spans.widened(*where, spans)
    found = Plan(spans, asked, kept, committed)
    if gone := gone or _gone(found):
        there = await replay_spans.narrowed(*where, _within(kept, spans))
        usable = any(not span.empty for span in there.values())
        fix = (
            f"Of the range there is {offsets(there)}" if usable else "Nothing of the range is there any more"
        )
        raise ConfigError(Mistake(f"--from {begin.text}", problem, fix) for problem in gone)
    _refuse(found, exact=exact)
    if forgotten := await replay_spans.forgotten(*where, spans):
        problem = f"{forgotten} objects are of commits that the ledger's history no longer has"
        fix = "Begin later: what those commits counted could not be taken back"
        raise ConfigError([Mistake("--from", problem, fix)])
    return found


async def _asked(
    broker: KafkaConnection,
    begin: Bound,
    end: Bound,
    kept: Mapping[Partition, kafka_positions.Span],
    committed: Mapping[Partition, int],
) -> tuple[dict[Partition, Span], list[str]]:
    """What was asked for, and of which partitions the topic no longer has the beginning of that."""
    topic = next(iter(kept)).source
    begins = await _since(broker, topic, begin)
    ends = await _since(broker, topic, end)
    _refuse_unknown(begin, "--from", broker, kept)
    _refuse_unknown(end, "--to", broker, kept)
    mistakes: list[Mistake] = []
    gone: list[str] = []
    asked: dict[Partition, Span] = {}
    for partition, there in kept.items():
        number = broker.number(partition.id)
        assert number is not None
        through = newest = committed.get(partition, -1)
        after = there.first - 1
        if begin.time_us is not None:
            first = begins[partition]
            after = newest if first is None else first - 1
            if 0 < there.first == first:  # no record is as old: how many were, nobody knows any more
                gone.append(f"the topic no longer has partition {partition.id} before offset {first}")
        elif begin.offsets:
            named = begin.offset(number, partition)
            after = newest if named is None else named - 1
            if after < there.first - 1:
                gone.append(f"the topic no longer has partition {partition.id} before offset {there.first}")
        if end.time_us is not None:
            first = ends[partition]
            through = newest if first is None else min(newest, first - 1)
        elif end.offsets:
            named = end.offset(number, partition)
            through = -1 if named is None else named
            if through > newest:
                problem = f"live has committed partition {partition.id} through {newest}"
                mistakes.append(Mistake(f"--to {end.text}", problem, f"End with {newest} at most"))
        asked[partition] = Span(after, through) if through > after else Span(-1, -1)
    if mistakes:
        raise ConfigError(mistakes)
    return asked, gone


def _within(
    kept: Mapping[Partition, kafka_positions.Span], spans: Mapping[Partition, Span]
) -> dict[Partition, Span]:
    """What the topic still has of the spans."""
    clipped = {
        each: Span(max(span.after, kept[each].first - 1), span.through)
        for each, span in spans.items()
        if each in kept
    }
    return {each: span for each, span in clipped.items() if not span.empty}


def _gone(plan: Plan) -> list[str]:
    """What of the widened range the topic no longer has, in words."""
    problems = []
    for partition, span in plan.spans.items():
        if span.empty:
            continue
        if partition not in plan.kept:
            problems.append(
                f"{partition} was committed together with the range and is not in the topic any more"
            )
        elif span.after + 1 < plan.kept[partition].first:
            problems.append(
                f"the commit that partition {partition.id} begins in reaches back to offset {span.after + 1}, "
                f"and the topic's oldest record is {plan.kept[partition].first}"
            )
    return problems


async def _since(broker: KafkaConnection, topic: str, bound: Bound) -> dict[Partition, int | None]:
    if bound.time_us is None:
        return {}
    milliseconds = -(-bound.time_us // 1000)  # up: Kafka's timestamps are whole ones
    return await kafka_positions.first_since(broker, topic, milliseconds)


def _refuse_unknown(
    bound: Bound, option: str, broker: KafkaConnection, kept: Mapping[Partition, object]
) -> None:
    known = {""} | {partition.id for partition in kept} | {str(broker.number(each.id)) for each in kept}
    if unknown := sorted(bound.offsets.keys() - known):
        there = ", ".join(str(broker.number(partition.id)) for partition in kept)
        raise ConfigError(
            Mistake(f"{option} {bound.text}", f"there is no partition {name}", f"There are: {there}")
            for name in unknown
        )


def _refuse(plan: Plan, *, exact: bool) -> None:
    if not plan.positions:
        problem = "no record that live has committed and the topic still has is in the range"
        raise ConfigError(
            [Mistake("--from … --to …", problem, "Ask `streamproc offsets show` for the positions")]
        )
    if exact and plan.widened:
        problem = "live commits are swapped as a whole, and the range cuts some of them"
        raise ConfigError([Mistake("--exact", problem, f"Use {offsets(plan.spans)}")])


def offsets(spans: Mapping[Partition, Span]) -> str:
    """The options that ask for exactly these spans."""
    wanted = {partition: span for partition, span in spans.items() if not span.empty}
    begin = ",".join(f"{partition.id}:{span.after + 1}" for partition, span in wanted.items())
    end = ",".join(f"{partition.id}:{span.through}" for partition, span in wanted.items())
    return f"--from {begin} --to {end}"
