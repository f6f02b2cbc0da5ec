"""Who gets data on the worker's port."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from tests.ops.ports import port


class Data:
    """A part that gives away data to whoever is let through."""

    def add_routes(self, app, access):
        async def give(_):
            return web.json_response({"visitors": 3})

        app.router.add_get("/data", access.guarded(give))

    async def close(self):
        pass


async def status(session, path="/data", **headers):
    async with session.get(path, headers=headers) as answer:
        return answer.status


async def test_this_machine_needs_no_token():
    async with port(Data()) as session:
        assert await status(session) == 200


async def test_a_page_that_calls_this_machine_by_a_name_of_its_own_gets_nothing():
    async with port(Data()) as session:
        assert await status(session, Host="evil.example") == 403
        assert await status(session, Host="127.0.0.1.evil.example:80") == 403
        assert await status(session, Host="localhost:1") == 200


async def test_a_port_open_to_others_gives_no_data_until_there_is_a_token():
    async with port(Data(), host="0.0.0.0") as session:
        assert await status(session) == 403
        assert await status(session, Authorization="Bearer ") == 403
        assert await status(session, "/livez") == await status(session, "/readyz") == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_a_token_is_asked_for_on_any_port_once_there_is_one(host):
    async with port(Data(), host=host, token="s3cret-é") as session:
        assert await status(session) == 401
        for wrong in ("Bearer s3cret", "Basic s3cret-é", "s3cret-é", "Bearer"):
            assert await status(session, Authorization=wrong) == 401
        assert await status(session, Authorization="bearer s3cret-é") == 200
        assert await status(session, "/livez") == 200
        async with session.get("/data") as answer:
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert "s3cret" not in await answer.text()


async def test_a_token_that_is_no_text_is_a_wrong_one():
    async with port(Data(), token="s3cret") as session:
        url = session._base_url
        assert url is not None and url.host is not None
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(b"GET /data HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer \xff\r\n\r\n")
        assert b" 401 " in await reader.readline()
        writer.close()
        await writer.wait_closed()
