"""``streamproc lake``: which objects belong to the lake, fewer of them, and deleting those that do not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote, urlsplit

import click

from streamproc.cli.lake_compact import compact_command
from streamproc.cli.options import Group, form_option, json_option
from streamproc.cli.rendering import Section, show
from streamproc.cli.streams import (
    Time,
    microseconds,
    opened_store,
    opened_stream,
    opened_streams,
    set_up_options,
    topic_argument,
)
from streamproc.model import CommittedObject
from streamproc.settings import Settings
from streamproc.sinks.object_store import ObjectStore, lake_store

#: Column that an object's times are of, by its kind.
_TIME_COLUMN = {"events": "event_time", "rejects": "received_at"}


@click.group(name="lake", cls=Group)
def lake_command() -> None:
    """List the lake's objects, merge small ones, delete the abandoned."""


lake_command.add_command(compact_command)


@lake_command.command(name="manifest")
@topic_argument
@set_up_options
@click.option("--from", "since", type=Time(), help="Objects that may hold events of this time or later.")
@click.option("--to", "until", type=Time(), help="Objects that may hold events before this time.")
@click.option(
    "--kind",
    type=click.Choice(["events", "rejects"]),
    default="events",
    show_default=True,
    help="Rejects go by the time they were received.",
)
@form_option("json", "One JSON object a line, one for each object.")
@form_option("sql", "A DuckDB query over exactly these objects.")
def manifest_command(
    *,
    settings: Settings,
    topic: str | None,
    since: datetime | None,
    until: datetime | None,
    kind: str,
    form: str | None,
) -> None:
    """List the objects that the ledger calls committed: exactly these hold every event once.

    What else lies below the same prefix was never committed, or has been merged, replaced or let go of since,
    and will be deleted. Times are ISO 8601 in UTC, or "2h" for two hours ago; an object that reaches into the
    interval is listed whole, and --sql leaves out its rows outside. An interval that has no objects gives no
    query.

    \b
      streamproc lake manifest --from 1h --sql | duckdb
    """
    asyncio.run(_manifest(settings, topic, Manifest(kind, since, until), form))


class Manifest:
    """Committed objects of one ``kind`` with times in ``[since, until)``; no bound where it is ``None``."""

    def __init__(self, kind: str, since: datetime | None, until: datetime | None) -> None:
        self.kind = kind
        self.since = since
        self.until = until

    def where(self) -> str:
        """The interval as a DuckDB condition; empty when there is none."""
        column = _TIME_COLUMN[self.kind]
        bounds = [(">=", self.since), ("<", self.until)]
        return " AND ".join(
            f"{column} {sign} TIMESTAMPTZ '{moment.astimezone(UTC).isoformat()}'"
            for sign, moment in bounds
            if moment is not None
        )


@lake_command.command(name="sweep")
@topic_argument
@set_up_options
@json_option
def sweep_command(settings: Settings, topic: str | None, as_json: bool) -> None:
    """Delete objects that were never committed, ten minutes after they were abandoned and again after a day.

    Those that were merged, replaced or let go of are deleted too, a day after that. The workers do the same
    every five minutes, unless the setting sweep is off: then nothing but this verb needs the right to delete.
    Any number of sweeps may run at once.
    """
    swept = asyncio.run(_sweep(settings, topic))
    if as_json:
        answer = [{"stream": name, "deletions": deletions} for name, deletions in swept]
        click.echo(json.dumps({"swept": answer}, indent=2))
    else:
        show([Section("swept", ["stream", "deletions"], swept)])


async def _sweep(settings: Settings, topic: str | None) -> list[tuple[str, int]]:
    async with opened_store(settings) as store, opened_streams(settings, topic) as streams:
        return [(stream.page.name, await stream.ledger.sweep(store)) for stream in streams]


async def _manifest(settings: Settings, topic: str | None, manifest: Manifest, form: str | None) -> None:
    store = lake_store(settings)  # names objects only: it need not be opened
    async with opened_stream(settings, topic) as stream:
        objects = stream.ledger.manifest(
            manifest.kind, microseconds(manifest.since), microseconds(manifest.until)
        )
        if form == "json":
            async for each in objects:
                click.echo(json.dumps(as_dict(each, store)))
        elif form == "sql":
            await _write_sql(objects, store, manifest.where())
        else:
            rows = [_row(each, store) async for each in objects]
            header = ["object", "rows", "bytes", "from", "to", "sha256"]
            show(
                [Section(f"{stream.page.name}: {len(rows)} committed {manifest.kind} objects", header, rows)]
            )


async def _write_sql(objects: AsyncIterator[CommittedObject], store: ObjectStore, where: str) -> None:
    """Streamed, because a year of hourly objects is a long statement."""
    begun = False
    async for each in objects:
        click.echo(",\n" if begun else "SELECT * FROM read_parquet([\n", nl=False)
        click.echo(f"  '{_duckdb_path(store.url(each.plan.key))}'", nl=False)
        begun = True
    if begun:
        # Columns may have been added since; the folders' names say nothing that the rows do not.
        click.echo("\n], union_by_name = true, hive_partitioning = false)", nl=False)
        click.echo(f"\nWHERE {where};" if where else ";")
    else:
        click.echo("No committed objects: no query.", err=True)


def as_dict(each: CommittedObject, store: ObjectStore) -> dict[str, object]:
    """The object as ``--json`` shows it."""
    plan = each.plan
    return {
        "url": store.url(plan.key),
        "key": plan.key,
        "kind": plan.kind,
        "source": plan.partition.source,
        "partition": plan.partition.id,
        "after": plan.after,
        "through": plan.through,
        "rows": plan.rows,
        "size": each.size,
        "sha256": each.checksum,
        "min_time": _iso(plan.min_time_us),
        "max_time": _iso(plan.max_time_us),
        "committed_at": each.committed_at.isoformat(),
    }


def _row(each: CommittedObject, store: ObjectStore) -> Sequence[object]:
    plan = each.plan
    times = (_moment(plan.min_time_us), _moment(plan.max_time_us))
    return [store.url(plan.key), plan.rows, each.size, *times, each.checksum]


def _duckdb_path(url: str) -> str:
    """DuckDB takes ``s3://`` URLs, and files by their path: it does not undo a URL's quoting."""
    place = unquote(urlsplit(url).path) if url.startswith("file:") else url
    return place.replace("'", "''")


def _moment(microseconds_: int | None) -> datetime | None:
    if microseconds_ is None:
        return None
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds_)


def _iso(microseconds_: int | None) -> str | None:
    moment = _moment(microseconds_)
    return None if moment is None else moment.isoformat()
