"""Folders for large files on the way, which do not outlive a process that was killed for long."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: A folder is locked some moments after it was made; as long as this, nobody takes it for left behind. Seconds.
_YOUNG = 60


@contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """A folder in the temporary one, gone after the block. Those of a ``prefix`` that others left behind go too.

    A container that is killed keeps its temporary folder on Kubernetes, and what was in it would come together there.
    Raises :class:`OSError`.
    """
    _remove_abandoned(Path(tempfile.gettempdir()), prefix)
    with tempfile.TemporaryDirectory(
        prefix=prefix,
        ignore_cleanup_errors=True,  # cancelled, a thread may still write there
    ) as folder:
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)  # the kernel lets go of it, however we die
        try:
            with suppress(OSError):  # not on NFS; then nobody else can lock, and remove, it either
                fcntl.flock(held, fcntl.LOCK_EX)
            yield Path(folder)
        finally:
            os.close(held)


def _remove_abandoned(place: Path, prefix: str) -> None:
    """Folders of ours in ``place`` that nobody holds. What cannot be removed stays."""
    for folder in place.glob(f"{prefix}*"):
        with suppress(OSError):  # no folder, another user's, gone meanwhile, or held
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                found = os.fstat(fd)
                if found.st_uid == os.getuid() and time.time() - found.st_mtime > _YOUNG:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(fd)
