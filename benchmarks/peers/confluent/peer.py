"""The workloads as a loop by hand: confluent-kafka's consumer, dictionaries, ``--variant orjson`` or ``msgspec``."""

from __future__ import annotations

import uuid
from argparse import Namespace
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec
import orjson
from confluent_kafka import Consumer, Message
from contestant import Clock, arguments, hand_in, path_and_campaign
from to_postgres import PostgresRows

_MINUTE_MS = 60_000
_HOUR_MS = 3_600_000
_GAP_MS = 1_800_000


class Click(NamedTuple):
    """The fields that the workloads need."""

    event_time: int
    visitor_id: str
    page_url: str
    user_agent: str


class ClickStruct(msgspec.Struct, gc=False):
    """The same for msgspec, which skips the other fields while it parses."""

    event_time: int
    visitor_id: str
    page_url: str
    user_agent: str


def orjson_click(value: bytes) -> Click:
    """The fields of a parsed object."""
    event = orjson.loads(value)
    return Click(event["event_time"], event["visitor_id"], event["page_url"], event["user_agent"])


class MinuteCounts:
    """w1."""

    def __init__(self) -> None:
        self.views: dict[tuple[int, str], int] = {}
        self.visitors: dict[tuple[int, str], set[str]] = {}
        #: Keys that have changed, where somebody takes them.
        self.changed: set[tuple[int, str]] | None = None

    def add(self, click: Any) -> None:
        path, _campaign = path_and_campaign(click.page_url)
        key = (click.event_time // _MINUTE_MS, path)
        if key in self.views:
            self.views[key] += 1
            self.visitors[key].add(click.visitor_id)
        else:
            self.views[key] = 1
            self.visitors[key] = {click.visitor_id}
        if self.changed is not None:
            self.changed.add(key)

    def row(self, key: tuple[int, str]) -> tuple[Any, ...]:
        minute, path = key
        return minute * _MINUTE_MS, path, self.views[key], len(self.visitors[key])

    def rows(self) -> Iterable[tuple[Any, ...]]:
        return map(self.row, self.views)


class Sessions:
    """w3. A visitor's events are in one partition, hence in order: only the last session of each is open."""

    def __init__(self) -> None:
        self.open: dict[str, list[int]] = {}
        self.closed: list[tuple[str, int, int, int]] = []

    def add(self, click: Any) -> None:
        visitor, moment = click.visitor_id, click.event_time
        session = self.open.get(visitor)
        if session is not None and moment - session[1] <= _GAP_MS:
            session[1] = moment
            session[2] += 1
        else:
            if session is not None:
                self.closed.append((visitor, *session))
            self.open[visitor] = [moment, moment, 1]

    def rows(self) -> Iterable[tuple[Any, ...]]:
        yield from self.closed
        for visitor, session in self.open.items():
            yield (visitor, *session)


class VisitorHours:
    """w5."""

    def __init__(self) -> None:
        self.hours: dict[tuple[int, str], list[int]] = {}

    def add(self, click: Any) -> None:
        moment = click.event_time
        key = (moment // _HOUR_MS, click.visitor_id)
        total = self.hours.get(key)
        if total is None:
            self.hours[key] = [1, moment]
        else:
            total[0] += 1
            total[1] = max(total[1], moment)

    def rows(self) -> Iterable[tuple[Any, ...]]:
        for (hour, visitor), (count, latest) in self.hours.items():
            yield hour * _HOUR_MS, visitor, count, latest


def subscribed(chosen: Namespace) -> Consumer:
    """A consumer of the whole topic in a group of its own."""
    consumer = Consumer(
        {
            "bootstrap.servers": chosen.bootstrap,
            "group.id": f"confluent-{uuid.uuid4().hex}",
            "auto.offset.reset": "earliest",
            "session.timeout.ms": 6000,
            "enable.auto.commit": False,
            # The default of 1 s leaves the loop waiting for half of its time once its queue was full.
            "fetch.queue.backoff.ms": 10,
        }
    )
    consumer.subscribe([chosen.topic])
    return consumer


def main() -> None:
    chosen = arguments()
    parse: Callable[[bytes], Any] = orjson_click
    if chosen.variant == "msgspec":
        parse = msgspec.json.Decoder(ClickStruct).decode
    if chosen.workload == "w2":
        import page  # noqa: PLC0415 - with pyarrow, which other workloads shall not have in memory

        page.main(chosen, subscribed(chosen))
        return
    result = {"w1": MinuteCounts, "w4": MinuteCounts, "w3": Sessions, "w5": VisitorHours}[chosen.workload]()
    consumer = subscribed(chosen)
    sink = None
    if chosen.postgres and isinstance(result, MinuteCounts):
        sink = PostgresRows(chosen.postgres, consumer, result.row)
        result.changed = sink.changed
    clock, seen = Clock(), 0
    while seen < chosen.events:
        # Whatever is there after 0.1 s: rows shall not wait for a full batch.
        messages: list[Message] = consumer.consume(5000, timeout=0.1)
        for message in messages:
            if message.error():
                raise SystemExit(str(message.error()))
            clock.start()
            click = parse(message.value())
            if "bot" not in click.user_agent:
                result.add(click)
        seen += len(messages)
        if sink is not None:
            sink.flush_when_due()
    if sink is not None:
        sink.flush()
    clock.stop()
    hand_in(clock, chosen.answer, result.rows())
    consumer.close()


if __name__ == "__main__":
    main()
