"""The public keys of load balancers, fetched when somebody first comes with what one of them signed.

Which key it was is said by whoever sends the request, so nobody may make this process ask much: ids have one shape, so
nothing but a key is asked for; one at a time is; and of ids that are new only a few, then one every some seconds. What
is known is used meanwhile.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar

import aiohttp
import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from streamproc.errors import DependencyError

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: Seconds after which a key is asked for again, and after which it is not used without an answer.
FRESH, KEPT = 3_600.0, 24 * 3_600.0
#: Seconds that an answer may take, that nothing is asked after none came, and that a key stays unknown.
PATIENCE, REST, UNKNOWN = 5.0, 10.0, 60.0
#: Ids that may be asked for at once, and the seconds after which it is one more.
BURST, REFILL = 8, 15.0
#: Keys, and ids of none, that are remembered.
_HELD, _UNKNOWN_IDS = 64, 256

#: https://docs.aws.amazon.com/elasticloadbalancing/latest/application/listener-authenticate-users.html shows a UUID.
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE)
_LARGEST = 4_096
_BEGINS = b"-----BEGIN PUBLIC KEY-----"
#: S3, which has GovCloud's keys, says "forbidden" of what is not there.
_NOT_THERE = {HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.GONE}


@dataclass(frozen=True, slots=True)
class _Key:
    value: ECKey
    since: float


class _NoAnswer(Exception):
    """Whether there is such a key is not known."""


class SigningKeys:
    """Keys of P-256, each at ``address``, a slash and its id, as PEM."""

    def __init__(self, address: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._address = address
        self._clock = clock
        self._held: dict[str, _Key] = {}
        self._unknown: dict[str, float] = {}
        self._asking: dict[str, asyncio.Task[ECKey | None]] = {}
        self._one_at_a_time = asyncio.Lock()
        self._problem: str | None = None
        self._rest_until = clock()
        self._may_ask, self._counted = float(BURST), clock()

    async def get(self, name: str) -> ECKey | None:
        """The key of that id, ``None`` when there is none. Raises :class:`DependencyError` when nobody knows."""
        if not _ID.fullmatch(name):
            return None
        now = self._clock()
        held = self._held.get(name)
        if held is not None and now - held.since < KEPT:
            self._held[name] = self._held.pop(name)  # used last, forgotten last
            if now - held.since >= FRESH and now >= self._rest_until:
                self._ask(name)  # it is good until there is an answer
            return held.value
        if now < self._unknown.get(name, now):
            return None
        if name not in self._asking:
            self._check_that_it_may_ask(now)
        try:
            # A viewer who goes away does not stop it: others wait for the same key.
            return await asyncio.shield(self._ask(name))
        except _NoAnswer as error:
            raise DependencyError(self._address, str(error), "is it reached from here?") from error

    def _check_that_it_may_ask(self, now: float) -> None:
        if now < self._rest_until:
            raise DependencyError(self._address, str(self._problem), "is it reached from here?")
        self._may_ask = min(BURST, self._may_ask + (now - self._counted) / REFILL)
        self._counted = now
        if self._may_ask < 1:
            problem = f"is not asked for more than {BURST} new keys, and one each {REFILL:.0f} s"
            raise DependencyError(self._address, problem, "who sends so many?")
        self._may_ask -= 1

    def _ask(self, name: str) -> asyncio.Task[ECKey | None]:
        task = self._asking.get(name)
        if task is None:
            task = self._asking[name] = asyncio.create_task(self._learn(name))
            task.add_done_callback(lambda done: self._asked(name, done))
        return task

    def _asked(self, name: str, done: asyncio.Task[ECKey | None]) -> None:
        del self._asking[name]
        if not done.cancelled():
            done.exception()  # also when nobody waited for it

    async def _learn(self, name: str) -> ECKey | None:
        async with self._one_at_a_time:
            if self._clock() < self._rest_until:  # the one before had no answer
                raise _NoAnswer(self._problem)
            try:
                key = await self._fetch(name)
            except _NoAnswer as error:
                if self._problem is None:
                    log.warning("signing_keys_unavailable", address=self._address, problem=str(error))
                self._problem, self._rest_until = str(error), self._clock() + REST
                raise
        if self._problem is not None:
            log.info("signing_keys_available", address=self._address)
            self._problem = None
        self._held.pop(name, None)
        self._unknown.pop(name, None)
        if key is None:
            _bound(self._unknown, _UNKNOWN_IDS)[name] = self._clock() + UNKNOWN
        else:
            _bound(self._held, _HELD)[name] = _Key(key, self._clock())
        return key

    async def _fetch(self, name: str) -> ECKey | None:
        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, trust_env=True) as http,
                http.get(f"{self._address}/{name}", allow_redirects=False) as answer,
            ):
                if answer.status in _NOT_THERE:
                    return None
                if answer.status != HTTPStatus.OK:
                    raise _NoAnswer(f"answers {answer.status}")
                body = b""
                async for chunk in answer.content.iter_any():
                    body += chunk
                    if len(body) > _LARGEST:
                        break
        except TimeoutError:
            raise _NoAnswer(f"does not answer within {PATIENCE:.0f} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _NoAnswer(f"does not answer: {error}") from error
        return _public_key(body)


def _public_key(body: bytes) -> ECKey:
    try:
        if body.lstrip().startswith(_BEGINS) and len(body) <= _LARGEST:
            key = ECKey.import_key(body)
            if key.curve_name == "P-256":
                return key
    except (JoseError, ValueError, TypeError, KeyError, UnsupportedAlgorithm) as error:
        raise _NoAnswer("answers with what is no key of P-256") from error
    raise _NoAnswer("answers with what is no key of P-256")


def _bound(remembered: dict[str, T], size: int) -> dict[str, T]:
    """Room for one more: the oldest goes."""
    while len(remembered) >= size:
        del remembered[next(iter(remembered))]
    return remembered
