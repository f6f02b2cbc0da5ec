"""What tests download is kept, and fetched once however many processes ask for it."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path


def kept(name: str, variable: str, fetch: Callable[[Path], None]) -> Path:
    """The folder ``name`` in ``~/.cache/streamproc``, or where the environment's ``variable`` says.

    ``fetch`` fills an empty folder, which takes that place when it is complete; it raises when it cannot.
    """
    cache = Path(os.environ.get(variable, Path.home() / ".cache" / "streamproc"))
    folder = cache / name
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            partial = cache / f"{name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            fetch(partial)
            partial.rename(folder)
    return folder
