from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

#: Threads that are there at the same time and each have allocated; prints how many heaps glibc gave them.
_HEAPS = """
import ctypes, sys, threading
from streamproc import allocators
allocators.tune()
there = threading.Barrier(9)
def allocate():
    bytes(100_000)
    there.wait()
    there.wait()
threads = [threading.Thread(target=allocate) for _ in range(8)]
for thread in threads:
    thread.start()
there.wait()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
there.wait()
"""

#: Frees ten megabytes between chunks that stay; prints the bytes that go back.
_GIVEN_BACK = """
import gc, psutil
from streamproc import allocators
allocators.tune()
chunks = [bytes(4_000) for _ in range(3_000)]
kept = chunks[::50]
del chunks
process = psutil.Process()
before = process.memory_info().rss
allocators.give_back()
print(before - process.memory_info().rss)
"""

_VARIABLE = """
import os, sys
from click.testing import CliRunner
from streamproc.cli import main
assert "polars" not in sys.modules
assert CliRunner().invoke(main, ["transform", "--help"]).exit_code == 0
print(os.environ["_RJEM_MALLOC_CONF"])
"""


def _run(script: str, *arguments: str, **environment: str) -> str:
    ours = {k: v for k, v in os.environ.items() if "MALLOC" not in k and k != "GLIBC_TUNABLES"}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(
        command, env=ours | environment, check=True, capture_output=True, text=True
    ).stdout.strip()


def _heaps(folder: Path, **environment: str) -> int:
    _run(_HEAPS, str(folder / "heaps.xml"), **environment)
    return (folder / "heaps.xml").read_text().count("<heap nr=")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="looks at glibc's heaps")
def test_threads_share_two_heaps_of_glibc_unless_the_environment_says_otherwise(tmp_path: Path) -> None:
    assert _heaps(tmp_path) <= 2
    assert _heaps(tmp_path, MALLOC_ARENA_MAX="16") > 2


def test_polars_allocator_is_set_up_before_a_verb_loads_polars_unless_the_environment_says_otherwise() -> (
    None
):
    # polars puts its own values before what it finds; of two the last counts.
    assert re.search(r"dirty_decay_ms:5000,narenas:\d+,oversize_threshold:0$", _run(_VARIABLE))
    given = _run(_VARIABLE, _RJEM_MALLOC_CONF="narenas:7")
    assert given.endswith("narenas:7")
    assert "5000" not in given


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="gives back what glibc has free")
def test_what_is_free_between_used_chunks_is_given_back() -> None:
    assert int(_run(_GIVEN_BACK)) > 5_000_000
