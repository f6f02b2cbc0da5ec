"""Workers forked from a process that has everything imported, where a start from nothing takes three seconds of CPU.

They are processes like any other: with a log, an environment and an end of their own, and what kills or
freezes them is a real signal. Their failpoints are armed as they begin, by their environment, or later, by
:meth:`Process.arm`.
"""

from __future__ import annotations

import atexit
import ctypes
import faulthandler
import importlib
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from subprocess import TimeoutExpired

from streamproc import failpoints

_SERVICE = "streamproc"

_CLONE_NEWNET = 0x40000000

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.faults.warm"])


def _end_all() -> None:
    for process in multiprocessing.active_children():
        process.kill()


# Whoever interrupts the bench while a worker starts: Python would wait for that one for ever.
atexit.register(_end_all)


def warm_up() -> None:
    """Have the process that workers are forked from import everything. Blocks for some seconds, once."""
    process = _context.Process(target=os.getpid)
    process.start()
    process.join()


class Process:
    """A forked ``streamproc`` with what the bench uses of ``subprocess.Popen``."""

    def __init__(
        self, arguments: list[str], environment: Mapping[str, str], log: Path, netns: str | None = None
    ) -> None:
        """It runs in the log's folder. ``netns``: the name of a network namespace."""
        log.touch()  # it is read before the process has come to write to it
        self._orders = _orders(log)
        self._process = _context.Process(target=_run, args=(arguments, dict(environment), log, netns))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Negative: the signal that ended it. ``None`` while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """As :attr:`returncode`."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Raises :class:`subprocess.TimeoutExpired`."""
        self._process.join(timeout)
        if (code := self.returncode) is None:
            raise TimeoutExpired(f"{_SERVICE} {self.pid}", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """To a process that has ended, nothing."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def arm(self, failpoints: str) -> None:
        """Arm these in place of those that are armed, counting hits from now; see :attr:`arming`."""
        self._orders.write_text(failpoints)
        self.send_signal(signal.SIGUSR1)

    @property
    def arming(self) -> bool:
        """Whether it has not come to it yet."""
        return self._orders.exists()


def _orders(log: Path) -> Path:
    """Where the worker with this log finds what to arm."""
    return log.with_suffix(".orders")


def _run(arguments: list[str], environment: dict[str, str], log: Path, netns: str | None) -> None:
    """In the child: become ``streamproc <arguments>`` and end as it does."""
    atexit._clear()
    if netns is not None:
        with Path("/run/netns", netns).open() as file:  # os.setns() is there since Python 3.12
            if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(log.parent)
    faulthandler.enable(2)
    # Not as errors: those keep uvloop from closing a connection that aiokafka left open when it was stopped
    # while it connected again, and the loop waits for that for ever.
    warnings.simplefilter("default")
    # In place: the points in the code are its methods, bound when everything was imported.
    armed = failpoints._failpoints
    variable = failpoints.VARIABLE
    armed.__init__(environment.get(variable, ""), environment.get(f"{variable}_LOG"))  # type: ignore[misc]

    def arm(*_: object) -> None:
        armed.arm(_orders(log).read_text())
        _orders(log).unlink()

    signal.signal(signal.SIGUSR1, arm)
    sys.argv = [_SERVICE, *arguments]
    main = importlib.import_module(f"{_SERVICE}.cli").main
    try:
        main()
    finally:
        atexit._run_exitfuncs()  # a forked process would leave them out
