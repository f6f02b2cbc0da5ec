"""The command of a replay and its worker processes: who tells whom to end, and what is said of how they did."""

from __future__ import annotations

import asyncio
import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from streamproc.errors import LedgerError
from streamproc.runtimes.replay import run as module
from streamproc.runtimes.replay.work import Unfinishable

SETTINGS: Any = SimpleNamespace(worker="w", log=None)
REPLAY: Any = SimpleNamespace(name="fix", stream="clicks", positions=10, left=4, processed=False)


async def test_a_worker_ends_when_its_command_says_so_and_not_by_the_same_key_a_second_time() -> None:
    """A terminal sends Ctrl-C to the command and to its workers; the command then tells these to end."""
    ending, before = asyncio.Event(), signal.getsignal(signal.SIGINT)
    try:
        module._listen(ending)
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0)
        assert not ending.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(10):
            await ending.wait()
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGINT, before)


async def test_a_replay_is_ended_also_while_its_ledger_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[Any] = []
    replays: Any = None

    async def away(*_: object) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()

    monkeypatch.setattr(module, "_LOOK_EVERY", 0.0)
    monkeypatch.setattr(module, "still_open", away)
    monkeypatch.setattr(module._Crew, "fill", lambda *_: None)
    monkeypatch.setattr(module._Crew, "end", lambda self: ended.append(self.replay))
    with pytest.raises(LedgerError, match=r"ended with 4 positions left; .*--into fix` goes on"):
        async with asyncio.timeout(60):
            await module.process(SETTINGS, replays, REPLAY, 2, lambda now: None)
    assert ended == [REPLAY]


@pytest.mark.parametrize(
    ("failure", "advice"),
    [
        (Unfinishable("5 offsets are gone"), "`streamproc replay discard fix`, and replay what"),
        (LedgerError("something else"), "`streamproc replay --into fix` goes on where it was"),
    ],
)
def test_what_cannot_be_gone_on_with_is_to_be_discarded(
    monkeypatch: pytest.MonkeyPatch, failure: Exception, advice: str
) -> None:
    async def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(module, "configure_logging", lambda log: None)
    monkeypatch.setattr("os.nice", lambda more: 0)
    monkeypatch.setattr(module, "_work", fail)
    with pytest.raises(SystemExit) as ended:
        module.worker_process(SETTINGS, "clicks", "fix", "w-replay-1")
    crew = module._Crew(SETTINGS, REPLAY)
    crew._processes = [SimpleNamespace(name="w-replay-1", exitcode=ended.value.code)]  # type: ignore[list-item]
    with pytest.raises(LedgerError) as told:
        crew.fill(1)
    assert advice in str(told.value)
