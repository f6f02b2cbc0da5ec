"""``streamproc replay``: process a range again beside the live service, compare, promote."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from functools import partial

import click

from streamproc.cli import replay_verbs as verbs
from streamproc.cli.options import Group, json_option, only_itself
from streamproc.cli.rendering import Section, show
from streamproc.cli.replay_progress import duration
from streamproc.cli.streams import set_up_options
from streamproc.errors import ConfigError, Mistake
from streamproc.settings import Settings

_STREAM = click.option("--stream", "topic", metavar="STREAM", help="The topic page, where there are several.")


@click.group(name="replay", cls=Group, invoke_without_command=True)
@click.option("--from", "begin", metavar="earliest|OFFSETS|TIME", help="Where the range begins.")
@click.option("--to", "end", metavar="OFFSETS|TIME", help="Where it ends. [default: what live has committed]")
@click.option(
    "--into", "name", metavar="NAME", help="What it is called. [default: the time, r20260701_130500]"
)
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes.")
@click.option("--exact", is_flag=True, help="Refuse a range that would have to be widened.")
@click.option("--dry-run", is_flag=True, help="Only say what would be processed.")
@_STREAM
@only_itself
@set_up_options
@json_option
def replay_command(*, settings: Settings, topic: str | None, as_json: bool, **request: object) -> None:
    """Process a range again beside the live service.

    With today's code and topic page, under a name of its own: positions, tables, lake objects and warehouse
    rows are kept apart from those of the live service, which goes on. Look at the result with `replay diff
    NAME`, put it in the place of the live one with `replay promote NAME`, or drop it with `replay discard
    NAME`.

    \b
    --from and --to take
      earliest  the oldest record that the topic still has (--from only)
      OFFSETS   0:1500,1:1480 by partition (those not named are left out), or 1500
                for all; the first, and the last, record to be processed
      TIME      "2026-07-01T13:00:00Z", or -2h for two hours ago, on the clock of the
                topic's timestamps: the first record as old, or the last before

    The range is widened to whole commits of the live service, and the answer says so; --exact refuses
    instead. A replay that was interrupted goes on with --into NAME alone.
    """
    wanted = verbs.Request(**request)  # type: ignore[arg-type]  # click has checked the options
    if wanted.begin is None and (wanted.name is None or wanted.end is not None):
        fix = "Say where to begin, such as --from -2h, or which replay goes on: --into NAME alone"
        raise ConfigError([Mistake("--from", "is missing", fix)])
    if wanted.begin is None and wanted.dry_run:
        fix = f"Leave it out to go on; `streamproc replay status {wanted.name}` says what is left"
        raise ConfigError([Mistake("--dry-run", "tells the range of a replay that has not begun", fix)])
    asyncio.run(verbs.run(settings, topic, wanted, json_answer=as_json))


@replay_command.command(name="status")
@click.argument("name", required=False)
@_STREAM
@set_up_options
@json_option
def status_command(settings: Settings, name: str | None, topic: str | None, as_json: bool) -> None:
    """Show how far replays are.

    Those that were promoted stay in the list.
    """
    found = asyncio.run(verbs.status(settings, topic, name))
    if as_json:
        click.echo(json.dumps({"replays": [verbs.as_json(*each) for each in found]}, indent=2))
        return
    header = ["name", "state", "positions", "left", "a second", "time left", "began", "range"]
    rows = [
        [
            replay.name,
            replay.state,
            replay.positions,
            replay.left if replay.state == "running" else 0,
            round(rate) if rate else None,
            duration(replay.left / rate) if rate and replay.state == "running" else None,
            replay.created_at,
            replay.asked,
        ]
        for replay, rate in found
    ]
    show([Section("replays", header, rows)])


@replay_command.command(name="diff")
@click.argument("name")
@click.option(
    "--rows", type=click.IntRange(0), default=0, metavar="N", help="Also name N rows of each table."
)
@_STREAM
@set_up_options
@json_option
def diff_command(settings: Settings, name: str, rows: int, topic: str | None, as_json: bool) -> None:
    """Show how a replay's tables differ from the live ones.

    Per table: rows that only one of them has, rows of both that differ, and the sums of counts and sums.
    From the first window that the range can have changed to the newest; later events are those that live
    has. Approximate measures differ only beyond their error, percentiles are not compared.
    """
    as_of, found, counts = asyncio.run(verbs.diff(settings, topic, name, rows))
    if as_json:
        tables = {each.table: asdict(each) for each in found}
        answer = {"replay": name, "as_of": as_of.isoformat(), "tables": tables, "records": counts}
        click.echo(json.dumps(answer, indent=2, default=str))
        return
    header = ["table", "rows", "only live", "only replay", "differ"]
    sections = [
        Section("rows", header, [[t.table, t.rows, t.missing, t.added, t.changed] for t in found]),
        Section(
            "totals",
            ["table", "measure", "live", "replay"],
            [[t.table, measure, *both] for t in found for measure, both in t.totals.items()],
        ),
        Section(
            "records of the range", ["", *counts["live"]], [[who, *of.values()] for who, of in counts.items()]
        ),
    ]
    sections += [
        Section(f"{t.table}: rows", list(t.keys[0]), [list(row.values()) for row in t.keys])
        for t in found
        if t.keys
    ]
    show(sections)


@replay_command.command(name="promote")
@click.argument("name")
@_STREAM
@partial(set_up_options, level="warning")  # of tables that are left
@click.option("--yes", "-y", is_flag=True, help="Do not ask before changing.")
@json_option
def promote_command(settings: Settings, name: str, topic: str | None, yes: bool, as_json: bool) -> None:
    """Put a replay in the place of what live has.

    In one transaction the replay's rows take the place of the live tables' from the first window that the
    range can have changed, and its objects the place of the range's in the lake's list; in another its rows
    that of the range's in the warehouse. Readers see the old or the new. Live commits wait meanwhile, and
    its workers then claim their partitions again. The old objects are deleted by the sweep a day later.

    Interrupted, it can be run again, and must be; done, it only drops what is
    left of the replay's own tables.
    """
    if not yes:
        click.confirm(f"Put replay {name} in the place of what live has?", abort=True, err=True)
    changed = asyncio.run(verbs.promote(settings, topic, name))
    if as_json:
        click.echo(json.dumps({"replay": name, "promoted": changed}))
    else:
        click.echo(f"{name}: promoted." if changed else f"{name}: was promoted before; nothing to do.")


@replay_command.command(name="discard")
@click.argument("name")
@_STREAM
@set_up_options
@click.option("--yes", "-y", is_flag=True, help="Do not ask before changing.")
def discard_command(settings: Settings, name: str, topic: str | None, yes: bool) -> None:
    """Drop a replay and everything it has made.

    Its objects in the lake are deleted by the sweep of the live workers.
    """
    if not yes:
        click.confirm(f"Drop replay {name}?", abort=True, err=True)
    asyncio.run(verbs.discard(settings, topic, name))
    click.echo(f"{name}: discarded.")
