from __future__ import annotations

import asyncio
import contextlib
import uuid
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import make_conninfo

from streamproc.errors import ConfigError, DependencyError, Fenced, Inconsistent, LedgerError
from streamproc.ledger import Ledger, migrate
from streamproc.ledger.balance import verify
from streamproc.model import Advance, Claim, Counts, Partition, WrittenObject
from tests.ledger.epochs import P0, P1, P2, advance, nothing, planned, record, written


async def states(ledger: Ledger) -> dict[str, str]:
    async with ledger.database.connection("look") as conn:
        return dict(await (await conn.execute("SELECT key, state FROM streamproc.objects")).fetchall())


async def positions(ledger: Ledger) -> dict[Partition, int | None]:
    return {row.partition: row.position for row in await ledger.status()}


async def test_a_commit_advances_the_position_and_the_next_claim_stands_there(ledger: Ledger) -> None:
    claims = await ledger.claim([P0, P1])
    assert claims[P0].position is None
    part = advance(claims[P0], 9)
    plan = planned(part)
    epoch = record(part, objects=written(plan))
    await ledger.intend(epoch.id, [plan], claims)
    done = await ledger.commit(epoch, nothing)
    assert done.claims == {P0: Claim(P0, claims[P0].fence, claims[P0].token, 9, 9000)}
    assert await states(ledger) == {plan.key: "committed"}
    again = await ledger.claim([P0])
    assert (again[P0].position, again[P0].clock_us) == (9, 9000)
    assert again[P0].fence > claims[P0].fence


async def test_epochs_follow_each_other_under_one_claim(ledger: Ledger) -> None:
    claims = await ledger.claim([P0])
    for through in (4, 5, 99):
        done = await ledger.commit(record(advance(claims[P0], through)), nothing)
        claims |= done.claims
    assert await positions(ledger) == {P0: 99}
    assert [epoch.ranges[0].through for epoch in await ledger.epochs()] == [99, 5, 4]


async def test_what_apply_did_and_the_position_come_together_or_not_at_all(ledger: Ledger) -> None:
    async with ledger.database.connection("prepare") as conn:
        await conn.execute("CREATE TABLE tally (n int CHECK (n < 10))")
    claims = await ledger.claim([P0])

    async def add(conn: Any) -> str:
        await conn.execute("INSERT INTO tally VALUES (1)")
        return "added"

    async def add_and_fail(conn: Any) -> None:
        await conn.execute("INSERT INTO tally VALUES (2)")
        raise RuntimeError("a bug")

    async def violate(conn: Any) -> None:
        await conn.execute("INSERT INTO tally VALUES (3), (11)")

    async def swallow(conn: Any) -> None:
        with contextlib.suppress(psycopg.IntegrityError):
            await conn.execute("INSERT INTO tally VALUES (11)")

    async def end_early(conn: Any) -> None:
        await conn.execute("INSERT INTO tally VALUES (4)")
        await conn.rollback()

    for broken, error in [
        (add_and_fail, RuntimeError),
        (violate, Inconsistent),
        (swallow, Inconsistent),
        (end_early, Inconsistent),
    ]:
        with pytest.raises(error):
            await ledger.commit(record(advance(claims[P0], 9)), broken)
        assert await positions(ledger) == {P0: None}
        assert await ledger.epochs() == []
    done = await ledger.commit(record(advance(claims[P0], 9)), add)
    assert done.result == "added"
    async with ledger.database.connection("look") as conn:
        assert await (await conn.execute("SELECT n FROM tally")).fetchall() == [(1,)]
    assert await positions(ledger) == {P0: 9}


async def test_a_worker_that_lost_its_partition_can_write_nothing(ledger: Ledger, rival: Ledger) -> None:
    claims = await ledger.claim([P0, P1])
    intended = planned(advance(claims[P0], 4))
    await ledger.intend(uuid.uuid4(), [intended], claims)
    await rival.claim([P0])
    assert await states(ledger) == {intended.key: "abandoned"}

    both = [advance(claims[P0], 9), advance(claims[P1], 9)]
    plans = [planned(part) for part in both]
    with pytest.raises(Fenced, match="clicks/0 was claimed again"):
        await ledger.intend(uuid.uuid4(), plans, claims)
    with pytest.raises(Fenced, match="clicks/0 was claimed again"):
        await ledger.commit(record(*both), nothing)
    assert await states(ledger) == {intended.key: "abandoned"}
    assert await positions(ledger) == {P0: None, P1: None}
    assert await ledger.release(list(claims.values())) == 1
    owners = {row.partition: row.owner for row in await ledger.status()}
    assert owners == {P0: "w2", P1: None}


async def test_a_released_claim_is_worth_nothing(ledger: Ledger) -> None:
    claims = await ledger.claim([P0])
    plan = planned(advance(claims[P0], 4))
    await ledger.intend(uuid.uuid4(), [plan], claims)
    assert await ledger.release(list(claims.values())) == 1
    assert await states(ledger) == {plan.key: "abandoned"}
    with pytest.raises(Fenced):
        await ledger.commit(record(advance(claims[P0], 9)), nothing)


async def test_an_epoch_that_does_not_begin_at_the_position_stops_the_worker(ledger: Ledger) -> None:
    claims = await ledger.claim([P0])
    done = await ledger.commit(record(advance(claims[P0], 9)), nothing)
    for position in (None, 5, 12):
        wrong = Claim(P0, done.claims[P0].fence, done.claims[P0].token, position, None)
        with pytest.raises(Inconsistent, match="committed through 9, the epoch begins after"):
            await ledger.commit(record(advance(wrong, 20)), nothing)
    assert await positions(ledger) == {P0: 9}


async def test_objects_that_were_not_intended_or_not_written_stop_the_worker(ledger: Ledger) -> None:
    claims = await ledger.claim([P0])
    part = advance(claims[P0], 9)
    one, two = planned(part, rows=4), planned(part, rows=6)

    unknown = record(part, objects=written(planned(part)))
    with pytest.raises(Inconsistent, match="UPDATE streamproc"):
        await ledger.commit(unknown, nothing)

    forgotten = record(part, objects=written(planned(part)))
    await ledger.intend(forgotten.id, [one, two, forgotten.objects[0].plan], claims)
    with pytest.raises(Inconsistent, match="intended 2 objects more than it wrote"):
        await ledger.commit(forgotten, nothing)

    others = record(part, objects=written(one, two))
    with pytest.raises(Inconsistent, match="0 rows instead of 2"):
        await ledger.commit(others, nothing)
    assert set((await states(ledger)).values()) == {"intended"}


async def test_intending_again_changes_nothing_and_a_key_of_another_epoch_is_refused(ledger: Ledger) -> None:
    claims = await ledger.claim([P0])
    plan = planned(advance(claims[P0], 9))
    epoch = uuid.uuid4()
    await ledger.intend(epoch, [plan], claims)
    await ledger.intend(epoch, [plan], claims)
    with pytest.raises(Inconsistent, match="a key is taken"):
        await ledger.intend(uuid.uuid4(), [plan], claims)
    with pytest.raises(Inconsistent, match="unclaimed partitions"):
        await ledger.intend(epoch, [plan], {})
    assert await states(ledger) == {plan.key: "intended"}


async def test_a_position_may_be_as_long_as_a_kinesis_sequence_number(ledger: Ledger) -> None:
    claims = await ledger.claim([P0, P1])
    far = 2**186 - 1
    jump = replace(advance(claims[P0], far - 10, records=3, accepted=3), clock_us=1)
    step = advance(claims[P1], 5)
    plans = [planned(jump), planned(step)]
    epoch = record(jump, step, objects=written(*plans))
    await ledger.intend(epoch.id, plans, claims)
    done = await ledger.commit(epoch, nothing)
    await ledger.commit(record(replace(advance(done.claims[P0], far), clock_us=1)), nothing)
    assert await positions(ledger) == {P0: far, P1: 5}
    assert {one.plan.through async for one in ledger.manifest()} == {far - 10, 5}


async def test_the_clock_never_goes_back(ledger: Ledger) -> None:
    claims = await ledger.claim([P0])
    for through, clock in ((4, 500), (8, 300), (9, None)):
        part = advance(claims[P0], through)
        done = await ledger.commit(
            record(type(part)(part.claim, part.after, through, clock, part.counts)), nothing
        )
        claims |= done.claims
        assert done.claims[P0].clock_us == 500
    assert (await ledger.claim([P0]))[P0].clock_us == 500


async def test_streams_do_not_see_each_other(ledger: Ledger, postgres: str) -> None:
    claims = await ledger.claim([P0])
    async with Ledger(postgres, "orders", "w1") as orders:
        others = await orders.claim([P0])
        await orders.commit(record(advance(others[P0], 99)), nothing)
        assert [row.position for row in await orders.status()] == [99]
    await ledger.commit(record(advance(claims[P0], 4)), nothing)
    assert await positions(ledger) == {P0: 4}


# the arithmetic before the database


CLAIM = Claim(P0, 1, str(uuid.uuid4()), 9, None)

counts = st.builds(Counts, *[st.integers(0, 3)] * 5)


@given(counts, st.integers(-2, 12))
def test_an_epoch_balances_when_its_records_are_all_accounted_for(counts: Counts, length: int) -> None:
    part = Advance(CLAIM, 9, 9 + length, None, counts)
    fine = (
        length > 0
        and counts.records <= length
        and counts.records == sum((counts.accepted, counts.filtered, counts.rejected, counts.duplicate))
    )
    try:
        verify(record(part))
    except Inconsistent:
        assert not fine
    else:
        assert fine


def refused(*parts: Any, objects: tuple[WrittenObject, ...] = ()) -> str:
    with pytest.raises(Inconsistent) as caught:
        verify(record(*parts, objects=objects))
    return str(caught.value)


def test_rows_of_objects_must_be_all_accepted_and_all_rejected_records() -> None:
    part = advance(CLAIM, 29, records=20, accepted=12, rejected=8)
    events, rejects = planned(part), planned(part, "rejects")
    verify(record(part, objects=written(events, rejects)))
    verify(record(part, objects=written(planned(part, rows=5), planned(part, rows=7), rejects)))
    verify(record(part))
    assert "11 rows in events objects, 12 accepted" in refused(part, objects=written(planned(part, rows=11)))
    assert "7 rows in rejects objects, 8 rejected" in refused(
        part, objects=written(events, planned(part, "rejects", rows=7))
    )
    second = advance(Claim(P1, 1, CLAIM.token, 9, None), 19)
    assert "clicks/1: 0 rows in events objects, 10 accepted" in refused(part, second, objects=written(events))


def test_an_object_must_cover_the_range_of_its_partition_in_the_epoch() -> None:
    part = advance(CLAIM, 29)
    assert "is not in the epoch" in refused(
        part, objects=written(planned(advance(Claim(P2, 1, "", 9, None), 29)))
    )
    assert "covers (9, 28]" in refused(part, objects=written(planned(advance(CLAIM, 28))))
    plan = planned(part)
    assert "writes an object twice" in refused(part, objects=written(plan, plan))
    assert "advances a partition twice" in refused(part, part)


# the schema


async def test_ten_workers_may_migrate_at_once(postgres: str) -> None:
    async def migrated(number: int) -> int:
        async with Ledger(postgres, "clicks", f"w{number}") as ledger:
            return await ledger.migrate()

    *others, first = sorted(await asyncio.gather(*map(migrated, range(10))))
    assert others == [0] * 9
    assert first >= 1


async def test_who_reads_the_ledger_for_long_holds_up_its_migration_and_nobody_else(
    postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "_PATIENCE", "50ms")
    found = migrate.migrations()
    async with Ledger(postgres, "clicks", "w1") as ledger:
        with monkeypatch.context() as before:
            before.setattr(migrate, "migrations", lambda: found[:3])
            assert await ledger.migrate() == 3
        with psycopg.connect(postgres, options="-c idle_in_transaction_session_timeout=10s") as backup:
            backup.execute("SELECT count(*) FROM streamproc.objects")
            with pytest.raises(DependencyError, match=r"ledger: is to be migrated, .*50ms.*pg_stat_activity"):
                await ledger.migrate()
            assert (await ledger.claim([P0])).keys() == {P0}  # as a worker of the version before does
        assert await ledger.migrate() == len(found) - 3


async def test_a_schema_of_a_newer_release_is_refused(ledger: Ledger) -> None:
    assert await ledger.migrate() == 0
    async with ledger.database.connection("prepare") as conn:
        await conn.execute(
            "INSERT INTO streamproc.migrations (number, name) VALUES (9999, 'from_the_future')"
        )
    with pytest.raises(LedgerError, match="schema is version 9999 and this release knows"):
        await ledger.migrate()


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
async def test_a_database_that_cannot_hold_every_text_is_refused(postgres: str, encoding: str) -> None:
    name = f"other_{uuid.uuid4().hex[:12]}"
    create = f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"
    with psycopg.connect(postgres, autocommit=True) as server:
        server.execute(create.encode())
        try:
            async with Ledger(make_conninfo(postgres, dbname=name), "clicks", "w1") as ledger:
                with pytest.raises(
                    ConfigError, match=f"ledger: the database {name} is encoded in {encoding}"
                ):
                    await ledger.migrate()
        finally:
            server.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


async def test_a_ledger_that_was_not_migrated_says_so(postgres: str) -> None:
    async with Ledger(postgres, "clicks", "w1") as ledger:
        with pytest.raises(LedgerError, match="streamproc"):
            await ledger.claim([P0])
        await ledger.migrate()
        assert (await ledger.claim([P0])).keys() == {P0}


async def test_a_ledger_that_is_not_open_says_so(postgres: str) -> None:
    with pytest.raises(DependencyError, match="not connected"):
        await Ledger(postgres, "clicks", "w1").claim([P0])
