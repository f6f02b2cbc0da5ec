"""What the verbs of ``streamproc replay`` do."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import click

from streamproc.cli.rendering import Section, show
from streamproc.cli.replay_progress import Progress
from streamproc.cli.streams import OpenedStream, microseconds, opened_stream, operator, read_time
from streamproc.errors import ConfigError, DependencyError, Mistake
from streamproc.ledger import Ledger
from streamproc.ledger.replays import Replay, Replays
from streamproc.quantities import Invalid
from streamproc.runtimes.attach import running_broker
from streamproc.runtimes.replay.edges import refuse_expired
from streamproc.runtimes.replay.opening import opened as promoting
from streamproc.runtimes.replay.promote import refuse_unknown_warehouse
from streamproc.runtimes.replay.ranges import Bound, Plan, offsets, plan
from streamproc.settings import Settings
from streamproc.sinks.summaries_compare import TableDifference
from streamproc.sources.opening import kafka_only

_NAME = re.compile(r"[a-z0-9_]{1,30}", re.ASCII)
#: Ids of partitions are numbers, behind an embedded broker's incarnation: 2026-07-01T13:00 is a time.
_OFFSET = re.compile(r"(?:(?P<partition>[0-9a-f.]+):)?(?P<offset>\d+)", re.ASCII)

#: What counts as lately.
_RECENT = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Request:
    """What the operator asked for."""

    begin: str | None
    end: str | None
    name: str | None
    workers: int
    exact: bool
    dry_run: bool


async def run(settings: Settings, topic: str | None, wanted: Request, *, json_answer: bool) -> None:
    """Begin a replay or go on with one, and process it to its end; with ``dry_run`` only tell the range."""
    async with _opened(settings, topic) as (stream, ledger):
        page = stream.page
        if not page.sinks.lake:
            fix = "Without the lake nobody knows what live accepted outside the range"
            raise ConfigError([Mistake(f"{page.name}: sinks.lake", "is false", fix)])
        # Now, because the page it begins with cannot be changed any more when it is to be promoted.
        refuse_unknown_warehouse(page, known=stream.endpoints.warehouse is not None)
        replays = Replays(ledger.database, page.name)
        replay = None if wanted.name is None else await replays.get(wanted.name)
        if replay is None:
            if wanted.begin is None:
                raise _unknown(wanted.name or "", await replays.all())
            name = _name(wanted.name)
            found = await _planned(settings, page.topic.name, ledger, wanted)
            await refuse_expired(page, ledger, found.spans)
            if wanted.dry_run:
                _tell_plan(found, json_answer=json_answer)
                return
            if found.widened:
                click.echo(f"Widened to whole commits: {offsets(found.spans)}", err=True)
            asked = f"from {wanted.begin}" + (f" to {wanted.end}" if wanted.end else "")
            replay = await replays.create(name, page.fingerprint, asked, operator(), found.spans)
        elif wanted.begin is not None:
            fix = f"Leave --from out to go on with it, or `streamproc replay discard {replay.name}`"
            if replay.state in {"promoting", "promoted"}:
                fix = "Choose another name: that replay is " + replay.state
            raise ConfigError([Mistake(f"--into {replay.name}", "is there already", fix)])
        async with promoting(settings, page, replay, ledger, stream.endpoints) as promoter:
            if replay.state == "running":
                # Imported late: with it come the service and Faust, and they take a second.
                from streamproc.runtimes.replay.run import process  # noqa: PLC0415 - see above

                click.echo(f"Replay {replay.name}: {replay.positions} positions", err=True)
                promoter.replay = await process(settings, replays, replay, wanted.workers, Progress())
            if replay.state in {"running", "complete"}:
                replay = await promoter.finish()
    if json_answer:
        click.echo(json.dumps(as_json(replay, None), indent=2))
    else:
        hint = {
            "promoting": f"Its promotion has begun: `streamproc replay promote {replay.name}` finishes it.",
            "promoted": "It is promoted; there is nothing to do.",
        }.get(replay.state, f"See `streamproc replay diff {replay.name}`.")
        click.echo(f"{replay.name}: {replay.positions} positions are processed. {hint}")


async def status(
    settings: Settings, topic: str | None, name: str | None
) -> list[tuple[Replay, float | None]]:
    """Replays, and how many positions a second each processes."""
    async with _opened(settings, topic) as (stream, ledger):
        replays = Replays(ledger.database, stream.page.name)
        found = await replays.all()
        if name is not None:
            found = [replay for replay in found if replay.name == name] or [await _existing(replays, name)]
        return [(replay, await _rate(ledger, stream, replay)) for replay in found]


async def _rate(ledger: Ledger, stream: OpenedStream, replay: Replay) -> float | None:
    """Positions a second that a running replay has committed lately."""
    if replay.state != "running":
        return None
    async with Ledger(stream.endpoints.ledger, replay.namespace, operator(), pool_size=1) as own:
        epochs = await own.epochs(limit=50)
    recent = [epoch for epoch in epochs if epoch.committed_at >= datetime.now(UTC) - _RECENT]
    if not recent:
        return None
    records = sum(each.counts.records for epoch in recent for each in epoch.ranges)
    since = min(epoch.started_at for epoch in recent)
    return records / max(0.001, (max(epoch.committed_at for epoch in recent) - since).total_seconds())


async def diff(
    settings: Settings, topic: str | None, name: str, rows: int
) -> tuple[datetime, list[TableDifference], dict[str, dict[str, int]]]:
    """How the tables differ at which moment, and what became of the range's records."""
    async with _opened(settings, topic) as (stream, ledger):
        replays = Replays(ledger.database, stream.page.name)
        replay = await _existing(replays, name)
        async with promoting(settings, stream.page, replay, ledger, stream.endpoints) as promoter:
            return *await promoter.compare(rows), await replays.counts(replay)


async def promote(settings: Settings, topic: str | None, name: str) -> bool:
    """Whether anything had to be changed."""
    async with _opened(settings, topic) as (stream, ledger):
        replay = await _existing(Replays(ledger.database, stream.page.name), name)
        async with promoting(settings, stream.page, replay, ledger, stream.endpoints) as promoter:
            return await promoter.promote(operator())


async def discard(settings: Settings, topic: str | None, name: str) -> None:
    """Drop it."""
    async with _opened(settings, topic) as (stream, ledger):
        replay = await _existing(Replays(ledger.database, stream.page.name), name)
        # It may be dropped because the page is another by now.
        page = replace(stream.page, fingerprint=replay.fingerprint)
        async with promoting(settings, page, replay, ledger, stream.endpoints) as promoter:
            await promoter.discard()


@asynccontextmanager
async def _opened(settings: Settings, topic: str | None) -> AsyncIterator[tuple[OpenedStream, Ledger]]:
    """The stream, and a ledger with connections for transactions that wait for each other."""
    async with (
        opened_stream(settings, topic) as stream,
        Ledger(stream.endpoints.ledger, stream.page.name, operator(), pool_size=4) as ledger,
    ):
        yield stream, ledger


async def _planned(settings: Settings, topic: str, ledger: Ledger, wanted: Request) -> Plan:
    assert wanted.begin is not None
    begin, end = _bound("--from", wanted.begin), _bound("--to", wanted.end)
    async with running_broker(settings) as broker:
        if broker is None:
            hint = "its topics end with its last user: there is nothing to process again"
            raise DependencyError("embedded broker", "is not running", hint)
        kafka = kafka_only(broker, "replays run")
        return await plan(ledger, kafka, topic, begin, end, exact=wanted.exact)


def _bound(option: str, text: str | None) -> Bound:
    if text is None or (text == "earliest" and option == "--from"):
        return Bound(text or "")
    parts = [_OFFSET.fullmatch(part.strip()) for part in text.split(",")]
    found = [part for part in parts if part is not None]
    if len(found) == len(parts):
        named = {part["partition"] or "": int(part["offset"]) for part in found}
        if len(named) == len(found):
            return Bound(text, offsets=named)
    try:
        return Bound(text, time_us=microseconds(read_time(text.removeprefix("-"))))
    except Invalid as error:
        fix = "Write offsets (0:1500,1:1480), a time, or how long ago (-2h)"
        raise ConfigError([Mistake(f"{option} {text}", error.problem, fix)]) from error


def _name(name: str | None) -> str:
    if name is None:
        return datetime.now(UTC).strftime("r%Y%m%d_%H%M%S")
    if not _NAME.fullmatch(name):
        problem = "is not a name that a schema can have"
        raise ConfigError([Mistake(f"--into {name}", problem, "Use a-z, 0-9 and _, at most 30")])
    return name


async def _existing(replays: Replays, name: str) -> Replay:
    replay = await replays.get(name)
    if replay is None:
        raise _unknown(name, await replays.all())
    return replay


def _unknown(name: str, there: Sequence[Replay]) -> ConfigError:
    names = ", ".join(replay.name for replay in there) or "none"
    return ConfigError([Mistake(name, "there is no such replay", f"There are: {names}")])


def _tell_plan(found: Plan, *, json_answer: bool) -> None:
    rows: list[list[object]] = [
        [partition.id, span.after + 1, span.through, span.through - span.after]
        for partition, span in found.spans.items()
        if not span.empty
    ]
    if json_answer:
        names = ("partition", "first", "last", "positions")
        ranges = [dict(zip(names, row, strict=True)) for row in rows]
        answer = {"positions": found.positions, "widened": found.widened, "ranges": ranges}
        click.echo(json.dumps({**answer, "options": offsets(found.spans)}, indent=2))
        return
    title = "would be processed" + (", widened to whole commits" if found.widened else "")
    show([Section(title, ["partition", "first", "last", "positions"], rows)])


def as_json(replay: Replay, rate: float | None) -> dict[str, object]:
    """A replay for a program; ``rate``: positions a second."""
    return {
        "name": replay.name,
        "stream": replay.stream,
        "namespace": replay.namespace,
        "state": replay.state,
        "asked": replay.asked,
        "positions": replay.positions,
        "left": replay.left if replay.state == "running" else 0,
        "positions_per_second": rate,
        "seconds_left": replay.left / rate if rate and replay.state == "running" else None,
        "created_at": replay.created_at.isoformat(),
        "promoted_at": replay.promoted_at.isoformat() if replay.promoted_at else None,
        "ranges": [
            {
                "partition": partition.id,
                "first": each.span.after + 1,
                "last": each.span.through,
                "position": each.position if replay.state == "running" else each.span.through,
            }
            for partition, each in replay.ranges.items()
            if not each.span.empty
        ],
    }
