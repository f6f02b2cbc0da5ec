"""``streamproc offsets``: committed positions, and setting them by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import click

from streamproc.cli.options import Group, json_option
from streamproc.cli.rendering import Section, show
from streamproc.cli.status import partition_dict
from streamproc.cli.streams import (
    microseconds,
    opened_stream,
    opened_streams,
    read_time,
    set_up_options,
    topic_argument,
)
from streamproc.errors import ConfigError, DependencyError, Mistake
from streamproc.leases import Mark
from streamproc.ledger import NewPosition, PositionChange
from streamproc.ledger.reading import Owner, owner
from streamproc.model import Partition
from streamproc.ops.status import StatusReader, StreamReport
from streamproc.quantities import Invalid
from streamproc.runtimes.attach import running_broker
from streamproc.settings import Settings
from streamproc.sources.kafka_client import KafkaConnection
from streamproc.sources.kafka_positions import Span, first_since, spans
from streamproc.sources.kinesis_connection import KinesisConnection
from streamproc.sources.log_store import LogConnection
from streamproc.sources.opening import Connection


@click.group(name="offsets", cls=Group)
def offsets_command() -> None:
    """Show and set committed positions.

    A position is committed *through*, inclusive: the record after it is the next to be read. (Kafka's own
    tools show the next one, so their number is higher by one.) Kafka's committed offsets are copies for lag
    monitors; resetting those changes nothing.
    """


@offsets_command.command(name="show")
@topic_argument
@set_up_options
@json_option
def show_command(settings: Settings, topic: str | None, as_json: bool) -> None:
    """Show committed positions beside those of the topic, and every change made by hand."""
    found = asyncio.run(_show(settings, topic))
    if as_json:
        answer = [
            {
                "stream": report.stream,
                "topic": report.topic,
                "partitions": [partition_dict(each) for each in report.partitions],
                "changes": [_change_dict(each) for each in changes],
                "notes": list(report.notes),
            }
            for report, changes in found
        ]
        click.echo(json.dumps({"streams": answer}, indent=2))
        return
    for report, changes in found:
        show(
            [
                section
                for section in _sections(report, changes)
                if section.rows or section.header[0] == "partition"
            ]
        )


# Otherwise -1 would be taken for an option.
@offsets_command.command(name="set", context_settings={"ignore_unknown_options": True})
@click.argument("topic", metavar="STREAM")
@click.argument("partition")
@click.argument("where", metavar="POSITION|earliest|latest|TIME")
@set_up_options
@click.option("--accept-gap", is_flag=True, help="Records are skipped: they are never read.")
@click.option("--accept-repeat", is_flag=True, help="Records are read again: they count twice.")
@click.option("--note", required=True, help="Why; kept in the ledger for ever.")
@click.option("--force", is_flag=True, help="Although a worker is at work on the partition.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask before changing.")
@json_option
def set_command(
    *,
    settings: Settings,
    topic: str,
    partition: str,
    where: str,
    as_json: bool,
    yes: bool,
    **accepted: object,
) -> None:
    """Set the committed position of a partition.

    POSITION: the record after it is read next (-1: from the very first). earliest: the oldest record that
    the topic still has is next. latest: the next new one is. TIME ("2026-07-01T13:00:00Z", or "2h" for two
    hours ago): the first record with this timestamp or a later one is next.

    Going forward skips records for good; it needs --accept-gap, and so does going past records that the
    topic has already deleted. Going back reads records again, and they stand twice in lake, warehouse and
    tables; it needs --accept-repeat. To correct what was computed from old records, reprocess them beside
    the live tables (`streamproc replay`) instead.

    Refused while a worker owns the partition: stop the workers first. With --force the position is taken
    from under it: what it has read and not committed is dropped, it claims again, and goes on from the new
    position.
    """
    change = Change(partition, where, **accepted)  # type: ignore[arg-type]  # click has checked the options
    done = asyncio.run(_set(settings, topic, change, yes=yes))
    if as_json:
        click.echo(json.dumps(done, indent=2))
    else:
        before = "was never committed" if done["before"] is None else f"was {done['before']}"
        click.echo(f"{topic}/{partition}: committed through {done['position']}, {before}.")


@dataclass(frozen=True, slots=True)
class Change:
    """What the operator asked for: a ``partition`` id, ``where`` to put it, and what they accept for it."""

    partition: str
    where: str
    note: str
    accept_gap: bool = False
    accept_repeat: bool = False
    force: bool = False


async def _show(settings: Settings, topic: str | None) -> list[tuple[StreamReport, list[PositionChange]]]:
    found = []
    async with opened_streams(settings, topic) as streams, running_broker(settings) as broker:
        for each in streams:
            report = await StatusReader(each.page, each.ledger, None).read(broker, epochs=0)
            found.append((report, await each.ledger.position_changes()))
    return found


async def _set(settings: Settings, topic: str, change: Change, *, yes: bool) -> dict[str, object]:
    async with opened_stream(settings, topic) as stream, running_broker(settings) as broker:
        page, ledger = stream.page, stream.ledger
        if isinstance(broker, LogConnection):
            fix = "Put what is to be read again under another name"
            raise ConfigError([Mistake("broker", "is a place of logs, which are read once", fix)])
        partition = _partition(broker, page.topic.name, change.partition)
        _refuse_owned(partition, await owner(ledger.database, page.name, partition), force=change.force)
        committed = {status.partition: status.position for status in await ledger.status()}
        before = committed.get(partition)
        mark: Mark | None = None
        ended = False
        if isinstance(broker, KinesisConnection):
            from streamproc.ops.shard_positions import place  # noqa: PLC0415 - imports Kinesis' client

            asked = _place(change.where)
            position, mark, last, ended = await place(broker, ledger, partition, before, asked)
            span: Span | None = Span(0, last if mark is None else position)
        else:
            span = await _span(broker, partition)
            if span is None:
                _refuse_unknown(partition, committed)
                click.echo("The embedded broker is not running: the topic's positions are unknown.", err=True)
            position = await _position(change.where, partition, broker, span)
        _refuse_outside(partition, position, span)
        skipped, repeated = effect(before, position, span)
        _refuse_unaccepted(change, skipped, repeated)
        if not yes and not click.confirm(_question(partition, before, position, skipped, repeated), err=True):
            raise click.Abort
        # The ledger does not know where a topic begins that was never read.
        accept_gap = change.accept_gap or (before is None and not skipped)
        new = NewPosition(partition, position, accept_gap, change.accept_repeat, change.note, mark, ended)
        # Should a worker have moved on meanwhile, what was accepted is judged again, in the transaction.
        before = await ledger.set_position(new)
    return {
        "stream": page.name,
        "partition": partition.id,
        "before": before,
        "position": position,
        "next": position + 1,
        "skipped": skipped,
        "repeated": repeated,
    }


def _place(where: str) -> int | str | Mark:
    """What :func:`place` takes."""
    if where.removeprefix("-").isdecimal():
        return int(where)
    if where in {"earliest", "latest"}:
        return where
    return Mark(0, since_ms=_milliseconds(where))


def effect(before: int | None, position: int, span: Span | None) -> tuple[int, int]:
    """Positions that would be skipped, and that would be read again. Compaction may have left fewer records.

    A partition that was never committed begins at the topic's oldest record, so far as that is known.
    """
    start = before if before is not None else (span.first - 1 if span is not None else -1)
    return max(0, position - start), max(0, start - position)


def _partition(broker: Connection | None, topic: str, named: str) -> Partition:
    """The partition of this id; of the embedded broker's the number is enough."""
    if broker is not None and named.isascii() and named.isdecimal():
        return broker.partition(topic, int(named))
    return Partition(topic, named)


def _refuse_owned(partition: Partition, found: Owner, *, force: bool) -> None:
    if not found.alive or force:
        return
    sign = "is connected to the ledger" if found.connected else f"wrote {found.idle.seconds} s ago"
    problem = f"worker {found.name} owns it and {sign}"
    fix = (
        "Stop the workers first, or add --force: the worker drops what it has not committed and claims again"
    )
    raise ConfigError([Mistake(str(partition), problem, fix)])


async def _span(broker: KafkaConnection | None, partition: Partition) -> Span | None:
    if broker is None:
        return None
    found = await spans(broker, partition.source)
    _refuse_unknown(partition, found)
    return found[partition]


def _refuse_unknown(partition: Partition, known: Iterable[Partition]) -> None:
    if partition not in (known := list(known)):
        there = ", ".join(each.id for each in known) or "none"
        raise ConfigError([Mistake(str(partition), "there is no such partition", f"There are: {there}")])


async def _position(
    where: str, partition: Partition, broker: KafkaConnection | None, span: Span | None
) -> int:
    """The position that ``where`` means: the one before the record to be read next."""
    if where.removeprefix("-").isdecimal():
        return int(where)
    milliseconds = 0 if where in {"earliest", "latest"} else _milliseconds(where)
    if broker is None or span is None:
        hint = "give the position as a number"
        raise DependencyError("embedded broker", f"is not running, so {where} is not known", hint)
    if where == "earliest":
        return span.first - 1
    if where == "latest":
        return span.last
    found = (await first_since(broker, partition.source, milliseconds))[partition]
    return span.last if found is None else found - 1


def _milliseconds(where: str) -> int:
    """A time as Unix milliseconds, rounded up: the brokers' timestamps are whole ones."""
    try:
        return -(-(microseconds(read_time(where)) or 0) // 1000)
    except Invalid as error:
        fix = "Write a position, earliest, latest, or a time"
        raise ConfigError([Mistake(where, error.problem, fix)]) from error


def _refuse_outside(partition: Partition, position: int, span: Span | None) -> None:
    first, last = (span.first - 1, span.last) if span is not None else (-1, position)
    if first <= position <= last:
        return
    problem = f"position {position} is not in the topic, which has {first + 1} to {last}"
    fix = f"Choose one from {first} (earliest) to {last} (latest)"
    raise ConfigError([Mistake(str(partition), problem, fix)])


def _refuse_unaccepted(change: Change, skipped: int, repeated: int) -> None:
    if skipped and not change.accept_gap:
        problem, fix = f"{skipped} records would be skipped, never to be read", "Add --accept-gap to do it"
        raise ConfigError([Mistake("offsets set", problem, fix)])
    if repeated and not change.accept_repeat:
        problem = f"{repeated} records would be read again and stand twice in lake, warehouse and tables"
        raise ConfigError([Mistake("offsets set", problem, "Add --accept-repeat to do it")])


def _question(partition: Partition, before: int | None, position: int, skipped: int, repeated: int) -> str:
    if repeated:
        what = f"{repeated} records will be read again and stand twice in lake, warehouse and tables"
    else:
        what = f"{skipped} records will be skipped"
    return f"{partition}: from {before} to {position}. {what}. Go on?"


def _sections(report: StreamReport, changes: Sequence[PositionChange]) -> list[Section]:
    positions: list[list[object]] = []
    for each in report.partitions:
        committed = each.status.position if each.status else None
        span = [each.span.first, each.span.last] if each.span else [None, None]
        owner_ = each.status.owner if each.status else None
        updated = each.status.updated_at if each.status else None
        positions.append([each.partition.id, committed, *span, each.lag, owner_, updated])
    header = ["partition", "committed", "first", "end", "lag", "owner", "updated"]
    made: list[list[object]] = [
        [each.changed_at, each.partition.id, each.before, each.after, each.worker, each.note]
        for each in changes
    ]
    changed = ["changed", "partition", "from", "to", "by", "note"]
    return [
        Section(f"{report.stream}: positions", header, positions),
        Section(f"{report.stream}: set by hand", changed, made),
        Section(f"{report.stream}: notes", ["note"], [[note] for note in report.notes]),
    ]


def _change_dict(change: PositionChange) -> dict[str, object]:
    return {
        "partition": change.partition.id,
        "source": change.partition.source,
        "changed_at": change.changed_at.isoformat(),
        "from": change.before,
        "to": change.after,
        "by": change.worker,
        "note": change.note,
    }
