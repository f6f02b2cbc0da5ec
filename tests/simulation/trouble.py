"""What goes wrong in a run, and when. Each seed has its own few kinds of it, so that rare pairs come up too."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

from tests.simulation.world import TROUBLED, Slot, World

Act = Callable[[World], Awaitable[None]]


def _some(world: World) -> Slot | None:
    alive = [slot for slot in world.alive() if slot.process is not None and not slot.process.frozen]
    return world.chance.choice(alive) if alive else None


async def kill(world: World) -> None:
    """SIGKILL, between any two callbacks of the worker."""
    slot = _some(world)
    if slot is None or slot.process is None:
        return
    process = slot.process

    def now() -> None:
        world.happened["a worker is killed"] += 1
        world.loop.kill(process)

    process.after_steps(world.chance.randrange(1, 400), now)


async def freeze(world: World) -> None:
    """SIGSTOP between any two callbacks, SIGCONT when others have long taken over, or at once."""
    slot = _some(world)
    if slot is None or slot.process is None:
        return
    process, seconds = slot.process, world.chance.choice([0.05, 0.5, 6.0, 20.0, 90.0])

    def now() -> None:
        world.happened["a worker is frozen and goes on"] += 1
        world.loop.freeze(process)
        context = world.loop.world.context.copy()
        world.loop.call_later(seconds, world.loop.thaw, process, context=context)

    process.after_steps(world.chance.randrange(1, 400), now)


async def stop(world: World) -> None:
    """SIGTERM: drain and leave."""
    slot = _some(world)
    if slot is not None and slot.ending is not None:
        world.happened["a worker is told to end"] += 1
        slot.ending.set()


async def rebalance(world: World) -> None:
    """The group is put together anew for no reason that a worker could see."""
    world.happened["a rebalance"] += 1
    world.broker.group.rebalance()


async def database_restarts(world: World) -> None:
    """All connections end; the server is away for a moment, or for a while."""
    world.happened["the database restarts"] += 1
    world.database.stop()
    await asyncio.sleep(world.chance.choice([0.0, 1.0, 10.0]))
    world.database.up = True


async def connections_break(world: World) -> None:
    """One worker's connections to the database, all at once."""
    slot = _some(world)
    if slot is not None and slot.worker is not None:
        world.happened["a worker's connections break"] += 1
        slot.worker.line.cut_all()
        slot.worker.loading.cut_all()


async def store_away(world: World) -> None:
    """The object store does not answer for a while."""
    world.happened["the store is away"] += 1
    world.bucket.trouble.away = True
    await asyncio.sleep(world.chance.choice([1.0, 8.0]))
    world.bucket.trouble.away = False


async def broker_away(world: World) -> None:
    """The broker does not answer for a while."""
    world.happened["the broker is away"] += 1
    before, world.broker.trouble = world.broker.trouble, 1.0
    await asyncio.sleep(world.chance.choice([1.0, 8.0]))
    world.broker.trouble = before


async def slow(world: World) -> None:
    """Everything takes its time."""
    world.happened["everything is slow"] += 1
    before = world.servers.network.slow, world.bucket.trouble.slow, world.broker.slow
    world.servers.network.slow = world.bucket.trouble.slow = world.broker.slow = 1.5
    await asyncio.sleep(6.0)
    world.servers.network.slow, world.bucket.trouble.slow, world.broker.slow = before


async def sweep(world: World) -> None:
    """A sweep to which objects seem old enough."""
    world.happened["a sweep"] += 1
    later = world.chance.choice([timedelta(minutes=11), timedelta(hours=2)])
    await world.sweep(later)


async def load(world: World) -> None:
    """Two loaders more at once."""
    world.happened["loaders race"] += 1
    await asyncio.gather(world.load(), world.load())


async def retention(world: World) -> None:
    """The broker deletes records, also such as nobody has read yet."""
    tp = world.chance.choice(world.partitions)
    for _ in range(20):
        position = world.committed(tp)
        if position is not None and position + 2 <= world.broker.logs[tp].end:
            break
        await asyncio.sleep(0.5)
    else:
        return  # what was never claimed begins where the log does
    log = world.broker.logs[tp]
    least = position + 2 if world.chance.random() < 0.6 else log.first
    first = world.chance.randrange(least, log.end + 1)
    ends = [batch.last + 1 for batch in log.batches if batch.last < first]
    world.happened["retention"] += 1
    world.broker.expire(tp, ends[-1] if ends else log.first)
    if world.chance.random() < 0.5:
        world.broker.group.rebalance()  # whoever claims it next sees the gap first


async def operator(world: World) -> None:
    """``offsets set``: to where it stands (which fences the owner), or ahead with the gap accepted."""
    tp = world.chance.choice(world.partitions)
    position = world.committed(tp)
    if position is None:
        return
    end = world.broker.logs[tp].end
    await world.set_position(tp, world.chance.choice([position, min(position + 2, end - 1)]), gap=True)


ACTS: tuple[Act, ...] = (
    kill, kill, kill, freeze, freeze, stop, rebalance, rebalance, database_restarts, connections_break,
    store_away, broker_away, slow, sweep, load, retention, retention, operator,
)  # fmt: skip


async def trouble(world: World) -> None:
    """Draw the kinds and the times, and let it happen."""
    chance = world.chance
    network, store = world.servers.network, world.bucket.trouble
    network.slow = chance.choice([0.001, 0.02, 0.3])
    network.cuts = chance.choice([0.0, 0.0, 0.003, 0.02])
    network.commit_cuts = chance.choice([0.0, 0.0, 0.1, 0.4])
    store.slow = chance.choice([0.001, 0.05, 0.5])
    store.refused = chance.choice([0.0, 0.0, 0.1, 0.3])
    store.unanswered = chance.choice([0.0, 0.0, 0.1])
    store.late = chance.choice([0.0, 0.0, 0.15])
    world.broker.trouble = chance.choice([0.0, 0.0, 0.02, 0.15])
    world.broker.slow = chance.choice([0.001, 0.05, 0.5])
    kinds = chance.sample(ACTS, chance.randrange(1, 7))
    times = sorted(chance.uniform(0, TROUBLED) for _ in range(chance.choice([0, 2, 4, 6, 10])))
    acting = [world.loop.spawn(_at(world, time, chance.choice(kinds))) for time in times]
    if acting:
        await asyncio.wait(acting)
        for done in acting:
            done.result()


async def _at(world: World, time: float, act: Act) -> None:
    await asyncio.sleep(max(0.0, time - world.loop.time()))
    world.loop.note(f"trouble: {act.__name__}")
    await act(world)
