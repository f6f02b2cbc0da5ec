"""What never changes is compressed once; everything else is left as it is."""

from __future__ import annotations

import gzip
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from streamproc.dashboard.compressed import Compressed

SCRIPT = b"let value = 1;\n" * 1_000
FOR_EVER = {"cache-control": "public, max-age=31536000, immutable"}


class Served:
    """``asked``: how often each path came through to the app."""

    def __init__(self) -> None:
        self.asked: dict[str, int] = {}
        self.app = Compressed(Starlette(routes=[Route("/{path:path}", self.answer)]), "/static/")

    async def answer(self, request: Request) -> Response:
        path = request.url.path
        self.asked[path] = self.asked.get(path, 0) + 1
        if path.endswith(".js"):
            return Response(SCRIPT, media_type="application/javascript", headers=FOR_EVER)
        if path.endswith(".woff2"):
            return Response(SCRIPT, media_type="font/woff2", headers=FOR_EVER)
        if path.endswith(".gone"):
            return Response("gone", 404, media_type="text/plain", headers=FOR_EVER)
        return Response(SCRIPT, media_type="text/html")

    async def get(self, path: str, **headers: str) -> httpx.Response:
        transport = httpx.ASGITransport(app=self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await client.get(path, headers=headers)


@pytest.fixture
def served() -> Served:
    return Served()


async def test_a_script_is_asked_for_and_compressed_once(served: Served) -> None:
    answers = [await served.get("/static/a.js") for _ in range(3)]
    assert served.asked == {"/static/a.js": 1}
    for answer in answers:
        assert answer.content == SCRIPT
        assert answer.headers["content-encoding"] == "gzip"
        assert int(answer.headers["content-length"]) == len(gzip.compress(SCRIPT, 9))
        assert answer.headers["cache-control"] == FOR_EVER["cache-control"]
        assert answer.headers["vary"] == "accept-encoding"


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/static/a.js", {"accept-encoding": "identity"}),
        ("/static/a.js", {"range": "bytes=0-9"}),
        ("/static/a.js", {"if-none-match": '"x"'}),
        ("/static/a.js?x=1", {}),
        ("/elsewhere/a.js", {}),
        ("/static/a.woff2", {}),
        ("/static/a.gone", {}),
        ("/static/page", {}),
    ],
)
async def test_everything_else_is_asked_for_each_time(
    served: Served, path: str, headers: dict[str, Any]
) -> None:
    for _ in range(2):
        answer = await served.get(path, **headers)
        assert "content-encoding" not in answer.headers
    assert list(served.asked.values()) == [2]


async def test_who_takes_no_gzip_gets_the_script_as_it_is_after_others_got_it_compressed(
    served: Served,
) -> None:
    await served.get("/static/a.js")
    answer = await served.get("/static/a.js", **{"accept-encoding": "identity"})
    assert answer.content == SCRIPT
    assert "content-encoding" not in answer.headers
