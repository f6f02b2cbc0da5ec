"""Enhanced fan-out in front of the stub: what it pushes over HTTP/2, and how a subscription ends, as told.

Whoever opens a connection in HTTP/2 is pushed to, everybody else gets to the stub. Requests are believed only
with a right signature (https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html).
Unlike Amazon it also speaks HTTP/2 without TLS, sends as many events as there are records and has no limits of its own.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import ssl
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived, StreamEnded

from tests.support.kinesis_stub import FIRST, KinesisStub

CONSUMER = "arn:aws:kinesis:us-east-1:000000000000:stream/s/consumer/readers:1"

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@dataclass
class PushingStub(KinesisStub):
    """``pushed``: records in an event. ``secret``: of the only access key."""

    pushed: int = 10
    secret: str = "test"
    #: What becomes of the next subscriptions: a refusal's code, or "ends", "breaks", "throws" after an event,
    #: "fails" before it.
    fates: deque[str] = field(default_factory=deque)
    #: Empty events before the first with records.
    empty: int = 0
    #: Starting positions asked for.
    subscriptions: list[dict[str, Any]] = field(default_factory=list)
    #: Bytes of records sent in events.
    sent: int = 0
    consumers: list[str] = field(default_factory=list)
    #: For a server with TLS; which protocols it offers is set in it.
    tls: ssl.SSLContext | None = None
    _connections: set[asyncio.Task[None]] = field(default_factory=set)

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self._stub = int(self.url.rpartition(":")[2])
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self.tls)
        self.url = f"http{'s' if self.tls else ''}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await super().__aexit__()

    def _RegisterStreamConsumer(self, asked: dict[str, Any]) -> dict[str, Any]:
        if asked["ConsumerName"] in self.consumers:
            raise LookupError("ResourceInUseException")
        self.consumers.append(asked["ConsumerName"])
        return {"Consumer": self._consumer(asked["ConsumerName"], "CREATING")}

    def _DescribeStreamConsumer(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {"ConsumerDescription": self._consumer(asked["ConsumerName"], "ACTIVE")}

    def _consumer(self, name: str, status: str) -> dict[str, Any]:
        return {
            "ConsumerName": name,
            "ConsumerARN": CONSUMER,
            "ConsumerStatus": status,
            "ConsumerCreationTimestamp": 1.7e9,
        }

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            begin = await reader.readexactly(len(_PREFACE))
            await (self._subscription if begin == _PREFACE else self._relay)(begin, reader, writer)
        except (OSError, EOFError):
            pass
        finally:
            self._connections.discard(task)
            writer.close()

    async def _relay(self, begin: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stub_in, stub_out = await asyncio.open_connection("127.0.0.1", self._stub)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(2**16):
                sink.write(data)
                await sink.drain()
            sink.close()

        stub_out.write(begin)
        await asyncio.gather(pump(reader, stub_out), pump(stub_in, writer))

    async def _subscription(
        self, begin: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        connection = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        connection.initiate_connection()
        headers: dict[str, str] = {}
        body, data, pushing = b"", begin, None
        while True:
            for event in connection.receive_data(data):
                match event:
                    case RequestReceived(headers=received):
                        headers = dict(received)
                    case DataReceived(data=piece):
                        body += piece
                    case StreamEnded(stream_id=stream):
                        push = self._push(connection, stream, headers, body, writer)
                        pushing = asyncio.create_task(push)
                        self._connections.add(pushing)
            writer.write(connection.data_to_send())
            if not (data := await reader.read(2**16)):
                if pushing is not None:
                    pushing.cancel()
                return

    async def _push(
        self,
        connection: H2Connection,
        stream: int,
        headers: dict[str, str],
        body: bytes,
        writer: asyncio.StreamWriter,
    ) -> None:
        asked = json.loads(body)
        fate = self.fates.popleft() if self.fates else "stays"
        if not signed(headers, body, self.secret):
            fate = "InvalidSignatureException"
        assert headers["x-amz-target"] == "Kinesis_20131202.SubscribeToShard"
        assert asked["ConsumerARN"] == CONSUMER
        self.subscriptions.append(asked["StartingPosition"])
        if fate.endswith("Exception"):
            connection.send_headers(stream, [(":status", "400")])
            refusal = json.dumps({"__type": fate, "message": "as told"}).encode()
            connection.send_data(stream, refusal, end_stream=True)
            writer.write(connection.data_to_send())
            return
        kind = ("content-type", "application/vnd.amazon.eventstream")
        connection.send_headers(stream, [(":status", "200"), kind])
        await self._send(connection, stream, frame("initial-response", b"{}"), writer)
        if fate == "fails":
            await self._send(connection, stream, frame("KMSDisabledException", b"{}", "exception"), writer)
            connection.end_stream(stream)
            writer.write(connection.data_to_send())
            return
        for event in self._events(asked["StartingPosition"]):
            await self._send(connection, stream, frame("SubscribeToShardEvent", event), writer)
            if b"NextShard" not in event and json.loads(event)["ContinuationSequenceNumber"] is None:
                connection.end_stream(stream)
                writer.write(connection.data_to_send())
                return
            if fate != "stays":
                break
            await asyncio.sleep(0.02)
        if fate == "throws":
            await self._send(
                connection, stream, frame("InternalFailureException", b"{}", "exception"), writer
            )
        if fate == "breaks":
            await self._send(connection, stream, frame("SubscribeToShardEvent", b"{}")[:20], writer)
            writer.transport.abort()
        else:
            connection.end_stream(stream)
            writer.write(connection.data_to_send())

    def _events(self, start: dict[str, Any]) -> Iterator[bytes]:
        place = self.trimmed
        if start["Type"] == "AT_SEQUENCE_NUMBER":
            place = max(self.trimmed, int(start["SequenceNumber"]) - FIRST)
        empty = self.empty
        while True:
            given = [] if empty > 0 else self.records[place : place + self.pushed]
            empty -= 1
            place += len(given)
            self.sent += sum(len(value) for value, _ in given)
            ended = self.closed and place == len(self.records)
            records = [
                {
                    "Data": base64.b64encode(value).decode(),
                    "SequenceNumber": str(FIRST + place - len(given) + n),
                    "PartitionKey": "k",
                    "ApproximateArrivalTimestamp": arrived,
                }
                for n, (value, arrived) in enumerate(given)
            ]
            yield json.dumps(
                {
                    "Records": records,
                    "ContinuationSequenceNumber": None if ended else str(FIRST + place),
                    "MillisBehindLatest": self.behind_ms,
                }
            ).encode()

    async def _send(
        self, connection: H2Connection, stream: int, data: bytes, writer: asyncio.StreamWriter
    ) -> None:
        """As much as the other side has room for, then the rest when it has."""
        while data:
            room = min(connection.local_flow_control_window(stream), connection.max_outbound_frame_size)
            if room:
                connection.send_data(stream, data[:room])
                data = data[room:]
            writer.write(connection.data_to_send())
            await writer.drain()
            if not room:
                await asyncio.sleep(0.01)


def frame(name: str, payload: bytes, kind: str = "event") -> bytes:
    """A message of ``application/vnd.amazon.eventstream``
    (https://smithy.io/2.0/aws/amazon-eventstream.html)."""
    headers = b"".join(
        struct.pack("!B", len(key)) + key + struct.pack("!BH", 7, len(value)) + value
        for key, value in (
            (b":message-type", kind.encode()),
            (f":{kind}-type".encode(), name.encode()),
            (b":content-type", b"application/json"),
        )
    )
    prelude = struct.pack("!II", 16 + len(headers) + len(payload), len(headers))
    message = prelude + struct.pack("!I", binascii.crc32(prelude)) + headers + payload
    return message + struct.pack("!I", binascii.crc32(message))


def signed(headers: dict[str, str], body: bytes, secret: str) -> bool:
    """Whether the request has a right signature, by Amazon's description of it."""
    _, _, parts = headers["authorization"].partition(" ")
    fields = dict(part.split("=", 1) for part in parts.split(", "))
    names = fields["SignedHeaders"].split(";")
    assert {"host", "x-amz-date"} <= set(names)
    canonical = [
        f"{name}:{headers[':authority'] if name == 'host' else headers[name].strip()}" for name in names
    ]
    request = "\n".join(
        ["POST", headers[":path"], "", *canonical, "", ";".join(names), hashlib.sha256(body).hexdigest()]
    )
    scope = fields["Credential"].split("/", 1)[1]
    digest = hashlib.sha256(request.encode()).hexdigest()
    text = "\n".join(["AWS4-HMAC-SHA256", headers["x-amz-date"], scope, digest])
    key = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return hmac.compare_digest(hmac.new(key, text.encode(), hashlib.sha256).hexdigest(), fields["Signature"])
