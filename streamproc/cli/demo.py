"""``streamproc demo``: the whole pipeline on a bare machine, and what it looks like."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import click

from streamproc.cli.options import load_settings, load_topics
from streamproc.errors import ConfigError, Mistake

#: Events of a demo that is not watched: enough to see every table filled, done in seconds.
UNWATCHED_EVENTS = 100_000

#: Records a second of an endless demo: a busy site, and little enough work to leave the laptop usable.
LIVE_RATE = 2_000.0


@click.command(name="demo")
@click.option(
    "--events",
    type=click.IntRange(1),
    help="Stop after this many. [default: until Ctrl-C, or 100000 off a terminal]",
)
@click.option(
    "--input",
    "input_",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Feed the lines of this file instead (.gz is unpacked); web logs go to the weblogs page.",
)
@click.option("--seed", type=int, default=7, show_default=True, help="Same seed, same events.")
@click.option(
    "--bad-ratio",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Share of records that are damaged.",
)
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo-data"),
    show_default=True,
    help="Where lake and database go; a former demo there is replaced.",
)
@click.option(
    "--topics",
    type=click.Path(path_type=Path),
    help="Folder of topic pages. [default: ./topics, else those shipped]",
)
@click.option(
    "--stream",
    metavar="STREAM",
    help="The page to run. [default: clickstream; weblogs for --input of log lines]",
)
@click.option(
    "--to",
    metavar="URL",
    help="Send the events through kinesis://REGION instead, to the page's topic; it is created if need be.",
)
@click.option("--headless", is_flag=True, help="Run to the end and report, nothing on the way.")
@click.option("--json", "as_json", is_flag=True, help="Report as one JSON object.")
def demo_command(  # noqa: PLR0917 - click hands every option over as an argument
    events: int | None,
    input_: Path | None,
    seed: int,
    bad_ratio: float,
    directory: Path,
    topics: Path | None,
    stream: str | None,
    to: str | None,
    headless: bool,
    as_json: bool,
) -> None:
    """Run the whole pipeline here, with nothing else running.

    A broker and a PostgreSQL are started from wheels, synthetic visitors are fed in, and events flow through
    filters, enrichments and windowed tables into Parquet, a warehouse and PostgreSQL, all under --dir, where
    they stay. On a terminal it goes on until Ctrl-C, and serves the dashboard, which it opens in a browser where there
    is a display; otherwise it runs a bounded number of events and reports.
    """
    watched = sys.stdout.isatty() and not headless and not as_json
    if events is None and input_ is None and not watched:
        events = UNWATCHED_EVENTS

    from streamproc.cli.demo_dashboard import has_display, run_dashboard  # noqa: PLC0415 - keeps --help fast
    from streamproc.cli.demo_screen import show, summary  # noqa: PLC0415 - keeps --help fast
    from streamproc.runtimes.demo import Demo, Feed, prepare  # noqa: PLC0415 - keeps --help fast
    from streamproc.runtimes.service import signals  # noqa: PLC0415 - keeps --help fast
    from streamproc.topic_pages import find_pages  # noqa: PLC0415 - keeps --help fast

    if to is not None and not to.startswith("kinesis://"):
        raise ConfigError(
            [Mistake("--to", "is not kinesis://REGION", "Leave it out for the embedded broker")]
        )
    # Without --to nothing but the embedded broker is used, whatever the settings say.
    overrides = {"log.format": "json", "log.level": "warning", "broker": to or "embedded:"}
    settings = load_settings(None, topics, overrides)
    pages = load_topics(settings)
    name = stream or ("weblogs" if input_ is not None and not _is_json(input_) else "clickstream")
    if name not in pages:
        raise ConfigError(
            [Mistake("--stream", f"there is no page named {name}", f"Choose among {', '.join(pages)}")]
        )
    folder = find_pages(settings.topics)
    directory = prepare(directory)  # last: a slip in another option is no reason to empty a former demo's
    feed = Feed(events, seed, bad_ratio, input_, LIVE_RATE if events is None and input_ is None else None)
    demo = Demo(
        settings, pages[name], feed, directory=directory, pages=folder if folder.is_dir() else folder.parent
    )

    async def go() -> dict[str, Any]:
        stop = asyncio.Event()
        with signals(stop):
            running = asyncio.create_task(demo.run(stop))
            pages_beside = None
            if watched:
                serving = run_dashboard(demo, directory, folder, open_=has_display())
                pages_beside = asyncio.create_task(serving)
            try:
                if watched or not (headless or as_json):
                    await show(demo, running, live=watched)
                return await running
            finally:
                if pages_beside is not None:
                    pages_beside.cancel()
                    await asyncio.wait({pages_beside})

    report = asyncio.run(go())
    if as_json:
        click.echo(json.dumps(report))
    else:
        click.echo(summary(report, directory, name))


def _is_json(path: Path) -> bool:
    """Whether the file's first character is that of a JSON object."""
    import gzip  # noqa: PLC0415 - only for this kind of input

    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        return file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
