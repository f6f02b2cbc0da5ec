"""A dashboard in a process of its own, for tests with a browser and for benchmarks."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def serving(folder: Path, settings: Mapping[str, str], port: int = 0) -> Iterator[tuple[str, int]]:
    """The address and the process id of a dashboard of the stream ``clickstream``, working in the folder."""
    command = [sys.executable, "-m", "streamproc", "dashboard", "--stream", "clickstream"]
    process = subprocess.Popen(
        [*command, "--bind", f"127.0.0.1:{port}"],
        cwd=folder,
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout:
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found is not None
        try:
            yield found[0], process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(30)
        assert code == 0
