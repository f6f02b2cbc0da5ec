"""Connections that aiokafka lost are told with the test that made them, not charged to another.

aiokafka 0.14 can lose a connection that it opens while its client is being closed. Nothing is wrong for who
closed it, but the garbage collector finds the connection much later, and its warning, an error here, then
fails whatever test runs at that moment. So each test's lost connections are collected at its end, and the
summary names them with the stack that opened them.
"""

from __future__ import annotations

import gc
import traceback
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from aiokafka.conn import AIOKafkaConnection

_PROPERTY = "lost connection"

_opened: list[tuple[weakref.ref[AIOKafkaConnection], str]] = []


def watch(patch: pytest.MonkeyPatch) -> None:
    """From now on, remember each connection and the stack that opened it."""
    connect = AIOKafkaConnection.connect

    async def remembered(self: AIOKafkaConnection) -> Any:
        _opened.append((weakref.ref(self), "".join(traceback.format_stack(limit=16)[:-1])))
        return await connect(self)

    patch.setattr(AIOKafkaConnection, "connect", remembered)


def collect() -> list[str]:
    """The stacks of what was opened since the last call and can never be closed: its loop is gone."""
    lost = []
    for place in range(len(_opened) - 1, -1, -1):
        reference, stack = _opened[place]
        connection = reference()
        if connection is None or connection._loop.is_closed():
            del _opened[place]
        if connection is not None and connection._loop.is_closed() and connection._reader is not None:
            lost.append(stack)
        del connection  # or it could not be collected
    if lost:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
    return lost


@pytest.fixture(autouse=True)
def _lost_connections(request: pytest.FixtureRequest) -> Iterator[None]:
    """First to be set up, so last to be torn down: the test's loop is closed by then."""
    yield
    request.node.user_properties += [(_PROPERTY, stack) for stack in collect()]


@pytest.fixture(autouse=True, scope="session")
def _watched_connections() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        watch(patch)
        yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name them, each with the test and where it was opened."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) != "teardown":
                continue
            for name, stack in report.user_properties:
                if name == _PROPERTY:
                    terminalreporter.section(f"aiokafka lost a connection in {report.nodeid}")
                    terminalreporter.write(stack)
