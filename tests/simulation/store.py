"""An object store whose puts fail, dawdle, and land long after whoever sent them has given up or died."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from streamproc.errors import DependencyError, MissingObject
from streamproc.sinks.object_store import Listed, Stored, check_key
from tests.simulation.loop import SimulatedLoop


@dataclass
class StoreTrouble:
    """Shares of requests. ``refused``: an error, nothing happens. ``unanswered``: it happens, the answer is lost.
    ``late``: the client gives up and the put lands up to 20 minutes later. ``away``: nothing answers.
    """

    refused: float = 0.0
    unanswered: float = 0.0
    late: float = 0.0
    slow: float = 0.02
    away: bool = False


class Bucket:
    """The objects, for all workers. ``deletions``: by key; ``last_put``: when the last put of all can land."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self.loop = loop
        self.trouble = StoreTrouble()
        self.objects: dict[str, bytes] = {}
        self.deletions: Counter[str] = Counter()
        self.last_put = 0.0


class SimulatedStore:
    """One worker's client of the bucket."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    async def open(self) -> None:
        """There is nothing to connect to."""

    async def close(self) -> None:
        """Nothing is open."""

    async def put(self, key: str, body: bytes) -> Stored:
        check_key(key)

        def store() -> Stored:
            self._bucket.objects[key] = body
            return Stored(key, len(body), hashlib.sha256(body).hexdigest())

        return await self._ask(f"put {key}", store, may_be_late=True)

    async def get(self, key: str) -> bytes:
        body = await self._ask(f"get {key}", lambda: self._bucket.objects.get(key))
        if body is None:
            raise MissingObject(key, "get: no such object")
        return body

    async def tail(self, key: str, size: int) -> bytes:
        return (await self.get(key))[-size:]

    async def head(self, key: str) -> Listed | None:
        body = await self._ask(f"head {key}", lambda: self._bucket.objects.get(key))
        return None if body is None else Listed(key, len(body))

    async def delete(self, key: str) -> None:
        def remove() -> None:
            self._bucket.deletions[key] += 1
            self._bucket.objects.pop(key, None)

        await self._ask(f"delete {key}", remove)

    async def list(self, prefix: str = "") -> AsyncIterator[Listed]:
        for key in sorted(self._bucket.objects):
            if key.startswith(prefix):
                yield Listed(key, len(self._bucket.objects[key]))

    def url(self, key: str) -> str:
        return f"simulated:///{key}"

    async def _ask(self, what: str, act: Callable[[], Any], *, may_be_late: bool = False) -> Any:
        bucket, loop, trouble = self._bucket, self._bucket.loop, self._bucket.trouble
        loop.note(what)
        answer = loop.create_future()

        async def serve() -> None:
            luck = loop.chance.random()
            await asyncio.sleep(loop.chance.uniform(0, trouble.slow))
            if trouble.away:
                await asyncio.sleep(loop.chance.uniform(0, 2))
            elif luck >= trouble.refused:
                if may_be_late and luck < trouble.refused + trouble.late:
                    seconds = loop.chance.choice([1.0, 30.0, 300.0, 1200.0])
                    bucket.last_put = max(bucket.last_put, loop.time() + seconds)
                    loop.call_later(0.5, _fail, answer, what)
                    await asyncio.sleep(seconds)
                    loop.note(f"{what} lands late")
                result = act()
                if luck < 1 - trouble.unanswered:
                    await asyncio.sleep(loop.chance.uniform(0, trouble.slow))
                    if not answer.done():
                        answer.set_result(result)
                    return
            _fail(answer, what)

        loop.spawn(serve())
        return await answer


def _fail(answer: asyncio.Future[Any], what: str) -> None:
    if not answer.done():
        answer.set_exception(DependencyError("simulated store", f"{what}: no answer"))
        answer.exception()
