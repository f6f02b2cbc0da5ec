"""Objects as files in a folder: ``file:///path``."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, unquote, urlsplit

from streamproc.errors import DependencyError, MissingObject
from streamproc.sinks.object_store import Listed, Stored, check_key

T = TypeVar("T")

#: Files being written live here, so that nothing below the other folders is ever incomplete.
_UNFINISHED = ".unfinished"

#: An unfinished file this old (seconds) belongs to a process that died.
_ABANDONED_AFTER = 86_400


class LocalStore:
    """A folder. A put writes a temporary file and renames it, so readers see all of an object or nothing.

    ``durable``: also fsync the file and its folders, so that a put survives the machine's crash. About
    4 ms on an SSD.
    """

    def __init__(self, url: str, *, durable: bool = True) -> None:
        self.root = Path(unquote(urlsplit(url).path))
        self._durable = durable
        self._unfinished = self.root / _UNFINISHED

    def __repr__(self) -> str:
        return f"LocalStore({self.root})"

    async def open(self) -> None:
        """Create the folder and remove what crashed writers left unfinished a day ago."""
        await self._run("open", "", self._prepare)

    async def close(self) -> None:
        """Nothing to close."""

    async def put(self, key: str, body: bytes) -> Stored:
        """Write the file under another name, then give it its own."""
        return await self._run("put", check_key(key), lambda: self._write(key, body))

    async def get(self, key: str) -> bytes:
        """The file's bytes."""
        return await self._run("get", check_key(key), (self.root / key).read_bytes)

    async def tail(self, key: str, size: int) -> bytes:
        """Reads only the end of the file."""
        return await self._run("get", check_key(key), lambda: _read_end(self.root / key, size))

    async def head(self, key: str) -> Listed | None:
        """The file's size, if it is there."""
        try:
            stat = await self._run("head", check_key(key), (self.root / key).stat)
        except MissingObject:
            return None
        return Listed(key, stat.st_size)

    async def delete(self, key: str) -> None:
        """Remove the file; its folders stay."""
        await self._run("delete", check_key(key), lambda: (self.root / key).unlink(missing_ok=True))

    async def list(self, prefix: str = "") -> AsyncIterator[Listed]:
        """Walks only the folder that ``prefix`` names."""
        for listed in await self._run(
            "list", prefix, lambda: sorted(self._walk(prefix), key=lambda found: found.key)
        ):
            yield listed

    def url(self, key: str) -> str:
        """``file:///...``."""
        return f"file://{quote(str(self.root / check_key(key)), safe='/=')}"

    async def _run(self, operation: str, key: str, work: Callable[[], T]) -> T:
        try:
            return await asyncio.to_thread(work)
        except FileNotFoundError as error:
            raise MissingObject(str(self.root / key), f"{operation}: no such object") from error
        except OSError as error:
            hint = "is it a folder this user may write to, with space left?"
            raise DependencyError(
                str(self.root / key), f"{operation}: {error.strerror or error}", hint
            ) from error

    def _prepare(self) -> None:
        self._make_folder(self.root)
        self._unfinished.mkdir(exist_ok=True)
        for leftover in self._unfinished.iterdir():
            with suppress(FileNotFoundError):  # another process has just given it its name
                if leftover.stat().st_mtime < time.time() - _ABANDONED_AFTER:
                    leftover.unlink(missing_ok=True)

    def _write(self, key: str, body: bytes) -> Stored:
        target = self.root / key
        self._make_folder(target.parent)
        unfinished = self._unfinished / f"{target.name}.{secrets.token_hex(8)}"
        try:
            with unfinished.open("xb") as file:
                file.write(body)
                if self._durable:
                    file.flush()
                    os.fsync(file.fileno())
            unfinished.replace(target)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        self._sync_folder(target.parent)
        return Stored(key, len(body), hashlib.sha256(body).hexdigest())

    def _make_folder(self, folder: Path) -> None:
        """``mkdir -p``, with every new name made durable in the folder above it."""
        if folder.is_dir():
            return
        self._make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        self._sync_folder(folder.parent)

    def _sync_folder(self, folder: Path) -> None:
        if not self._durable:
            return
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def _walk(self, prefix: str) -> Iterator[Listed]:
        for folder, folders, files in os.walk(self.root / prefix.rpartition("/")[0]):
            if _UNFINISHED in folders:
                folders.remove(_UNFINISHED)
            for name in files:
                path = Path(folder, name)
                key = path.relative_to(self.root).as_posix()
                if key.startswith(prefix):
                    yield Listed(key, path.stat().st_size)


def _read_end(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - size))
        return file.read()
