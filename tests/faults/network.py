"""A worker in a network of its own (a Linux network namespace), whose only cable is pulled and plugged in again.

Nothing is refused and nothing is reset meanwhile: packets vanish, as they do when a switch dies. What
listens on this machine's loopback is not to be seen from the other network, so a relay (``relay.py``) stands
on either side of the cable.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

from tests.faults.bench import SESSION_TIMEOUT
from tests.faults.stage import PARTITIONS, Firing, Stage
from tests.faults.world import CAP_SYS_ADMIN, World, lacks, went_on


@dataclass(frozen=True)
class Network:
    """A namespace at the end of a cable. ``here`` and ``there``: the addresses of its two ends."""

    name: str
    here: str
    there: str

    @property
    def cable(self) -> str:
        """Our end."""
        return f"{self.name}h"

    def pull(self) -> None:
        """From now on packets vanish."""
        _ip("link", "set", self.cable, "down")

    def plug_in(self) -> None:
        """And arrive again."""
        _ip("link", "set", self.cable, "up")


@asynccontextmanager
async def network(chance: random.Random) -> AsyncIterator[Network]:
    """A new namespace with a cable to it; taken down at the end."""
    number = chance.randrange(1, 2**14 - 1)  # of the /30 networks in 10.77.0.0/16
    first = number * 4
    here, there = (f"10.77.{(first + n) >> 8}.{(first + n) & 255}" for n in (1, 2))
    net = Network(f"sp{number}", here, there)
    _ip("netns", "add", net.name)
    try:
        _ip("link", "add", net.cable, "type", "veth", "peer", "name", "cable", "netns", net.name)
        _ip("addr", "add", f"{here}/30", "dev", net.cable)
        _ip("link", "set", net.cable, "up")
        _ip("-n", net.name, "addr", "add", f"{there}/30", "dev", "cable")
        _ip("-n", net.name, "link", "set", "cable", "up")
        _ip("-n", net.name, "link", "set", "lo", "up")
        yield net
    finally:
        _ip("netns", "delete", net.name)  # and with it the cable


@asynccontextmanager
async def relay(*where: str, within: str | None = None) -> AsyncIterator[None]:
    """A relay process for each ``listen>connect`` address pair, in the namespace ``within``."""
    enter = ["ip", "netns", "exec", within] if within else []
    process = await asyncio.create_subprocess_exec(
        *enter, sys.executable, Path(__file__).with_name("relay.py"), *where, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        await asyncio.wait_for(process.stdout.readline(), 60)
        yield
    finally:
        process.kill()
        await process.wait()


async def cut_off(stage: Stage, chance: random.Random) -> tuple[Firing, float]:
    """A worker with partitions and data in flight is cut off for longer than the session timeout, and comes back."""
    postgres = conninfo_to_dict(stage.site.ledger)
    socket = f"{postgres['host']}/.s.PGSQL.5432"
    port = stage.site.broker.rpartition(":")[2]
    async with (
        network(chance) as net,
        relay(f"{net.here}:{port}>127.0.0.1:{port}", f"{net.here}:5432>{socket}"),
        # The broker calls itself 127.0.0.1 to everybody.
        relay(f"127.0.0.1:{port}>{net.here}:{port}", within=net.name),
    ):
        url = f"postgresql://{postgres['user']}@{net.here}:5432/{postgres['dbname']}?sslmode=disable&gssencmode=disable"
        await stage.feed()
        stage.start("far", netns=net.name, STREAMPROC_LEDGER=url, STREAMPROC_WAREHOUSE=url)
        stage.start("near")
        await stage.until(lambda: stage.owned_by("far") and stage.owned_by("near"), "both have partitions")
        begin = time.time()
        await stage.until(lambda: len(stage.progressed_since(begin)) == PARTITIONS, "all are committed")
        held = stage.owned_by("far")
        net.pull()
        at = time.time()
        recovery = await went_on(stage, at)
        await stage.until(lambda: held <= stage.claimed_since(at, "far"), "its partitions are claimed")
        away = SESSION_TIMEOUT + chance.uniform(1, 10)
        await asyncio.sleep(max(0.0, at + away - time.time()))  # the fault itself: for how long
        net.plug_in()
        back = time.time()
        await stage.until(
            lambda: stage.claimed_since(back, "near") & stage.owned_by("far"), "it is back", 120
        )
        await stage.drain()  # the workers end before the cable goes
        return Firing("network", "cut off", "far", at, 1), recovery


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


NETWORK = [World("a worker is cut off from the network", cut_off, missing=lacks(CAP_SYS_ADMIN, "ip"))]
