"""A log's bytes as lines, whatever they are packed in: piece by piece, never the whole object.

What it is packed in is told by the first bytes, not by the name. Several gzip members, zstd frames or bzip2
streams after each other are one log, as ``cat a.gz b.gz`` makes them.
"""

from __future__ import annotations

import bz2
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import zstandard

from streamproc.model import Damage
from streamproc.transform.decode_rejects import Reason

#: Bytes of unpacked data handed on at once.
PIECE = 1 << 20

#: Bytes of zstd data given to the library at once. It unpacks all of them before it returns, and four bytes may
#: stand for 128 KiB (a block of one repeated byte): this bounds what comes of it to 32 MiB.
_ZSTD_SLICE = 1024

#: A window of zstd's ``--long`` mode; larger ones are refused.
_ZSTD_WINDOW = 1 << 27

#: A log is not suspected of being a bomb before it has unpacked to this many bytes.
_HARMLESS = 64 << 20


@dataclass(frozen=True, slots=True)
class Caps:
    """What a log may unpack to. ``ratio``: unpacked to packed bytes, beyond 64 MiB; ``size``: bytes."""

    ratio: int = 250
    size: int = 64 << 30


class _Format(Protocol):
    """One stream, member or frame after the other."""

    def unpack(self, data: bytes) -> Iterator[bytes]:
        """What comes of these bytes, in pieces of bounded size. Raises when they are none of the format."""

    @property
    def between(self) -> bool:
        """Whether what has been read so far is complete."""


class _Plain:
    between = True

    def unpack(self, data: bytes) -> Iterator[bytes]:
        yield data


class _Gzip:
    def __init__(self) -> None:
        self._member: zlib._Decompress | None = None
        self.between = False

    def unpack(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._member is None:
                data = data.lstrip(b"\0")  # tapes and some tools pad with zeros, as gzip(1) allows
                if not data:
                    return
                self._member, self.between = zlib.decompressobj(wbits=31), False
            yield self._member.decompress(data, PIECE)
            data = self._member.unconsumed_tail or self._member.unused_data
            if self._member.eof:
                self._member, self.between = None, True


class _Bzip2:
    def __init__(self) -> None:
        self._stream: bz2.BZ2Decompressor | None = None
        self.between = False

    def unpack(self, data: bytes) -> Iterator[bytes]:
        while data or (self._stream is not None and not self._stream.needs_input):
            if self._stream is None:
                self._stream, self.between = bz2.BZ2Decompressor(), False
            yield self._stream.decompress(data, PIECE)
            data = b""
            if self._stream.eof:
                data, self._stream, self.between = self._stream.unused_data, None, True


class _Zstd:
    def __init__(self) -> None:
        self._context = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self.between = False

    def unpack(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), _ZSTD_SLICE):
            rest = data[start : start + _ZSTD_SLICE]
            while rest:
                if self._frame is None:
                    self._frame, self.between = self._context.decompressobj(), False
                yield self._frame.decompress(rest)
                rest = self._frame.unused_data
                if self._frame.eof:
                    self._frame, self.between = None, True


def _format_of(head: bytes) -> _Format:
    if head.startswith(b"\x1f\x8b"):
        return _Gzip()
    if head.startswith(b"BZh"):
        return _Bzip2()
    return _Zstd() if head.startswith(b"\x28\xb5\x2f\xfd") else _Plain()


def is_packed(head: bytes) -> bool:
    """Whether the first bytes of a log say that it is packed."""
    return not isinstance(_format_of(head), _Plain)


class Unpacker:
    """Unpacks one log. After :attr:`damage` is set nothing more comes of it."""

    def __init__(self, caps: Caps) -> None:
        self.damage: Damage | None = None
        self._caps = caps
        self._head = b""
        self._format: _Format | None = None
        self._packed = self._unpacked = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What comes of the next bytes, in pieces of bounded size."""
        if self._format is None:
            self._head += data
            if len(self._head) < 4:
                return
            data, self._head = self._head, b""
            self._format = _format_of(data)
        if self.damage is not None:
            return
        self._packed += len(data)
        try:
            for piece in self._format.unpack(data):
                self._unpacked += len(piece)
                if piece:
                    yield piece
                if self._over():
                    return
        except (zlib.error, OSError, ValueError, EOFError, zstandard.ZstdError) as error:
            self.damage = Damage(Reason.CORRUPT_OBJECT, f"after {self._unpacked} bytes: {error}")

    @property
    def packed(self) -> bool:
        """Whether the bytes so far are packed."""
        return self._format is not None and not isinstance(self._format, _Plain)

    @property
    def unfinished(self) -> bool:
        """Whether the bytes so far are packed and end in the middle of what was packed together."""
        return self.damage is None and self._format is not None and not self._format.between

    def finish(self) -> Iterator[bytes]:
        """There are no more bytes."""
        if self._format is None:
            if self._head:
                yield self._head
        elif self.unfinished:
            self.damage = Damage(Reason.TRUNCATED_OBJECT, f"it ends after {self._unpacked} unpacked bytes")

    def _over(self) -> bool:
        caps = self._caps
        if isinstance(self._format, _Plain):
            return False
        if self._unpacked > caps.size:
            told = f"it unpacks to more than {caps.size} bytes"
        elif self._unpacked > _HARMLESS and self._unpacked > caps.ratio * self._packed:
            told = f"{self._packed} bytes unpack to more than {caps.ratio} times as many"
        else:
            return False
        self.damage = Damage(Reason.OVERSIZED_OBJECT, told)
        return True


class Lines:
    """Cuts bytes into lines, without their line feeds.

    ``limit``: of a longer line only so much is kept, and one byte more, so that it is seen to be too large.
    """

    def __init__(self, limit: int) -> None:
        self._keep = limit + 1
        self._rest = b""
        self._cut = False
        self._fed = self._open = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that end in these bytes."""
        self._fed += len(data)
        last = data.rfind(b"\n")
        self._open = len(data) - last - 1 if last >= 0 else self._open + len(data)
        if self._cut:
            end = data.find(b"\n")
            if end < 0:
                return []
            data, self._cut = data[end:], False
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > self._keep:
            self._rest, self._cut = self._rest[: self._keep], True
        return lines

    @property
    def whole(self) -> int:
        """Bytes of the lines that have ended, with their line feeds, also of what was not kept of them."""
        return self._fed - self._open

    @property
    def rest(self) -> bytes:
        """The line that has no end yet."""
        return self._rest
