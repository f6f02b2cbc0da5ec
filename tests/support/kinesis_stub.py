"""A server that speaks a little Kinesis and does as it is told: lag, refusals, trimmed records, lost iterators.

One stream of one shard, or of one that was made from it. For what real servers do with shards, there is
``kinesis_local``.
"""

from __future__ import annotations

import base64
import json
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

SHARD = "shardId-000000000000"
CHILD = "shardId-000000000001"

#: Sequence number of the first record ever put.
FIRST = 49590338271490256608559692538361571095921575989136588898


@dataclass
class KinesisStub:
    """``records``: values with their arrival times. ``trimmed``: how many of the oldest are gone."""

    records: list[tuple[bytes, float]] = field(default_factory=list)
    trimmed: int = 0
    behind_ms: int = 0
    closed: bool = False
    #: Whether the stream has forgotten the shard: what is put is then in the one that was made from it.
    gone: bool = False
    retention_hours: int = 24
    limit: int = 10_000
    #: Error codes to answer the next reads with.
    errors: deque[str] = field(default_factory=deque)
    #: Iterators older than this many reads are refused as expired.
    iterators_last: int = 10**9
    #: How often it was read.
    reads: int = 0
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=2**24)
        app.router.add_post("/", self._answer)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[union-attr]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    def put(self, *values: bytes, arrived: float | None = None) -> None:
        """Records that arrived now, or at that Unix time."""
        self.records += [(value, time.time() if arrived is None else arrived) for value in values]

    async def _answer(self, request: web.Request) -> web.Response:
        operation = request.headers["X-Amz-Target"].partition(".")[2]
        asked = json.loads(await request.read())
        self.requests.append((operation, asked))
        try:
            answer = getattr(self, f"_{operation}")(asked)
        except LookupError as error:
            return self._refusal(str(error.args[0]))
        return web.Response(body=json.dumps(answer), content_type="application/x-amz-json-1.1")

    def _refusal(self, code: str) -> web.Response:
        status = 500 if code == "InternalFailure" else 400
        body = json.dumps({"__type": code, "message": "as told"})
        return web.Response(status=status, body=body, content_type="application/x-amz-json-1.1")

    def _DescribeStreamSummary(self, _: dict[str, Any]) -> dict[str, Any]:
        return {
            "StreamDescriptionSummary": {
                "StreamName": "s",
                "StreamARN": "arn:aws:kinesis:us-east-1:000000000000:stream/s",
                "StreamStatus": "ACTIVE",
                "RetentionPeriodHours": self.retention_hours,
                "StreamCreationTimestamp": 1.7e9,
                "EnhancedMonitoring": [],
                "OpenShardCount": 1,
            }
        }

    def _ListShards(self, _: dict[str, Any]) -> dict[str, Any]:
        sequences: dict[str, str] = {"StartingSequenceNumber": "1"}
        if self.closed:
            sequences["EndingSequenceNumber"] = str(FIRST + len(self.records))
        keys = {"StartingHashKey": "0", "EndingHashKey": str(2**128 - 1)}
        made_of = {"ShardId": CHILD, "ParentShardId": SHARD} if self.gone else {"ShardId": SHARD}
        return {"Shards": [{**made_of, "HashKeyRange": keys, "SequenceNumberRange": sequences}]}

    def _GetShardIterator(self, asked: dict[str, Any]) -> dict[str, Any]:
        if self.gone and asked["ShardId"] == SHARD:
            raise LookupError("ResourceNotFoundException")
        place = self.trimmed
        match asked["ShardIteratorType"]:
            case "AT_SEQUENCE_NUMBER":  # of a trimmed one: the oldest that is left, as Amazon does
                place = max(self.trimmed, int(asked["StartingSequenceNumber"]) - FIRST)
            case "AT_TIMESTAMP":
                since = asked["Timestamp"]
                younger = (n for n, (_, at) in enumerate(self.records) if at >= since and n >= self.trimmed)
                place = next(younger, len(self.records))
        return {"ShardIterator": f"{place}/{self.reads}"}

    def _GetRecords(self, asked: dict[str, Any]) -> dict[str, Any]:
        place, made = map(int, asked["ShardIterator"].split("/"))
        place = max(place, self.trimmed)  # without a word, as Amazon does
        self.reads += 1
        if self.errors:
            raise LookupError(self.errors.popleft())
        if self.reads - made > self.iterators_last:
            raise LookupError("ExpiredIteratorException")
        end = min(len(self.records), place + self.limit)
        given = self.records[place:end]
        answer: dict[str, Any] = {
            "Records": [
                {
                    "Data": base64.b64encode(value).decode(),
                    "SequenceNumber": str(FIRST + place + n),
                    "PartitionKey": "k",
                    "ApproximateArrivalTimestamp": arrived,
                }
                for n, (value, arrived) in enumerate(given)
            ],
            "MillisBehindLatest": self.behind_ms,
        }
        if not (self.closed and end == len(self.records)):
            answer["NextShardIterator"] = f"{end}/{made}"
        return answer
