"""What the demo shows while it runs: counters, tables filling, the site's last minute."""

from __future__ import annotations

import asyncio
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from streamproc.runtimes.demo import Demo, Glance

#: Seconds between two looks at the tables.
_REFRESH = 0.5


async def show(demo: Demo, running: asyncio.Task[dict[str, Any]], *, live: bool) -> None:
    """Draw the demo until it ends: a screen that changes in place, or a line a second where that is no use."""
    console = Console()
    if not live:
        await _lines(demo, running, console)
        return
    with Live(_starting(), console=console, refresh_per_second=8) as screen:
        while not running.done():
            if (glance := await demo.glance()) is not None:
                screen.update(_screen(demo, glance))
            await asyncio.wait({running}, timeout=_REFRESH)


async def _lines(demo: Demo, running: asyncio.Task[dict[str, Any]], console: Console) -> None:
    began = time.monotonic()
    while not running.done():
        stats = demo.stats
        if stats is not None and stats.records:
            console.print(
                f"{time.monotonic() - began:5.1f} s  {demo.produced:>10,} produced  {stats.records:>10,} committed"
                f"  {stats.rejected:>8,} rejected  {stats.epochs:>5,} epochs",
                highlight=False,
            )
        await asyncio.wait({running}, timeout=1.0)


def _starting() -> Panel:
    return Panel(Text("Starting a broker and a PostgreSQL …"), title="streamproc demo", border_style="dim")


def _screen(demo: Demo, glance: Glance) -> Panel:
    return Panel(
        Group(_counters(demo, glance), "", _tables(glance), "", _pages(glance)),
        title=f"streamproc demo · {demo.topology.name}",
        subtitle=f"{_where(demo)} · Ctrl-C ends it",
        border_style="cyan",
    )


def _where(demo: Demo) -> str:
    """Where to look: the pages once they are served, and the folder of everything."""
    return f"{demo.dashboard} · {demo.settings.data_dir}" if demo.dashboard else str(demo.settings.data_dir)


def _counters(demo: Demo, glance: Glance) -> Table:
    stats = glance.stats
    table = Table.grid(padding=(0, 3))
    cells = {
        "produced": demo.produced,
        "accepted": stats.accepted,
        "filtered": stats.filtered,
        "rejected": stats.rejected,
        "duplicate": stats.duplicate,
        "late": sum(stats.late.values()),
        "epochs": stats.epochs,
        "events/s": round(glance.rate),
    }
    for _ in cells:
        table.add_column(justify="right")
    table.add_row(*(Text(name, style="dim") for name in cells))
    table.add_row(*(Text(f"{value:,}", style="bold") for value in cells.values()))
    return table


def _tables(glance: Glance) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("table")
    table.add_column("rows", justify="right")
    table.add_column("newest window")
    table.add_column("what it is", style="dim")
    for name, rows, newest, comment in glance.tables:
        table.add_row(name, f"{rows:,}", newest, comment)
    return table


def _pages(glance: Glance) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", title=None)
    for heading in glance.top_columns:
        table.add_column(heading, justify="left" if heading in {"host", "path", "window_start"} else "right")
    for row in glance.top_rows:
        table.add_row(*("" if value is None else str(value) for value in row))
    return table


def summary(report: dict[str, Any], directory: Path, stream: str) -> str:
    """The report for a person."""
    program, data_dir = this_program(), shlex.quote(str(directory))
    first = next(iter(report["tables"]))
    lines = [
        "",
        f"{report['produced']:,} records produced = {report['accepted']:,} accepted + {report['filtered']:,} filtered"
        f" + {report['rejected']:,} rejected + {report['duplicate']:,} duplicate",
        f"{report['lake_rows']:,} rows in the lake, {report['warehouse_rows']:,} in the warehouse;"
        f" {report['late']:,} times an event came too late for a table",
        *(f"  {rows:>9,} rows  {name}" for name, rows in report["tables"].items()),
        f"{report['seconds']} s, {report['events_per_second']:,} records a second (feeding included)",
        "",
        "Look around:",
        f'  {program} sql --data-dir {data_dir} "table {stream}.{first} limit 10"',
        f"  {program} status --data-dir {data_dir}",
        f"  {program} dashboard --data-dir {data_dir}",
        f"  {report['lake']}",
    ]
    return "\n".join(lines)


def this_program() -> str:
    """How to call this program once more from where we are: by its name where that is on ``PATH``."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return f"{shlex.quote(_from_here(Path(sys.executable)))} -m {called.parent.name}"
    found = shutil.which(called.name)
    if found is not None and called.exists() and called.samefile(found):
        return called.name
    return shlex.quote(_from_here(called))


def _from_here(path: Path) -> str:
    """Relative to the working directory for what is below it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
