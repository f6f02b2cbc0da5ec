"""Failpoints: off and free unless armed; armed, they fire at the hit that was asked for and say so."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import timeit
from collections.abc import Iterable
from pathlib import Path

import pytest

from streamproc import failpoints
from streamproc.errors import ConfigError, DependencyError
from streamproc.failpoints import POINTS, FailpointError, Failpoints

PACKAGE = Path(failpoints.__file__).parent


def test_every_point_is_in_the_code_once_and_again_where_another_backend_has_it() -> None:
    spark = (
        PACKAGE / "runtimes" / "spark"
    )  # a job commits by steps of its own, which have the service's names
    found = named_in(path for path in PACKAGE.rglob("*.py") if spark not in path.parents)
    twice = ["seek.done", "load.committed"]  # beside Kafka's Kinesis', beside PostgreSQL's Redshift's
    assert sorted(found) == sorted([*POINTS, *twice])
    again = named_in(spark.glob("*.py"))
    assert set(again) <= set(POINTS)
    assert len(set(again)) == len(again) > 0


def named_in(paths: Iterable[Path]) -> list[str]:
    text = "\n".join(path.read_text() for path in paths)
    return re.findall(r'failpoint(?:_when_waiting)?\("([^"]+)"\)', text)


def test_unarmed_a_point_is_an_empty_function() -> None:
    assert failpoints.armed is None
    calls = 100_000
    best = min(timeit.repeat(lambda: failpoints.failpoint("tell"), number=calls, repeat=5)) / calls
    assert best < 2e-6, "an epoch has some twenty of them: not even a tenth of a millisecond"


async def test_it_fires_at_its_hit_once_and_notes_what_was_in_flight(tmp_path: Path) -> None:
    log = tmp_path / "fired"
    points = Failpoints("put.first=raise@3;tell=unavailable", str(log))
    points.watch(lambda: 17)
    points.hit("put.first")
    points.hit("put.last")
    points.hit("put.first")
    with pytest.raises(FailpointError):
        points.hit("put.first")
    points.hit("put.first")
    with pytest.raises(DependencyError):
        points.hit("tell")
    first, second = map(json.loads, log.read_text().splitlines())
    assert (first["point"], first["action"], first["hit"]) == ("put.first", "raise", 3)
    assert (first["uncommitted"], first["pid"]) == (17, os.getpid())
    assert (second["point"], second["action"]) == ("tell", "unavailable")


async def test_cancel_cancels_the_task_that_is_at_the_point() -> None:
    points = Failpoints("intend.before=cancel", None)

    async def work() -> str:
        points.hit("intend.before")
        await asyncio.sleep(0)
        return "done"

    task = asyncio.create_task(work())
    await asyncio.wait({task})
    assert task.cancelled()


async def test_when_waiting_it_fires_after_the_request_went_out() -> None:
    """The order in which COMMIT is sent, the point is hit, and the answer comes."""
    points = Failpoints("commit.sent=cancel", None)
    order: list[str] = []
    received = asyncio.Event()

    async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        order.append((await reader.read(100)).decode())
        writer.close()
        received.set()

    listener = await asyncio.start_server(server, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname()[:2])

    async def client() -> None:
        points.hit_when_waiting("commit.sent")
        writer.write(b"COMMIT")
        try:
            await reader.read()
        except asyncio.CancelledError:
            order.append("cancelled")

    async with listener:
        await client()
        await received.wait()
        writer.close()
        await writer.wait_closed()
    assert sorted(order) == ["COMMIT", "cancelled"], "sent, although the task was cancelled"


def test_kill_ends_the_process_at_the_point_and_the_log_survives(tmp_path: Path) -> None:
    log = tmp_path / "fired"
    code = "from streamproc.failpoints import failpoint; failpoint('tell'); print('here'); failpoint('tell')"
    environment = os.environ | {
        "STREAMPROC_FAILPOINTS": "tell=kill@2",
        "STREAMPROC_FAILPOINTS_LOG": str(log),
        "STREAMPROC_WORKER": "victim",
        "PYTHONPATH": str(PACKAGE.parent),
    }
    run = [sys.executable, "-u", "-c", f"import asyncio\nasync def go():\n  {code}\nasyncio.run(go())"]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "here\n")
    assert json.loads(log.read_text())["worker"] == "victim"


def test_every_mistake_of_the_variable_is_reported() -> None:
    with pytest.raises(ConfigError) as raised:
        Failpoints("put.frist=kill;tell=explode;tell=kill@0", None)
    assert len(raised.value.mistakes) == 3
