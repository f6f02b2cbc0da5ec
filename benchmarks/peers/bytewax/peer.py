"""The workloads as Bytewax dataflows by event time. ``--variant batched``: w1, each batch counted before the windows.

The source ends at the end of the topic, which closes all windows.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import bytewax.operators as op
import orjson
from bytewax.connectors.kafka import KafkaSource, KafkaSourceMessage
from bytewax.dataflow import Dataflow
from bytewax.operators import windowing
from bytewax.operators.windowing import EventClock, SessionWindower, TumblingWindower
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import run_main
from contestant import Clock, arguments, hand_in, path_and_campaign

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: What an event may be behind the latest of its key; the partitions are read at different speeds.
_WAIT = timedelta(hours=1)
_MINUTE_MS = 60_000

clock = Clock()


class _Writer(StatelessSinkPartition[Any]):
    def __init__(self, take: Callable[[Any], None]) -> None:
        self._take = take

    def write_batch(self, items: list[Any]) -> None:
        for item in items:
            self._take(item)


class Taking(DynamicSink[Any]):
    """A sink that hands each item to a function."""

    def __init__(self, take: Callable[[Any], None]) -> None:
        self._take = take

    def build(self, _step_id: str, _worker_index: int, _worker_count: int) -> _Writer:
        return _Writer(self._take)


def moment(value: Any) -> datetime:
    """The event time, which comes first in each value."""
    return datetime.fromtimestamp(value[0] / 1000, UTC)


def milliseconds(time: datetime) -> int:
    """Whole milliseconds since the epoch, without a float on the way."""
    return (time - _EPOCH) // timedelta(milliseconds=1)


def parse(message: KafkaSourceMessage[Any, Any]) -> Any:
    """The event as a dictionary."""
    clock.start()
    return orjson.loads(message.value)


def is_human(event: Any) -> bool:
    return "bot" not in event["user_agent"]


def by_path(event: Any) -> tuple[str, tuple[int, str]]:
    """Keyed by path: time, visitor."""
    path, _campaign = path_and_campaign(event["page_url"])
    return path, (event["event_time"], event["visitor_id"])


def by_visitor(event: Any) -> tuple[str, tuple[int]]:
    """Keyed by visitor: time."""
    return event["visitor_id"], (event["event_time"],)


def count_view(total: list[Any], value: tuple[int, str]) -> list[Any]:
    total[0] += 1
    total[1].add(value[1])
    return total


def merge_views(one: list[Any], other: list[Any]) -> list[Any]:
    return [one[0] + other[0], one[1] | other[1]]


def add_batch(total: list[Any], value: tuple[int, int, set[str]]) -> list[Any]:
    total[0] += value[1]
    total[1] |= value[2]
    return total


def count_event(total: list[int], value: tuple[int]) -> list[int]:
    """Events, first and last time."""
    total[0] += 1
    total[1] = min(total[1], value[0])
    total[2] = max(total[2], value[0])
    return total


def merge_events(one: list[int], other: list[int]) -> list[int]:
    return [one[0] + other[0], min(one[1], other[1]), max(one[2], other[2])]


def counted(messages: list[KafkaSourceMessage[Any, Any]]) -> list[tuple[str, tuple[int, int, set[str]]]]:
    """A batch as views and visitors per path and minute: far fewer items for the windows."""
    clock.start()
    totals: dict[tuple[str, int], list[Any]] = {}
    for message in messages:
        event = orjson.loads(message.value)
        if is_human(event):
            path, (time, visitor) = by_path(event)
            count_view(totals.setdefault((path, time // _MINUTE_MS), [0, set()]), (time, visitor))
    return [(path, (minute * _MINUTE_MS, *total)) for (path, minute), total in totals.items()]


def main() -> None:
    chosen = arguments()
    if chosen.workload == "w2":
        import page  # noqa: PLC0415 - with pyarrow, which other workloads shall not have in memory

        page.main(chosen)
        return
    flow = Dataflow("peer")
    batched = chosen.variant == "batched"
    source = KafkaSource(
        [chosen.bootstrap],
        [chosen.topic],
        tail=False,
        batch_size=10_000 if batched else 1_000,
        # librdkafka's default of 1 s leaves the source waiting for part of its time once its queue was full.
        add_config={"fetch.queue.backoff.ms": "10"},
    )
    messages = op.input("events", flow, source)
    windower: Any = TumblingWindower(align_to=_EPOCH, length=timedelta(minutes=1))
    empty: Callable[[], Any] = lambda: [0, set()]  # noqa: E731 - one of two
    fold: Callable[[Any, Any], Any] = add_batch if batched else count_view
    merge = merge_views
    if batched:
        keyed = op.flat_map_batch("count", messages, counted)
    else:
        humans = op.filter("humans", op.map("parse", messages, parse), is_human)
        keyed = op.map("key", humans, by_path if chosen.workload == "w1" else by_visitor)
    if chosen.workload != "w1":
        empty, fold, merge = (lambda: [0, 1 << 62, 0]), count_event, merge_events
        windower = TumblingWindower(align_to=_EPOCH, length=timedelta(hours=1))
    if chosen.workload == "w3":
        windower = SessionWindower(gap=timedelta(minutes=30))
    event_clock = EventClock(moment, wait_for_system_duration=_WAIT)
    windows = windowing.fold_window(
        "windows", keyed, event_clock, windower, empty, fold, merge, ordered=False
    )
    totals: dict[tuple[str, int], Any] = {}
    opened: dict[tuple[str, int], int] = {}

    def keep_open_time(item: Any) -> None:
        key, (window, metadata) = item
        opened[key, window] = milliseconds(metadata.open_time)

    def refuse(item: Any) -> None:
        raise SystemExit(f"a late event: {item}")

    op.output(
        "totals", windows.down, Taking(lambda item: totals.__setitem__((item[0], item[1][0]), item[1][1]))
    )
    op.output("late", windows.late, Taking(refuse))
    if chosen.workload != "w3":
        op.output("opened", windows.meta, Taking(keep_open_time))
    run_main(flow)
    clock.stop()
    if chosen.workload == "w1":
        rows = ((opened[it], it[0], total[0], len(total[1])) for it, total in totals.items())
    elif chosen.workload == "w3":
        rows = ((visitor, total[1], total[2], total[0]) for (visitor, _), total in totals.items())
    else:
        rows = ((opened[it], it[0], total[0], total[2]) for it, total in totals.items())
    hand_in(clock, chosen.answer, rows)


if __name__ == "__main__":
    main()
