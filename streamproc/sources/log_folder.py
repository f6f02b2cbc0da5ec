"""Logs in a folder of this machine: files that grow, are renamed, copied, truncated and packed.

A file is known by its first line, unpacked: it stays the same whatever rotation does to name and inode. So
a renamed, copied or packed file is the log that was read before, and a truncated one a new log. Of two files
with one first line, the other one is a log of its own if they differ later on, known by the line in which they do.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple
from urllib.parse import unquote, urlsplit

import structlog

from streamproc.errors import DependencyError
from streamproc.log_objects import PACKED, LogEntry
from streamproc.sources.log_store import LogBytes, LogConnection, LogGone, log_id
from streamproc.sources.log_unpack import Caps, Unpacker, is_packed

log = structlog.get_logger(__name__)

_CHUNK = 1 << 20

#: Bytes, packed, in which a first line has to be found.
_HEAD = 256 << 10


class _Seen(NamedTuple):
    entry: LogEntry
    inode: int
    head: bytes


class Folder:
    """A :class:`~streamproc.sources.log_store.LogStore` for ``file:///folder``, with the folders below it.

    Hidden files, empty ones, what is no file (pipes, devices), those whose names are not UTF-8, and those whose first
    line is not complete yet are passed over.
    """

    def __init__(self, connection: LogConnection) -> None:
        self._root = Path(unquote(urlsplit(connection.url).path))
        #: What a file was last seen as, by path: only what has changed is looked into again.
        self._seen: dict[str, tuple[tuple[int, int, int], _Seen]] = {}
        #: Of those with names that are no text, what a listing told of.
        self._unreadable: set[str] = set()

    async def open(self) -> None:
        """See that the folder is there."""
        if not await asyncio.to_thread(self._root.is_dir):
            raise DependencyError(str(self._root), "there is no such folder", "create it, or correct the URL")

    async def close(self) -> None:
        """Nothing to do."""

    async def listing(self) -> AsyncIterator[list[LogEntry]]:
        """All logs, in one go."""
        yield await asyncio.to_thread(self._list)

    async def read(self, entry: LogEntry, offset: int) -> AsyncIterator[LogBytes]:
        """The file's bytes from an offset on, through those that come to it meanwhile."""
        path = self._root / entry.place
        file, begins = await asyncio.to_thread(self._open, path, entry)
        with file, _answering(path):
            await asyncio.to_thread(file.seek, offset)
            while (read := await asyncio.to_thread(_next, file, begins)).data:
                yield read

    @staticmethod
    def _open(path: Path, entry: LogEntry) -> tuple[IO[bytes], bytes]:
        """The file, and what it begins with: as many bytes as it has through its first line, unpacked."""
        with _answering(path):
            if not path.is_file():  # opening a pipe waits, perhaps for ever
                raise LogGone(f"{path} is not there any more")
            file = path.open("rb")
            try:
                begins = file.read(_HEAD)
                head = _unpacked(begins)
                if _first_line(head) == entry.version:
                    return file, begins[: _first_line_end(head)]
            except OSError:
                file.close()
                raise
        file.close()
        raise LogGone(f"{path}: there is another log now")

    def _list(self) -> list[LogEntry]:
        found: dict[str, _Seen] = {}
        seen = {}
        unreadable = set()
        for path in sorted(self._paths()):
            place = path.relative_to(self._root).as_posix()
            if (name := os.fsencode(place).decode(errors="backslashreplace")) != place:
                unreadable.add(name)  # no text, which is all that the ledger's database takes
                continue
            try:
                status = path.stat()
                if not stat.S_ISREG(status.st_mode):  # opening a pipe waits, perhaps for ever
                    continue
                state = (status.st_ino, status.st_size, status.st_mtime_ns)
                known = self._seen.get(place)
                one = known[1] if known and known[0] == state else self._look(path, place, status)
            except OSError:  # gone meanwhile, or not ours to read: the next listing tells
                continue
            seen[place] = (state, one)
            if one.entry.version:
                self._add(found, one)
        for name in sorted(unreadable - self._unreadable):
            log.warning("log_name_unreadable", log=name, hint="its name is not UTF-8: rename it")
        self._seen, self._unreadable = seen, unreadable
        return [one.entry for one in found.values()]

    def _paths(self) -> list[Path]:
        files = (Path(folder) / name for folder, _, names in os.walk(self._root) for name in names)
        return [path for path in files if not path.name.startswith(".")]

    @staticmethod
    def _look(path: Path, place: str, status: os.stat_result) -> _Seen:
        with path.open("rb") as file:
            begins = file.read(_HEAD)
        head = _unpacked(begins)
        line = _first_line(head)
        size = status.st_size + (PACKED if is_packed(begins) else 0)
        entry = LogEntry(log_id("", line), place, line, size, status.st_mtime_ns // 1_000_000)
        return _Seen(entry, status.st_ino, head)

    @staticmethod
    def _add(found: dict[str, _Seen], one: _Seen) -> None:
        """One of several files that begin alike: the longer content is the log, the other a copy in the making.

        Those that differ later on are told by the lines in which they do, which packing and copying keep.
        """
        differences: list[str] = []
        while (other := found.get(one.entry.id)) is not None and other.inode != one.inode:
            length = min(len(one.head), len(other.head))
            if one.head[:length] == other.head[:length]:
                if len(one.head) > len(other.head):
                    found[one.entry.id] = one
                return
            difference = _first_difference(one.head, other.head)
            if not difference:  # not complete yet: the next listing tells
                return
            differences.append(difference)
            own = log_id("", one.entry.version, *differences)
            one = one._replace(entry=one.entry._replace(id=own))
        found[one.entry.id] = one


@contextmanager
def _answering(path: Path) -> Iterator[None]:
    """A file that cannot be read is waited for, as a store is that does not answer; one that is gone is gone."""
    try:
        yield
    except FileNotFoundError:
        raise LogGone(f"{path} is not there any more") from None
    except OSError as error:
        raise DependencyError(str(path), str(error), "may this process read it?") from error


def _next(file: IO[bytes], begins: bytes) -> LogBytes:
    """Some more bytes, none at the end. Raises :class:`LogGone` when the file begins otherwise by now.

    Somebody truncated it then. The bytes may be those of another log, which has grown beyond the place where we are,
    and there being none is not the end of ours: that goes on in the copy that was made before.
    """
    data = file.read(_CHUNK)
    status = os.fstat(file.fileno())
    if status.st_size < file.tell() or os.pread(file.fileno(), len(begins), 0) != begins:
        raise LogGone(f"{file.name} was truncated while it was read")
    return LogBytes(data, status.st_mtime_ns // 1_000_000)


def _unpacked(begins: bytes) -> bytes:
    """The beginning of a file, unpacked."""
    unpacker = Unpacker(Caps())
    pieces = []
    for piece in unpacker.feed(begins):
        pieces.append(piece)
        if sum(map(len, pieces)) >= _HEAD:
            break
    return b"".join(pieces)[:_HEAD]


def _first_line(head: bytes) -> str:
    """A digest of the first line that is no header; empty while there is none."""
    end = _first_line_end(head)
    line = head[:end].rstrip(b"\n").rpartition(b"\n")[2]
    return hashlib.blake2b(line, digest_size=16).hexdigest() if end else ""


def _first_line_end(head: bytes) -> int:
    """Where the first line ends that is no header, behind its line feed; 0 while there is none."""
    end = 0
    for line in head.split(b"\n")[:-1]:
        end += len(line) + 1
        if line.strip() and not line.startswith(b"#"):
            return end
    return 0


def _first_difference(head: bytes, other: bytes) -> str:
    """A digest of the first line in which a file's beginning is not the other's; empty while that has no end."""
    lines, others = head.split(b"\n"), other.split(b"\n")
    if len(head) < _HEAD:
        lines.pop()
    at = next((at for at, line in enumerate(lines) if at >= len(others) or line != others[at]), None)
    return "" if at is None else hashlib.blake2b(lines[at], digest_size=16).hexdigest()
