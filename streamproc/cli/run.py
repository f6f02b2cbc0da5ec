"""``streamproc run``: the service."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import click

from streamproc.cli.options import load_settings, load_topics, settings_options
from streamproc.errors import ConfigError, Mistake


@click.command(name="run")
@click.argument("streams", nargs=-1, metavar="[STREAM]...")
@click.option("--agents", metavar="MODULE", help="Also run the Faust agents that MODULE.setup() declares.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes, for machines with many cores. Each has a port of its own, counted up from the setting `health`.",
)
@settings_options
def run_command(
    streams: tuple[str, ...], agents: str | None, workers: int, config: Path | None, topics: Path | None
) -> None:
    """Run the service: consume, transform, fold, commit, until SIGTERM.

    STREAM names the topic pages to run; all of the folder without one. Workers of one group share a
    stream's partitions; start as many as you like. On SIGTERM a worker commits what it has taken, within
    the drain deadline, and leaves the group.
    """
    if os.getpid() == 1:
        # Linux keeps a signal from the first process of a container that has not asked for it. A worker that is told to
        # end in its first seconds would go on, take partitions, and be killed for not having ended.
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    folder = str(Path.cwd())
    if agents is not None and folder not in sys.path:
        sys.path.insert(0, folder)  # `python -m` has it there, the entry point has not
    settings = load_settings(config, topics)
    pages = load_topics(settings)
    if unknown := [name for name in streams if name not in pages]:
        fix = f"Choose among {', '.join(sorted(pages))}"
        raise ConfigError([Mistake("STREAM", f"there is no page named {name}", fix) for name in unknown])
    chosen = {name: page for name, page in pages.items() if not streams or name in streams}
    if workers > 1:
        from streamproc.runtimes.processes import run_processes  # noqa: PLC0415 - see below

        given = {"--config": config, "--topics": topics, "--agents": agents}
        options = [word for name, value in given.items() if value is not None for word in (name, str(value))]
        sys.exit(asyncio.run(run_processes(settings, workers, [*options, *streams])))

    # Imported late: they take a second, and wrong arguments should be told at once.
    from streamproc.runtimes.service import serve  # noqa: PLC0415 - see above
    from streamproc.topic_pages import find_pages  # noqa: PLC0415 - see above

    found = find_pages(settings.topics)
    serving = serve(settings, chosen, found if found.is_dir() else found.parent, agents=agents)
    if sys.platform == "win32":
        asyncio.run(serving)
    else:
        import uvloop  # noqa: PLC0415 - not there on Windows

        uvloop.run(serving)
