"""Keys are fetched from a server over HTTP: how often, which, and what happens while it is away."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from structlog.testing import capture_logs

from streamproc.dashboard import signing_keys
from streamproc.dashboard.signing_keys import BURST, FRESH, KEPT, REFILL, REST, UNKNOWN, SigningKeys
from streamproc.errors import DependencyError
from tests.dashboard.balancer import KeyServer, SigningKey, key_server

KEY = SigningKey()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def server() -> AsyncIterator[KeyServer]:
    async with key_server(KEY) as made:
        yield made


@pytest.fixture
def keys(server: KeyServer, clock: Clock) -> SigningKeys:
    return SigningKeys(server.address, clock)


async def numbers(keys: SigningKeys, key: SigningKey) -> bool:
    """Whether what is held is the key: by the point on the curve."""
    found = await keys.get(key.id)
    return (
        found is not None and found.public_key.public_numbers() == key.private.public_key().public_numbers()
    )


async def settled(keys: SigningKeys) -> None:
    """Until nothing is asked for any more."""
    while keys._asking:
        await asyncio.wait(keys._asking.values())


async def test_many_who_come_at_once_with_a_key_are_one_request(server: KeyServer, keys: SigningKeys) -> None:
    assert all(await asyncio.gather(*(numbers(keys, KEY) for _ in range(50))))
    assert await numbers(keys, KEY)
    assert server.asked == [f"/{KEY.id}"]


async def test_a_viewer_who_goes_away_takes_the_key_from_nobody(server: KeyServer, keys: SigningKeys) -> None:
    server.free.clear()
    gone, waiting = (asyncio.create_task(numbers(keys, KEY)) for _ in range(2))
    await asyncio.wait([gone, waiting], timeout=0.05)
    gone.cancel()
    server.free.set()
    assert await waiting
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "name",
    ["", "..", "../secret", f"{KEY.id}/..", f"{KEY.id}\n", f"{KEY.id}?x", KEY.id.replace("-", ""), "٣" * 36],
    ids=["empty", "up", "beside", "below", "a line", "a query", "no dashes", "other digits"],  # keys differ
)
async def test_nothing_is_asked_for_that_has_not_the_shape_of_an_id(
    server: KeyServer, keys: SigningKeys, name: str
) -> None:
    assert await keys.get(name) is None
    assert server.asked == []


async def test_one_key_is_asked_for_at_a_time(server: KeyServer, keys: SigningKeys) -> None:
    others = [SigningKey() for _ in range(4)]
    server.publish(*others)
    server.free.clear()
    tasks = [asyncio.create_task(numbers(keys, key)) for key in others]
    await asyncio.wait(tasks, timeout=0.2)
    server.free.set()
    assert all(await asyncio.gather(*tasks))
    assert (len(server.asked), server.most) == (4, 1)


async def test_invented_ids_make_few_requests_and_stop_nobody_whose_key_is_known(
    server: KeyServer, keys: SigningKeys, clock: Clock
) -> None:
    assert await numbers(keys, KEY)
    answers = await asyncio.gather(*(keys.get(str(uuid.uuid4())) for _ in range(200)), return_exceptions=True)
    assert len(server.asked) == BURST, "the known key was the first of them"
    assert sum(isinstance(answer, DependencyError) for answer in answers) == 200 - (BURST - 1)
    assert await numbers(keys, KEY)
    clock.now += 2 * REFILL
    for _ in range(10):
        with pytest.raises(DependencyError, match="is not asked for more than"):
            await asyncio.gather(*(keys.get(str(uuid.uuid4())) for _ in range(10)))
    await settled(keys)
    assert len(server.asked) == BURST + 2


async def test_a_key_that_is_not_there_is_asked_for_again_later(
    server: KeyServer, keys: SigningKeys, clock: Clock
) -> None:
    new = SigningKey()
    assert await keys.get(new.id) is None
    assert await keys.get(new.id) is None
    assert len(server.asked) == 1
    server.publish(new)
    clock.now += UNKNOWN
    assert await numbers(keys, new)
    assert len(server.asked) == 2


async def test_what_is_remembered_is_bounded(keys: SigningKeys, clock: Clock) -> None:
    for _ in range(300):
        clock.now += REFILL
        assert await keys.get(str(uuid.uuid4())) is None
    assert len(keys._unknown) == 256


async def test_a_server_that_is_down_is_asked_now_and_then_and_found_again_by_itself(
    server: KeyServer, keys: SigningKeys, clock: Clock
) -> None:
    await server.stop()
    with capture_logs() as logs:
        for _ in range(3):
            with pytest.raises(DependencyError, match="does not answer"):
                await keys.get(KEY.id)
        await server.start()
        with pytest.raises(DependencyError, match="does not answer"):
            await keys.get(KEY.id)
        assert server.asked == [], "it is left alone for a while"
        clock.now += REST
        assert await numbers(keys, KEY)
    assert [line["event"] for line in logs] == ["signing_keys_unavailable", "signing_keys_available"]


async def test_who_waits_behind_a_server_that_is_down_does_not_ask_it_too(
    server: KeyServer, keys: SigningKeys
) -> None:
    server.instead = lambda: web.Response(status=500)
    answers = await asyncio.gather(
        *(keys.get(str(uuid.uuid4())) for _ in range(BURST)), return_exceptions=True
    )
    assert all(isinstance(answer, DependencyError) for answer in answers)
    assert len(server.asked) == 1


async def test_a_known_key_is_looked_at_again_while_it_is_used(
    server: KeyServer, keys: SigningKeys, clock: Clock
) -> None:
    assert await numbers(keys, KEY)
    clock.now += FRESH
    assert await numbers(keys, KEY)
    await settled(keys)
    assert len(server.asked) == 2
    assert await numbers(keys, KEY)
    await settled(keys)
    assert len(server.asked) == 2


async def test_a_key_that_was_withdrawn_is_used_no_more(
    server: KeyServer, keys: SigningKeys, clock: Clock
) -> None:
    assert await numbers(keys, KEY)
    server.keys.clear()
    clock.now += FRESH
    assert await numbers(keys, KEY), "nobody waits for the answer"
    await settled(keys)
    assert await keys.get(KEY.id) is None


async def test_a_known_key_outlasts_a_server_that_is_down_for_a_day(
    server: KeyServer, keys: SigningKeys, clock: Clock
) -> None:
    assert await numbers(keys, KEY)
    await server.stop()
    for hours in (2, 12, 23):
        clock.now = hours * 3_600.0
        assert await numbers(keys, KEY)
        await settled(keys)
    clock.now = KEPT
    with pytest.raises(DependencyError, match="does not answer"):
        await keys.get(KEY.id)


PRIVATE = KEY.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ({"status": 500}, "answers 500"),
        ({"status": 429}, "answers 429"),
        ({"status": 302, "headers": {"location": f"/{KEY.id}"}}, "answers 302"),
        ({"text": "<html>captive portal</html>"}, "no key of P-256"),
        ({"body": b""}, "no key of P-256"),
        ({"body": b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"}, "no key of P-256"),
        ({"body": SigningKey(ec.SECP384R1()).pem}, "no key of P-256"),
        ({"body": SigningKey(ec.SECP256K1()).pem}, "no key of P-256"),
        ({"body": PRIVATE}, "no key of P-256"),
        ({"body": KEY.pem + b"\n" * 1_000_000}, "no key of P-256"),
    ],
)
async def test_an_answer_that_is_no_key_is_none(
    server: KeyServer, keys: SigningKeys, answer: dict[str, Any], problem: str
) -> None:
    server.instead = lambda: web.Response(**answer)
    with pytest.raises(DependencyError, match=problem):
        await keys.get(KEY.id)
    assert len(server.asked) == 1, "it is not followed elsewhere"


async def test_an_answer_has_its_time(
    server: KeyServer, keys: SigningKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signing_keys, "PATIENCE", 0.1)
    server.free.clear()
    with pytest.raises(DependencyError, match="does not answer within"):
        await keys.get(KEY.id)
    server.free.set()


@pytest.mark.parametrize("status", [400, 403, 404, 410])
async def test_what_aws_says_of_a_key_that_it_has_not(
    server: KeyServer, keys: SigningKeys, status: int
) -> None:
    server.instead = lambda: web.Response(status=status)
    assert await keys.get(KEY.id) is None
