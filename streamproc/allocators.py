"""How the process's two memory allocators behave: glibc's, which Python uses, and the jemalloc inside of polars.

Record batches make both allocate and free some ten megabytes many times a second, on several threads. As they
come, both give too much away: pages go back to the system only to be faulted in again for the next batch, and each
thread keeps a heap of its own.
"""

from __future__ import annotations

import ctypes
import os

#: polars puts its own values before these when it is imported, and of two the last counts. Free pages stay five seconds
#: before they go back instead of half a second, large ones as well, and there is one arena a core instead of four: on
#: two cores the worker takes a tenth less CPU per event of the shipped page, and nearly half less time in the kernel.
_JEMALLOC_VARIABLE = "_RJEM_MALLOC_CONF"
_JEMALLOC = f"dirty_decay_ms:5000,narenas:{max(2, os.cpu_count() or 1)},oversize_threshold:0"

#: ``M_ARENA_MAX`` of glibc's ``malloc.h``. By default each thread gets a heap of its own, up to eight a core, and what
#: one has free the others cannot use: 170 MiB of the worker's peak on the shipped page.
_ARENA_MAX = -8
_ARENAS = 2


def tune() -> None:
    """Set both up. Does nothing for polars once that is loaded, and nothing for what the environment decides.

    Processes started from this one inherit the part that is a variable.
    """
    os.environ.setdefault(_JEMALLOC_VARIABLE, _JEMALLOC)
    if any(name.startswith("MALLOC_ARENA") for name in os.environ) or "GLIBC_TUNABLES" in os.environ:
        return
    _glibc("mallopt", _ARENA_MAX, _ARENAS)


def give_back() -> None:
    """Give the system what glibc keeps of free pages between used ones. By itself it only does so at a heap's end."""
    _glibc("malloc_trim", 0)


def _glibc(function: str, *arguments: int) -> None:
    try:
        called = getattr(ctypes.CDLL(None), function)
    except (AttributeError, OSError, TypeError):  # no glibc: musl, macOS, Windows
        return
    called(*arguments)
