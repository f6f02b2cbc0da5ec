"""The dashboard beside a demo that is watched: a process of its own, as it would be elsewhere."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import click

from streamproc.runtimes.demo import Demo

_SAYS = "Dashboard: "


def has_display() -> bool:
    """Whether a browser that is opened would be seen by somebody."""
    if os.environ.get("CI"):
        return False
    return sys.platform in {"darwin", "win32"} or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )


async def run_dashboard(demo: Demo, directory: Path, topics: Path, *, open_: bool) -> None:
    """Serve the pages of the demo in ``directory`` from its first commit until this is cancelled.

    ``demo.dashboard`` gets their address. A dashboard that does not start is no reason to end the
    demo: then there is no address.
    """
    while demo.stats is None or not demo.stats.epochs:  # noqa: ASYNC110 - the worker is made by the demo, later
        await asyncio.sleep(0.2)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "streamproc", "dashboard", "--data-dir", str(directory), "--topics", str(topics)),
        *("--stream", demo.topology.name, "--bind", "127.0.0.1:0"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        async for line in process.stdout:
            if (text := line.decode()).startswith(_SAYS):
                demo.dashboard = text.removeprefix(_SAYS).strip()
                if open_:
                    click.launch(demo.dashboard)
    finally:
        demo.dashboard = None
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            await process.wait()
