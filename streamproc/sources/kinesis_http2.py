"""One HTTP/2 request whose answer goes on and on: SubscribeToShard, which Amazon serves over nothing else.

The client of everything else (botocore) speaks HTTP/1.1. A connection for each subscription: they are few, and a
reader that does not read then holds up nobody else.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple
from urllib.parse import urlsplit

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, ResponseReceived, StreamEnded, StreamReset
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes

from streamproc.sources.kinesis_client import SignedRequest

#: Bytes that may come before any of them is taken: two seconds of a shard.
_WINDOW = 4 * 1024 * 1024

#: Seconds to connect, and without a sign of life; the service sends an event every few seconds, if only an empty one.
_PATIENCE = 30.0

_READ = 64 * 1024


class Http2Error(OSError):
    """The other side does not speak HTTP/2, or broke off."""


class Answer(NamedTuple):
    """``body``: pieces as they come; the sender is held up until they are taken."""

    status: int
    body: AsyncIterator[bytes]


@asynccontextmanager
async def posted(request: SignedRequest, trust: ssl.SSLContext) -> AsyncIterator[Answer]:
    """Send the request; leaving ends the connection. Raises :class:`OSError`, :class:`Http2Error` among them."""
    url = urlsplit(request.url)
    encrypted = url.scheme == "https"
    async with asyncio.timeout(_PATIENCE):
        reader, writer = await asyncio.open_connection(
            url.hostname, url.port or (443 if encrypted else 80), ssl=trust if encrypted else None
        )
    try:
        # Without TLS nobody agrees on a protocol: a server without HTTP/2 does not understand a word then.
        if encrypted and writer.get_extra_info("ssl_object").selected_alpn_protocol() != "h2":
            raise Http2Error(f"{url.netloc} does not speak HTTP/2")
        received = _exchange(request, reader, writer)
        async with asyncio.timeout(_PATIENCE):
            status = await anext(received)
        assert isinstance(status, int), "the status comes first"
        yield Answer(status, _pieces(received))
    finally:
        writer.transport.abort()


def trusting(certificates: str | None) -> ssl.SSLContext:
    """``certificates``: a file of those to trust, ``None``: the system's."""
    context = ssl.create_default_context(cafile=certificates)
    context.set_alpn_protocols(["h2"])
    return context


async def _pieces(received: AsyncGenerator[int | bytes, None]) -> AsyncIterator[bytes]:
    async for piece in received:
        assert isinstance(piece, bytes), "the status comes once"
        yield piece


async def _exchange(
    request: SignedRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> AsyncGenerator[int | bytes, None]:
    """The answer's status, then its bytes."""
    connection = H2Connection(H2Configuration(client_side=True))
    connection.initiate_connection()
    # Not by `local_settings`: those would count here without the other side having been told of them.
    connection.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: _WINDOW, SettingCodes.ENABLE_PUSH: 0})
    connection.increment_flow_control_window(_WINDOW)
    url, stream = urlsplit(request.url), connection.get_next_available_stream_id()
    own = [
        (":method", "POST"),
        (":scheme", url.scheme),
        (":authority", url.netloc),
        (":path", url.path or "/"),
    ]
    connection.send_headers(
        stream, [*own, *((name.lower(), value) for name, value in request.headers.items())]
    )
    connection.send_data(stream, request.body, end_stream=True)
    while True:
        writer.write(connection.data_to_send())
        await writer.drain()
        try:
            async with asyncio.timeout(_PATIENCE):
                data = await reader.read(_READ)
            events = connection.receive_data(data)
        except (TimeoutError, ProtocolError) as error:
            raise Http2Error(f"{url.netloc}: {error or 'no sign of life'}") from error
        if not data:
            raise Http2Error(f"{url.netloc} ended the connection")
        for event in events:
            match event:
                case ResponseReceived(headers=headers):
                    yield int(dict(headers)[b":status"])
                case DataReceived(data=piece, flow_controlled_length=length):
                    yield piece
                    # Only now: the sender is to wait for a reader that has no room.
                    connection.acknowledge_received_data(length, stream)
                case StreamEnded():
                    return
                case StreamReset() | ConnectionTerminated():
                    raise Http2Error(f"{url.netloc} broke off: {event.error_code}")
