from __future__ import annotations

import asyncio

import pytest

from streamproc.concurrency import done_before, each, end_if_cancelled


async def test_results_stand_in_the_items_order_and_no_more_than_allowed_are_under_way() -> None:
    under_way = most = 0

    async def work(item: int) -> int:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        for _ in range(item % 5):
            await asyncio.sleep(0)
        under_way -= 1
        return item * 2

    assert await each(work, range(50), at_once=4) == [item * 2 for item in range(50)]
    assert most == 4
    assert await each(work, [], at_once=4) == []


async def test_the_first_failure_is_raised_as_it_is_and_stops_the_others() -> None:
    stopped: list[int] = []

    async def work(item: int) -> None:
        if item == 3:
            raise LookupError("three")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            stopped.append(item)
            raise

    with pytest.raises(LookupError, match="three"):
        await each(work, range(5), at_once=10)
    assert sorted(stopped) == [0, 1, 2, 4]


async def test_cancelling_the_caller_cancels_the_work() -> None:
    started = asyncio.Event()

    async def work(item: int) -> None:
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(each(work, range(3), at_once=2))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_task_that_tries_again_can_be_ended_though_its_cancellation_became_an_error() -> None:
    tries = 0

    async def query() -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            raise OSError("the server gave up the query") from None

    async def stubborn() -> None:
        nonlocal tries
        while True:
            tries += 1
            try:
                await query()
            except OSError as error:
                end_if_cancelled(error)

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert tries == 1


async def test_an_error_of_a_task_that_nobody_cancelled_is_its_own() -> None:
    end_if_cancelled(OSError("unreachable"))


async def test_work_that_is_done_before_the_end_is_done() -> None:
    done: list[str] = []

    async def work() -> None:
        await asyncio.sleep(0)
        done.append("work")

    assert await done_before(work(), asyncio.Event())
    assert done == ["work"]


async def test_work_is_given_up_at_the_end_and_waited_for_until_it_is_gone() -> None:
    ending, begun, gone = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            gone.set()

    waiting = asyncio.create_task(done_before(work(), asyncio.Event(), ending))
    await begun.wait()
    ending.set()
    assert not await waiting
    assert gone.is_set()


async def test_a_failure_of_the_work_is_raised_as_it_is() -> None:
    async def work() -> None:
        raise LookupError("gone")

    with pytest.raises(LookupError, match="gone"):
        await done_before(work(), asyncio.Event())


async def test_cancelling_whoever_waits_for_the_end_cancels_the_work() -> None:
    begun, gone = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            gone.set()

    task = asyncio.create_task(done_before(work(), asyncio.Event()))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gone.is_set()
