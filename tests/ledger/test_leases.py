"""Who takes which shard: decided without a database, then agreed on in a real one."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc.errors import Inconsistent, LedgerError
from streamproc.leases import Board, Mark, Report, ShardInfo, ShardRow, balance
from streamproc.ledger import NewPosition
from streamproc.ledger.shards import Shards
from streamproc.model import Partition

STREAM = "s"


def board(holders: dict[str, str | None], workers: set[str]) -> Board:
    rows = [ShardRow(shard, ready=True, finished=False, holder=holder) for shard, holder in holders.items()]
    return Board(rows, frozenset(workers))


@given(st.integers(1, 12), st.integers(1, 5), st.data())
def test_however_it_begins_the_shards_end_up_evenly_with_living_workers(shards, workers, data):
    names = [f"w{n}" for n in range(workers)]
    holders: dict[str, str | None] = {
        f"shard-{n}": data.draw(st.sampled_from([*names, None])) for n in range(shards)
    }
    wanted: dict[str, str] = {}
    for _ in range(4 * (shards + workers)):  # every worker looks in turn, as heartbeats do
        for me in names:
            for shard, asker in list(wanted.items()):
                if holders[shard] == me:
                    holders[shard] = asker
                    del wanted[shard]
            rows = [
                ShardRow(shard, ready=True, finished=False, holder=holder, wanted_by=wanted.get(shard))
                for shard, holder in holders.items()
            ]
            move = balance(Board(rows, frozenset(names)), me)
            assert all(holders[shard] is None for shard in move.take)
            assert all(holders[shard] not in {None, me} for shard in move.ask)
            holders |= dict.fromkeys(move.take, me)
            wanted |= {shard: me for shard in move.ask if shard not in wanted}
    counts = Counter(holders.values())
    assert counts[None] == 0 and not wanted
    assert max(counts.values()) - min(counts[name] for name in names) <= 1


def test_nobody_moves_when_all_is_even():
    even = board({"a": "w1", "b": "w2", "c": "w1"}, {"w1", "w2"})
    for me in ("w1", "w2"):
        assert balance(even, me).take == balance(even, me).ask == []


def test_shards_that_are_finished_or_wait_for_their_parents_are_nobodys_business():
    rows = [
        ShardRow("parent", ready=True, finished=True),
        ShardRow("child", ready=False, finished=False),
    ]
    assert balance(Board(rows, frozenset({"w1"})), "w1").take == []


# -- in the database ---------------------------------------------------------------------------------------


@pytest.fixture
def shards(ledger):
    """Two workers' views of one stream; leases hold for an hour."""
    return [Shards(ledger.database, "clicks", STREAM, name, 3600.0) for name in ("w1", "w2")]


@pytest.fixture
def hasty(ledger):
    """A worker whose leases are over at once."""
    return Shards(ledger.database, "clicks", STREAM, "hasty", 0.0)


PARENTS = [ShardInfo("a"), ShardInfo("b")]
CHILDREN = [ShardInfo("c", ("a", "b"))]


async def taken(store: Shards, *names: str) -> dict[str, Report]:
    await store.take(names)
    held = (await store.beat({})).held_by(store.worker)
    return {shard: Report(lease) for shard, lease in held.items()}


async def test_a_shard_is_taken_by_one_worker_only(shards):
    one, two = shards
    await one.found(PARENTS, "earliest", None)
    mine = await taken(one, "a", "b")
    theirs = await taken(two, "a", "b")
    assert (set(mine), set(theirs)) == ({"a", "b"}, set())
    assert (await two.beat({})).workers == {one.worker, two.worker}


async def test_a_lease_that_ran_out_is_taken_by_another_and_its_holder_learns_it(shards, hasty):
    one, _ = shards
    await one.found(PARENTS, "earliest", None)
    before = await taken(hasty, "a")
    assert before == {}, "it ran out before it was looked at"
    after = await taken(one, "a")
    assert set(after) == {"a"}
    board = await hasty.beat({"a": Report(1, Mark(5, 50))})
    assert board.held_by(hasty.worker) == {}
    assert (await one.newest("a")).position == -1, "what a former holder counted is not kept"


async def test_a_shard_is_handed_to_the_worker_that_asked_for_it(shards):
    one, two = shards
    await one.found(PARENTS, "earliest", None)
    await two.beat({})
    mine = await taken(one, "a", "b")
    await two.ask(["a"])
    row = next(row for row in (await one.beat(mine)).shards if row.id == "a")
    assert row.wanted_by == two.worker
    await one.hand_over({"a": mine["a"].lease})
    board = await two.beat({})
    assert (set(board.held_by(two.worker)), set(board.held_by(one.worker))) == ({"a"}, {"b"})


async def test_a_shard_handed_over_to_a_dead_worker_is_free(shards, hasty):
    one, _ = shards
    await one.found(PARENTS, "earliest", None)
    mine = await taken(one, "a")
    await hasty.ask(["a"])
    await one.hand_over({"a": mine["a"].lease})
    assert next(row for row in (await one.beat({})).shards if row.id == "a").holder is None


async def test_two_processes_of_one_name_are_two_workers(ledger):
    one, two = (Shards(ledger.database, "clicks", STREAM, "w1", 3600.0) for _ in range(2))
    await one.found(PARENTS, "earliest", None)
    assert set(await taken(one, "a")) == {"a"}
    assert await taken(two, "a") == {}


async def test_a_child_waits_until_both_parents_are_committed_to_their_ends(shards, ledger):
    one, _ = shards
    await one.found(PARENTS, "earliest", None)
    await one.found([*PARENTS, *CHILDREN], "earliest", None)
    mine = await taken(one, "a", "b")

    async def ready(**ends: int) -> bool:
        reports = {shard: Report(each.lease, last_position=ends.get(shard)) for shard, each in mine.items()}
        return next(row for row in (await one.beat(reports)).shards if row.id == "c").ready

    assert not await ready()
    assert not await ready(a=-1), "one parent was empty, the other is not read to its end"
    assert not await ready(b=9), "read to its end, and not committed"
    await ledger.set_position(NewPosition(Partition(STREAM, "b"), 8, accept_gap=True, note="test"))
    mine = await taken(one, "b") | {"a": mine["a"]}  # setting a position takes the lease away
    assert not await ready(b=9)
    await ledger.set_position(NewPosition(Partition(STREAM, "b"), 9, accept_gap=True, note="test"))
    mine = await taken(one, "b") | {"a": mine["a"]}
    assert await ready(b=9)


async def test_a_shard_that_nothing_was_made_of_holds_no_clock_back_for_longer_than_an_hour(shards, ledger):
    one, _ = shards
    await one.found(PARENTS, "earliest", None)
    mine = await taken(one, "a", "b")
    await one.beat({"a": Report(mine["a"].lease, last_position=-1)})

    async def followed() -> list[str]:
        found = await ledger.shards()
        return sorted(partition.id for partition, shard in found.items() if shard.followed)

    async def let_go(minutes: int) -> None:
        async with ledger.database.connection("let go") as conn:
            await conn.execute(
                "UPDATE streamproc.shards SET expires_at = clock_timestamp() - %s * interval '1 minute'",
                [minutes],
            )

    await let_go(59)
    assert await followed() == []
    await let_go(61)
    assert await followed() == ["a"], "b has not come to its end"
    await one.found([*PARENTS, *CHILDREN], "earliest", None)
    assert await followed() == [], "c has had no event"


@pytest.mark.parametrize("seed", range(5))
async def test_what_shards_wait_for_and_what_follows_them_is_what_a_loop_finds(seed, ledger):
    """Of two sources whose shards have the same names; some parents are gone, and nobody knows them."""
    chance = random.Random(seed)
    names = [f"shard-{n}" for n in range(12)]
    rows = [
        (source, name, chance.sample(["gone", *names], chance.randint(0, 2)), *state)
        for source in (STREAM, "other")
        for name in names
        for state in [(chance.choice([None, -1, 9]), chance.choice([None, 5, 9]), chance.choice([None, 1]))]
    ]
    async with ledger.database.connection("make them up") as conn:
        for source, name, parents, last, position, clock in rows:
            await conn.execute(
                "INSERT INTO streamproc.shards"
                " (stream, source, partition, parents, last_position, expires_at, found_at)"
                " VALUES ('clicks', %s, %s, %s, %s, now() - interval '1 day', now())",
                [source, name, parents, last],
            )
            await conn.execute(
                "INSERT INTO streamproc.shard_marks (stream, source, partition, position, inclusive, marked_at)"
                " VALUES ('clicks', %s, %s, -1, true, now())",
                [source, name],
            )
            if position is None and clock is None:
                continue  # nobody has claimed it
            await conn.execute(
                "INSERT INTO streamproc.partitions"
                " (stream, source, partition, position, fence, token, clock_us, claimed_at, updated_at)"
                " VALUES ('clicks', %s, %s, %s, 1, gen_random_uuid(), %s, now(), now())",
                [source, name, position, clock],
            )

    ready, followed = {}, {}
    for source in (STREAM, "other"):
        here = {name: rest for of, name, *rest in rows if of == source}
        finished = {
            name: last is not None and last <= (-1 if position is None else position)
            for name, (_, last, position, _) in here.items()
        }
        for name, (parents, *_) in here.items():
            ready[source, name] = all(finished.get(parent, True) for parent in parents)
            made = [each for each, (of, *_) in here.items() if name in of]
            begun = all(finished[each] or here[each][3] is not None for each in made)
            followed[source, name] = finished[name] and begun
        board = await Shards(ledger.database, "clicks", source, "w1", 3600.0).beat({})
        assert [row.id for row in board.shards] == sorted(names)
        assert {row.id: row.finished for row in board.shards} == finished
        assert {(source, row.id): row.ready for row in board.shards} == {
            (source, name): ready[source, name] for name in names
        }
    found = await ledger.shards()
    assert {tuple(partition): shard.followed for partition, shard in found.items()} == followed


async def test_a_stream_begins_where_asked_and_later_shards_with_their_first_record(shards):
    one, two = shards
    await one.found(PARENTS, "timestamp", 1_700_000_000_000)
    await two.found([*PARENTS, *CHILDREN], "latest", None)
    assert (await one.find("a", None)).mark == Mark(-1, None, True, 1_700_000_000_000)
    assert (await one.find("c", None)).mark == Mark(-1, None, True, None)


async def test_latest_is_the_moment_at_which_the_stream_was_first_seen(shards):
    one, _ = shards
    begin = await one.now_ms()
    await one.found(PARENTS, "latest", None)
    since = (await one.find("a", None)).mark.since_ms
    assert begin <= since <= await one.now_ms()


async def test_the_origin_is_bound_to_one_record_by_whoever_finds_it_first(shards):
    one, two = shards
    await one.found(PARENTS, "earliest", None)
    assert await one.settle("a", -1, 100) == Mark(-1, 100, True)
    assert await two.settle("a", -1, 200) == Mark(-1, 100, True)


async def test_the_newest_mark_before_a_position_leads_to_it(shards):
    one, _ = shards
    await one.found(PARENTS, "earliest", None)
    await one.settle("a", -1, 100)
    mine = await taken(one, "a")
    lease = mine["a"].lease
    sequence = 49590338271490256608559692538361571095921575989136588898
    await one.beat({"a": Report(lease, Mark(10, sequence))})
    await one.beat({"a": Report(lease, Mark(20, sequence + 7))})
    assert (await one.find("a", 9)).mark == Mark(-1, 100, True)
    assert (await one.find("a", 19)).mark == Mark(10, sequence)
    assert (await one.find("a", 20)).mark == Mark(20, sequence + 7)
    assert (await one.before("a", sequence + 7)).position == 10, "the mark is behind that record"
    assert (await one.newest("a")).position == 20


async def test_records_that_were_counted_differently_are_noticed(shards):
    one, _ = shards
    await one.found(PARENTS, "earliest", None)
    mine = await taken(one, "a")
    await one.beat({"a": Report(mine["a"].lease, Mark(10, 1000))})
    await one.beat({"a": Report(mine["a"].lease, Mark(10, 1000))})
    with pytest.raises(Inconsistent, match="counted differently"):
        await one.beat({"a": Report(mine["a"].lease, Mark(10, 1001))})


async def test_a_position_that_nobody_counted_needs_a_mark_beyond_all_others(shards, ledger):
    one, _ = shards
    await one.found(PARENTS, "earliest", None)
    mine = await taken(one, "a")
    await one.beat({"a": Report(mine["a"].lease, Mark(10, 1000))})
    partition = Partition(STREAM, "a")
    with pytest.raises(LedgerError, match="got further"):
        await ledger.set_position(
            NewPosition(partition, 10, accept_gap=True, note="gap", mark=Mark(10, 5000, True))
        )
    await ledger.set_position(
        NewPosition(partition, 11, accept_gap=True, note="gap", mark=Mark(11, 5000, True))
    )
    assert (await one.find("a", 11)).mark == Mark(11, 5000, True)
    assert "a" not in (await one.beat({})).held_by(one.worker), "its holder counts no further"


async def test_marks_are_thinned_but_for_those_that_are_needed(shards, ledger):
    one, _ = shards
    await one.found(PARENTS, "earliest", None)
    mine = await taken(one, "a")
    for position in range(10, 60, 10):
        await one.beat({"a": Report(mine["a"].lease, Mark(position, position * 100))})
    await ledger.set_position(NewPosition(Partition(STREAM, "a"), 35, accept_gap=True, note="test"))
    await one.thin(0.0)
    assert (await one.find("a", 35)).mark == Mark(30, 3000)
    assert (await one.newest("a")).position == 50, "not committed yet: it may be needed"
    with pytest.raises(Inconsistent, match="no mark"):
        await one.find("a", 29)


async def test_one_worker_at_a_time_thins_out_the_marks(shards, ledger):
    one, two = shards
    await one.found(PARENTS, "earliest", None)
    mine = await taken(one, "a")
    for position in (10, 20):
        await one.beat({"a": Report(mine["a"].lease, Mark(position, position * 100))})
    await ledger.set_position(NewPosition(Partition(STREAM, "a"), 15, accept_gap=True, note="test"))
    async with ledger.database.transaction("hold the rows of the first one") as conn:
        await conn.execute("SELECT FROM streamproc.shard_marks FOR UPDATE")
        thinning = asyncio.create_task(one.thin(0.0))
        await until(
            ledger,
            "SELECT FROM pg_locks JOIN pg_database AS d ON d.oid = database"
            " WHERE locktype = 'advisory' AND datname = current_database()",
        )
        await two.thin(0.0)
        assert not thinning.done(), "it waits for the rows, and the second one has left them to it"
    await thinning
    assert await one.oldest("a") == 10


async def until(ledger, question: str) -> None:
    """Ask until there is a row."""
    async with asyncio.timeout(20), ledger.database.connection("look") as conn:
        while await (await conn.execute(question)).fetchone() is None:
            pass  # each question takes long enough
