from __future__ import annotations

import asyncio
import traceback
from typing import Any

import psycopg
import pytest

from streamproc.database import Database
from streamproc.errors import ConfigError, DependencyError, Inconsistent, LedgerError

PASSWORD = "hunter2-is-my-password"


@pytest.mark.parametrize(
    "conninfo",
    [
        f"postgresql://me:{PASSWORD}@127.0.0.1:1/db",
        f"host=127.0.0.1 port=1 user=me password={PASSWORD} dbname=db",
        f"postgresql://me:{PASSWORD}@no-such-host.invalid/db",
    ],
)
async def test_an_unreachable_database_is_named_without_its_password(
    conninfo: str, caplog: pytest.LogCaptureFixture
) -> None:
    database = Database(conninfo, "test")
    with pytest.raises(DependencyError, match="connect: ") as caught:
        await database.open()
    told = (
        "".join(traceback.format_exception(caught.value)) + caplog.text + repr(database) + repr(caught.value)
    )
    assert PASSWORD not in told
    assert "/db" in str(caught.value)


@pytest.mark.parametrize("conninfo", [f"postgresql//me:{PASSWORD}@host/db", f"password={PASSWORD} nonsense"])
def test_a_connection_string_that_cannot_be_read_is_not_shown_with_its_password(conninfo: str) -> None:
    with pytest.raises(ConfigError, match="is not a PostgreSQL URL") as caught:
        Database(conninfo, "test")
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))


async def test_a_connection_that_is_cut_is_a_dependency_and_the_next_one_works(postgres: str) -> None:
    async with Database(postgres, "test") as database:
        with pytest.raises(DependencyError, match="work: "):
            async with database.transaction("work") as conn:
                cut(postgres, conn.info.backend_pid)
                await conn.execute("SELECT 1")
        async with database.connection("look") as conn:
            assert await (await conn.execute("SELECT 1")).fetchone() == (1,)


@pytest.mark.parametrize("way", ["connection", "transaction"])
async def test_a_server_that_only_reads_is_waited_for_on_another_connection(postgres: str, way: str) -> None:
    """As after a failover: the connection leads to the primary of before, the next one to that of now."""
    async with Database(postgres, "test", size=1) as database:
        async with database.connection("demote") as conn:
            before = conn.info.backend_pid
            await conn.execute("SET default_transaction_read_only = on")
        with pytest.raises(DependencyError, match=r"work: .*read-only.*primary"):
            async with getattr(database, way)("work") as conn:
                await conn.execute("CREATE TABLE t (n int)")
        async with database.transaction("work") as conn:
            assert conn.info.backend_pid != before
            await conn.execute("CREATE TABLE t (n int)")


async def test_a_process_that_was_frozen_in_a_transaction_may_try_again(postgres: str) -> None:
    async with Database(postgres, "test") as database:
        with pytest.raises(DependencyError, match="idle-in-transaction"):
            async with database.transaction("work") as conn:
                await conn.execute("CREATE TABLE t (n int)")
                await conn.execute("SET LOCAL idle_in_transaction_session_timeout = '20ms'")
                until_gone(postgres, conn.info.backend_pid)
                await conn.execute("SELECT 1")
        async with database.transaction("work") as conn:
            await conn.execute("CREATE TABLE t (n int)")


async def test_connections_that_died_while_idle_are_not_handed_out(postgres: str) -> None:
    async with Database(postgres, "test", size=2) as database:
        async with database.connection("one") as one, database.connection("two") as two:
            pids = [one.info.backend_pid, two.info.backend_pid]
        cut(postgres, *pids)
        async with database.connection("look") as conn:
            assert await (await conn.execute("SELECT 1")).fetchone() == (1,)


async def test_constraints_missing_rights_and_bad_sql_are_told_apart(postgres: str) -> None:
    async with Database(postgres, "test") as database:
        for statement, error, words in [
            (
                "CREATE TABLE t (n int PRIMARY KEY); INSERT INTO t VALUES (1), (1)",
                Inconsistent,
                "duplicate key",
            ),
            (
                "CREATE ROLE nobody_special; SET ROLE nobody_special; CREATE SCHEMA x",
                DependencyError,
                "permission",
            ),
            ("SELECT * FROM no_such_table", LedgerError, "no_such_table"),
        ]:
            with pytest.raises(error, match=words):
                async with database.transaction("work") as conn:
                    await conn.execute(statement.encode())


async def test_a_cancelled_transaction_is_rolled_back_and_its_connection_used_again(postgres: str) -> None:
    async with Database(postgres, "test", size=1) as database:
        async with database.connection("prepare") as conn:
            await conn.execute("CREATE TABLE t (n int)")
        inside = asyncio.Event()

        async def work() -> None:
            async with database.transaction("work") as conn:
                await conn.execute("INSERT INTO t VALUES (1)")
                inside.set()
                await conn.execute("SELECT pg_sleep(60)")

        task = asyncio.create_task(work())
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with database.connection("look") as conn:
            assert await (await conn.execute("SELECT count(*) FROM t")).fetchone() == (0,)


async def test_a_database_with_weak_defaults_is_used_with_strong_ones(postgres: str) -> None:
    name = psycopg.conninfo.conninfo_to_dict(postgres)["dbname"]
    with psycopg.connect(postgres, autocommit=True) as conn:
        for setting in (
            "synchronous_commit = off",
            "default_transaction_isolation = 'serializable'",
            "timezone = 'Asia/Tokyo'",
        ):
            conn.execute(f"ALTER DATABASE {name} SET {setting}".encode())
    async with Database(postgres, "streamproc test") as database, database.transaction("look") as conn:
        assert await show(conn, "synchronous_commit") == "on"
        assert await show(conn, "transaction_isolation") == "read committed"
        assert await show(conn, "timezone") == "UTC"
        assert await show(conn, "application_name") == "streamproc test"
        assert await show(conn, "idle_in_transaction_session_timeout") == "1min"


async def show(conn: Any, setting: str) -> str:
    [value] = await (await conn.execute(f"SHOW {setting}")).fetchone()
    return str(value)


def cut(postgres: str, *pids: int) -> None:
    with psycopg.connect(postgres, autocommit=True) as other:
        for pid in pids:
            other.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])


def until_gone(postgres: str, pid: int) -> None:
    """Returns when the server has ended that session."""
    ask = "SELECT pid FROM pg_stat_activity, pg_sleep(0.01) WHERE pid = %s"
    with psycopg.connect(postgres, autocommit=True) as other:
        while other.execute(ask, [pid]).fetchone():
            pass
