"""``streamproc transform``: the transform as a filter from stdin to stdout."""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import IO

import click
import polars as pl
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from streamproc.errors import ConfigError, Mistake
from streamproc.model import Counts, Partition, RecordBatch
from streamproc.settings import read_settings
from streamproc.topic_pages import find_pages, load_page
from streamproc.transform import Resources, Transform

_CHUNK = 4 * 1024 * 1024
_LARGEST_LINE = 64 * 1024 * 1024
_STDIN = Partition("stdin", "stdin")
_TIME = "%Y-%m-%dT%H:%M:%S%.6fZ"


@click.command(name="transform")
@click.argument("topic", metavar="STREAM")
@click.option(
    "--topics",
    type=click.Path(path_type=Path),
    help="Folder of topic pages. [default: ./topics, else those shipped with streamproc]",
)
@click.option(
    "--rejects",
    "rejects_file",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    help="Write rejects to this file rather than to stderr.",
)
def transform_command(topic: str, topics: Path | None, rejects_file: Path | None) -> None:
    """Decode, filter and enrich events from stdin to stdout.

    What would happen to these events: STREAM is a topic page, a file or the name of one in the folder, without
    .toml. Each line of stdin is a record. stdout gets the events that pass, as JSON lines with all columns;
    times are UTC. Records that cannot be used go to stderr as JSON lines: their line number, the reason, and
    the bytes as they came (in base64, and as text when they are UTF-8). The clock against which events count
    as in the future, or as too old, is now.

    \b
        streamproc generate --events 1000 | streamproc transform clickstream > events.ndjson
    """
    page, folder = _page(topic, topics)
    transform = Transform(load_page(page), Resources(os.environ, folder))
    total = Counts()
    with ExitStack() as stack:
        rejects: IO[bytes] = sys.stderr.buffer
        if rejects_file is not None:
            rejects = stack.enter_context(rejects_file.open("wb"))
        # A terminal that shows the rejects has no room for a progress line.
        shown = rejects_file is not None and sys.stderr.isatty()
        progress = stack.enter_context(_progress() if shown else nullcontext())
        task = progress.add_task("", total=None) if progress else None
        for batch in _batches(sys.stdin.buffer):
            result = transform([batch])
            _write_events(result.events, sys.stdout.buffer)
            _write_rejects(result.rejects, rejects)
            total.add(result.counts[_STDIN.id])
            if progress and task is not None:
                progress.update(task, description=_summary(total))
        sys.stdout.buffer.flush()
    if rejects_file is not None:
        click.echo(_summary(total), err=True)


def _page(topic: str, topics: Path | None) -> tuple[Path, Path]:
    """The topic page's file and the folder that its relative paths start from. Raises ConfigError."""
    file = Path(topic)
    if file.suffix == ".toml":
        return file, file.parent
    folder = find_pages(topics or read_settings().topics)
    if folder.is_file():
        return folder, folder.parent
    page = folder / f"{topic}.toml"
    if not page.is_file():
        names = ", ".join(sorted(found.stem for found in folder.glob("*.toml"))) or "none"
        raise ConfigError(
            [Mistake(str(folder), f"there is no topic page {topic!r}", f"Name one of: {names}; or a file")]
        )
    return page, folder


def _batches(stream: IO[bytes]) -> Iterator[RecordBatch]:
    """Some thousand lines at a time; positions are line numbers, from 1. Only one chunk is in memory."""
    done = 0
    for lines in _lines(stream):
        through = done + len(lines)
        yield RecordBatch(
            partition=_STDIN,
            after=done,
            through=through,
            values=lines,
            positions=range(done + 1, through + 1),
            received_ms=time.time_ns() // 1_000_000,
            size=sum(map(len, lines)),
        )
        done = through


def _lines(stream: IO[bytes]) -> Iterator[list[bytes]]:
    rest = b""
    while chunk := stream.read(_CHUNK):
        *lines, rest = (rest + chunk).split(b"\n")
        if lines:
            yield lines
        if len(rest) > _LARGEST_LINE:
            raise click.ClickException(f"a line is longer than {_LARGEST_LINE:,} bytes: is this NDJSON?")
    if rest:
        yield [rest]


def _write_events(events: pl.DataFrame, out: IO[bytes]) -> None:
    times = [name for name, dtype in events.schema.items() if isinstance(dtype, pl.Datetime)]
    events.with_columns(pl.col(times).dt.strftime(_TIME)).write_ndjson(out)


def _write_rejects(rejects: pl.DataFrame, out: IO[bytes]) -> None:
    for row in rejects.iter_rows(named=True):
        original: bytes = row["original"] or b""
        reject = {
            "line": row["position"],
            "reason": row["reason"],
            "field": row["field"],
            "detail": row["detail"],
            "original": base64.b64encode(original).decode(),
        }
        with suppress(UnicodeDecodeError):  # the bytes are there in base64
            reject["text"] = original.decode()
        out.write(json.dumps(reject, ensure_ascii=False).encode() + b"\n")
    out.flush()


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), TimeElapsedColumn(), console=Console(stderr=True), transient=True
    )


def _summary(counts: Counts) -> str:
    return (
        f"{counts.records:,} records: {counts.accepted:,} accepted, {counts.filtered:,} filtered, "
        f"{counts.rejected:,} rejected"
    )
