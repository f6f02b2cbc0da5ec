"""``streamproc run --workers N``: several worker processes in one container, started and ended together.

They are what as many containers would be, members of one group with a claim for each partition; nothing is shared but
the machine. When one of them ends, the others drain and all of it ends, so that whoever restarts containers sees it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence

import structlog

from streamproc.concurrency import PROCESSES
from streamproc.settings import Settings

log = structlog.get_logger(__name__)

#: polars starts so many threads a process; of several processes each gets its share of the cores.
_POLARS_THREADS = "POLARS_MAX_THREADS"

#: Beyond the drain deadline, for what comes before and after draining. Seconds.
_GRACE = 15.0


async def run_processes(settings: Settings, count: int, arguments: Sequence[str]) -> int:
    """Run ``count`` processes of ``streamproc run`` with these arguments until SIGTERM or SIGINT; the exit code.

    0 when all of them ended well after a signal. Otherwise that of the first that ended by itself, 1 when that is 0: a
    worker has no end of its own.
    """
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    processes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "streamproc", "run", *arguments),
            env=environment(settings, count, number),
            start_new_session=True,  # Ctrl-C is ours to pass on: twice would mean to give up draining
        )
        for number in range(count)
    ]
    log.info("workers_started", workers=count, processes=[process.pid for process in processes])
    ended = {asyncio.create_task(process.wait()): process for process in processes}
    stop = asyncio.create_task(ending.wait())
    done, _ = await asyncio.wait({stop, *ended}, return_when=asyncio.FIRST_COMPLETED)
    first = next((task for task in done if task is not stop), None)
    if first is not None:
        log.error("worker_ended", process=ended[first].pid, code=first.result(), others="are told to drain")
    for process in processes:
        if process.returncode is None:
            process.terminate()
    _, left = await asyncio.wait(ended, timeout=settings.drain_deadline + _GRACE)
    for task in left:
        log.error("worker_killed", process=ended[task].pid, why="it did not end by itself")
        ended[task].kill()
    codes = await asyncio.gather(*ended)
    stop.cancel()
    if first is not None:
        return exit_code(first.result()) or 1
    return max(map(exit_code, codes))


def exit_code(code: int) -> int:
    """That of a process as a container's is told: one that a signal ended has 128 more than that."""
    return 128 - code if code < 0 else code


def environment(settings: Settings, count: int, number: int) -> Mapping[str, str]:
    """Of one process: a name and a port of its own, its share of the cores, and of how many it is one."""
    health = settings.health
    port = health.port + number if health.port else 0
    host = f"[{health.host}]" if ":" in health.host else health.host
    share = max(1, (os.cpu_count() or 1) // count)
    return {
        _POLARS_THREADS: str(share),
        **os.environ,
        "STREAMPROC_WORKER": f"{settings.worker}-{number}",
        "STREAMPROC_HEALTH": f"{host}:{port}",
        PROCESSES: str(count),
    }
