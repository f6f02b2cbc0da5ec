"""A connection that nobody closed is told, and does not fail the next test."""

from __future__ import annotations

import asyncio
import gc

from aiokafka.conn import create_conn

from tests.support import lost_connections


def test_a_connection_left_open_is_told_with_the_place_that_opened_it(broker: str) -> None:
    host, port = broker.split(":")

    async def lose() -> None:
        connection = await create_conn(host, int(port))
        connection._host = [connection, connection._host]  # only the collector frees it

    asyncio.run(lose())
    (stack,) = lost_connections.collect()
    assert "in lose" in stack
    gc.collect()  # would fail this test with the warning of an unclosed connection


def test_one_that_was_closed_is_not(broker: str) -> None:
    host, port = broker.split(":")

    async def tidy() -> None:
        connection = await create_conn(host, int(port))
        await connection.close()

    asyncio.run(tidy())
    assert lost_connections.collect() == []
