"""What a worker does with failures that are no errors of this project."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from functools import partial
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import structlog

from streamproc.concurrency import cancelled
from streamproc.errors import DependencyError, Inconsistent
from streamproc.runtimes import release as releasing
from streamproc.runtimes import worker as module
from streamproc.runtimes.worker import Worker

#: The second is no Exception: polars raises it where its own code is wrong.
FAILURES = [ZeroDivisionError("by zero"), pl.exceptions.PanicException("index out of bounds")]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
async def test_whatever_a_batch_fails_with_ends_the_worker_and_does_not_reach_faust(
    failure: BaseException,
) -> None:
    async def take(batches: list[Any], generation: int) -> None:
        raise failure

    worker: Any = SimpleNamespace(
        pipeline=SimpleNamespace(take=take), _failure=None, _fenced=False, _ended=asyncio.Event()
    )
    await Worker._take(worker, 0, [])
    assert worker._failure is failure
    assert worker._ended.is_set()


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
async def test_whatever_the_last_commit_fails_with_the_worker_leaves_the_group(
    failure: BaseException,
) -> None:
    left = []

    async def drain() -> None:
        raise failure

    def leave(what: str) -> Any:
        async def close() -> None:
            left.append(what)

        return SimpleNamespace(close=close, drain=drain)

    worker: Any = SimpleNamespace(
        settings=SimpleNamespace(drain_deadline=10.0),
        pipeline=leave("claims"),
        _source=leave("group"),
        _publication=None,
        _failure=None,
        _fenced=False,
    )
    await Worker._wind_down(worker)
    assert worker._failure is failure
    assert left == ["group", "claims"]


async def test_a_worker_that_ends_does_not_wait_for_a_database_that_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has waited for its last commit as long as it may, and is given little more."""
    monkeypatch.setattr(releasing, "_WITHIN", 0.01)
    pipeline: Any = SimpleNamespace(close=asyncio.Event().wait)
    with structlog.testing.capture_logs() as logs:
        async with asyncio.timeout(10):
            await releasing.release(pipeline)
    assert [said["event"] for said in logs] == ["claims_not_released"]


@pytest.mark.parametrize(
    "failure",
    [*FAILURES, BaseExceptionGroup("unhandled errors in a TaskGroup", FAILURES)],
    ids=lambda failure: type(failure).__name__,
)
async def test_whatever_the_work_beside_the_records_fails_with_is_the_workers_failure(
    failure: BaseException,
) -> None:
    async def fail() -> None:
        raise failure

    async def work_on(*_: object) -> None:
        await asyncio.Event().wait()

    worker: Any = SimpleNamespace(
        settings=SimpleNamespace(worker="w1"),
        topology=SimpleNamespace(name="clicks"),
        upkeep=SimpleNamespace(run=fail),
        observation=SimpleNamespace(run=work_on),
        _pump=work_on,
        _agents=None,
        _broker=None,
        _publication=None,
        _failure=None,
        _ended=asyncio.Event(),
    )
    async with asyncio.timeout(10), AsyncExitStack() as stack:
        await Worker._work(worker, stack, None, asyncio.Event())  # type: ignore[arg-type]  # no application
    assert worker._failure is failure
    assert worker.state == "draining"


async def test_a_warehouse_that_is_refused_ends_a_worker_that_still_waits_for_its_broker() -> None:
    """It may have answered late, and a broker may be away for hours."""
    refused, wound_down = Inconsistent("warehouse.clicks has another type"), []

    async def connected(*_: object) -> bool:
        return True

    async def nothing() -> None:
        pass

    async def for_ever() -> None:
        await asyncio.Event().wait()

    async def wind_down() -> None:
        wound_down.append(True)

    worker: Any = SimpleNamespace(
        _connect=connected,
        _host=lambda: SimpleNamespace(start=nothing, stop=nothing),
        _join=for_ever,
        _wind_down=wind_down,
        _failure=refused,
        _ended=asyncio.Event(),
    )
    worker._ended.set()
    with pytest.raises(Inconsistent, match="another type"):
        await Worker.run(worker, asyncio.Event())
    assert wound_down


async def test_a_group_that_refuses_a_worker_is_joined_anew_until_it_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The right to it is taken away and given back: meanwhile the process has other streams to go on with."""
    monkeypatch.setattr(module, "_ASK_AGAIN", 0.0)
    refused = DependencyError("Kafka consumer group", "GroupAuthorizationFailedError('clicks')")
    answers: list[Any] = [refused, refused, ["records"]]
    happened: list[object] = []
    taken = asyncio.Event()

    async def answer(most: int, seconds: float) -> Any:
        if not answers:
            await asyncio.Event().wait()
        if isinstance(given := answers.pop(0), Exception):
            raise given
        return given

    async def rejoin() -> None:
        happened.append(f"joins, and was {worker.state}")

    async def send(value: object) -> None:
        happened.append(value)
        taken.set()

    worker: Any = SimpleNamespace(
        settings=SimpleNamespace(batch_records=10),
        pipeline=SimpleNamespace(generation=7),
        _source=SimpleNamespace(next=answer),
        _channel=SimpleNamespace(send=send),
        _waiting_for_broker=lambda error, failing: happened.append(error),
        _rejoin=rejoin,
        _fenced=False,
    )
    worker._ask_again = partial(Worker._ask_again, worker)
    pumping = asyncio.create_task(Worker._pump(worker, None))  # type: ignore[arg-type]  # no application
    async with asyncio.timeout(10):
        await taken.wait()
    await cancelled(pumping)
    joins = "joins, and was waiting for the broker"
    assert happened == [refused, joins, refused, joins, (7, ["records"])]


@pytest.mark.parametrize(
    ("stopped", "held", "dropped", "fenced"),
    [("", "01", False, False), ("1", "01", False, False), ("1", "0", False, True), ("1", "0", True, False)],
)
async def test_a_partition_that_has_stopped_is_claimed_again_when_somebody_has_set_its_position(
    stopped: str, held: str, dropped: bool, fenced: bool
) -> None:
    """No commit of it is refused. What was dropped meanwhile is claimed again anyway."""

    async def ask() -> set[str]:
        worker.pipeline.generation += dropped
        return set(held)

    worker: Any = SimpleNamespace(
        pipeline=SimpleNamespace(generation=0, held=ask),
        _source=SimpleNamespace(stopped=dict.fromkeys(stopped)),
        _fenced=False,
    )
    await Worker._look_at_stopped(worker)
    assert worker._fenced is fenced
