"""Runs a broker for as long as anybody uses it. A script of its own, in a process of its own.

``python broker_guard.py USERS_LOCK ALIVE_LOCK COMMAND...`` starts the command in the background and kills it
when no process holds USERS_LOCK shared any more: by then the last user has stopped or was killed. The guard
holds ALIVE_LOCK until the broker is gone. If the guard itself is killed, Linux kills the broker with it.

Standard library only, so that it starts in a few milliseconds and needs little memory.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import threading

_PR_SET_PDEATHSIG = 1


def _die_with_guard() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _kill_when_unused(users_lock: str, broker: subprocess.Popen[bytes]) -> None:
    users = os.open(users_lock, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(users, fcntl.LOCK_EX)  # held from here on: who joins now waits until the guard is gone
    broker.kill()  # the broker keeps everything in memory: there is nothing to shut down in order


def main(users_lock: str, alive_lock: str, *command: str) -> int:
    """Start ``command`` and return at once; a child process guards it."""
    alive = os.open(alive_lock, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(alive, fcntl.LOCK_EX)
    if os.fork():
        return 0  # the lock belongs to the open file, which the child keeps
    os.setsid()  # a terminal's Ctrl-C is for the workers; they still need the broker to drain
    broker = subprocess.Popen(  # noqa: S603 - the command is our own starter's
        command,
        preexec_fn=_die_with_guard,  # noqa: PLW1509 - this process has one thread
    )
    threading.Thread(target=_kill_when_unused, args=(users_lock, broker), daemon=True).start()
    return broker.wait()


if __name__ == "__main__":
    os._exit(main(*sys.argv[1:]))  # a thread may be waiting for a lock: nothing to unwind
