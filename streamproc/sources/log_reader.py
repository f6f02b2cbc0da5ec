"""Reads one log: bytes to lines to record batches, from behind the committed row on.

Positions are row numbers, from 0. A packed log is unpacked from its beginning and the rows that are committed
are passed over; one that is not packed goes on at the byte that the ledger knows.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import structlog

from streamproc.concurrency import end_if_cancelled
from streamproc.errors import DependencyError
from streamproc.log_objects import PACKED, LogEnd, TakenLog
from streamproc.model import Damage, Partition, RecordBatch
from streamproc.sources import Outage, Waiting
from streamproc.sources.log_store import LogGone, LogStore
from streamproc.sources.log_unpack import Caps, Lines, Unpacker
from streamproc.transform.decode_rejects import Reason

log = structlog.get_logger(__name__)

#: Seconds before a read that failed is tried again, and the longest wait.
_WAIT, _WAIT_MOST = 0.5, 15.0

#: Seconds without another byte after which a packed file that ends in the middle is broken, and not on its way.
_SETTLED = 30.0

#: How a header line begins that names the fields.
_FIELDS = b"#Fields:"

#: Records in a batch: one that is handed out is not split.
_BATCH = 10_000


@dataclass(frozen=True, slots=True)
class Reading:
    """How logs are read. ``max_line``: bytes; ``fields``: what a ``#Fields:`` line has to say, where there are any.

    ``headers``: lines that begin with ``#`` are no records. ``growing``: a last line without its line feed is
    not complete yet. ``room``: whether more may be read; ``arrived``: something can be handed out;
    ``waiting``: is told what is being waited out.
    """

    store: LogStore
    caps: Caps
    max_line: int
    headers: bool
    fields: str | None
    growing: bool
    room: Callable[[], bool]
    arrived: asyncio.Event
    waiting: Waiting


class _OnItsWay(Exception):
    """A packed file ends in the middle: somebody may still be copying it."""


class LogReader:
    """One log. :attr:`end` is set when everything of it is in the queue.

    ``committed``: through here, ``None`` where the ledger has no position: then what it noted of the log's end holds.
    """

    def __init__(self, partition: Partition, taken: TakenLog, committed: int | None, how: Reading) -> None:
        self.partition = partition
        self.entry = taken.entry
        self.paused = False
        self.queued_bytes = 0
        self.end: LogEnd | None = None
        self._how = how
        self._queue: deque[RecordBatch] = deque()
        before = -1 if taken.end is None else taken.end.position
        #: Through here everything is committed or queued.
        self._through = before if committed is None else committed
        self.handed_out = self._through
        self._began_at = self._read_bytes = 0
        self._row = -1
        #: When the log was changed last, of the bytes that the rows to come end in.
        self._modified_ms = self.entry.modified_ms
        self._unpacker = Unpacker(how.caps)
        self._lines = Lines(how.max_line)
        #: Of the lines, where the bytes are sound.
        self._damage: Damage | None = None
        if (after := self._byte_after(taken)) is not None:
            self._row, self._began_at = self._through, after
        self._size_before = 0 if taken.end is None else taken.end.size
        self._go = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def _byte_after(self, taken: TakenLog) -> int | None:
        """Where in the file the row after the committed one begins, if the ledger knows and it is not packed."""
        if taken.end is None or taken.end.position != self._through or taken.entry.size >= PACKED:
            return None
        return taken.end.offset

    def start(self) -> None:
        """Begin to read."""
        self._task = asyncio.create_task(self._run(), name=f"read {self.entry.place}")

    async def stop(self) -> None:
        """Read no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    @property
    def failure(self) -> BaseException | None:
        """What the reading raised, beyond what is waited out."""
        done = self._task is not None and self._task.done() and not self._task.cancelled()
        return self._task.exception() if done and self._task is not None else None

    def next(self) -> RecordBatch | None:
        """The next batch, if there is one."""
        if not self._queue:
            return None
        batch = self._queue.popleft()
        self.queued_bytes -= batch.size
        self.handed_out = batch.through
        return batch

    @property
    def newest(self) -> int:
        """Position of the newest record that is read."""
        return self._through

    @property
    def has_records(self) -> bool:
        """Whether there is something to hand out."""
        return bool(self._queue)

    def go_on(self) -> None:
        """There is room again."""
        self._go.set()

    async def _run(self) -> None:
        delay, gone, quiet, outage = _WAIT, False, 0.0, Outage()
        while True:
            before = self._read_bytes
            try:
                await self._read(whole=not self._how.growing or quiet >= _SETTLED)
                break
            except _OnItsWay:
                quiet = 0.0 if self._read_bytes > before else quiet + _WAIT
                await asyncio.sleep(_WAIT)
            except DependencyError as error:
                end_if_cancelled(error)
                if self._read_bytes > before:  # it answers: a long object may well break off many times
                    delay = _WAIT
                    outage.over()
                self._how.waiting(error, outage.failed())
                await asyncio.sleep(delay)
                delay = min(delay * 2, _WAIT_MOST)
            except LogGone as error:
                log.warning("log_gone", log=self.entry.place, why=str(error), rows=self._row + 1)
                gone = True
                break
        self.end = self._end(gone=gone)
        self._how.arrived.set()

    def _end(self, *, gone: bool) -> LogEnd:
        read, packed = self._began_at + self._read_bytes, self._packed
        behind = self._row >= self._through  # else it is gone among rows that were committed before
        offset = self._began_at + self._lines.whole if behind and not packed else None
        if gone:
            # What a packed one has beyond the rows before is found by unpacking it again.
            size = self._size_before if packed else read
        else:
            seen = read + PACKED if self.entry.size >= PACKED else read
            size = max(self.entry.size, seen) if self._how.growing else self.entry.size
        return LogEnd(size, self._through, offset, gone)

    @property
    def _packed(self) -> bool:
        return self._unpacker.packed or self.entry.size >= PACKED

    async def _read(self, *, whole: bool) -> None:
        """From the byte that comes next, also after a lost connection: the unpacking goes on where it was.

        ``whole``: more than is there will not come. Raises :class:`_OnItsWay` where that may be wrong.
        """
        async for chunk in self._how.store.read(self.entry, self._began_at + self._read_bytes):
            self._read_bytes += len(chunk.data)
            # A growing file is read beyond what its listing saw: rows written since are newer than that.
            self._modified_ms = max(self._modified_ms, chunk.modified_ms)
            await self._take(self._unpacker.feed(chunk.data))
            if self._unpacker.damage is not None or self._damage is not None:
                break
        if not whole and self._unpacker.unfinished:
            raise _OnItsWay
        await self._take(self._unpacker.finish())
        damage, rest = self._unpacker.damage or self._damage, self._lines.rest
        if damage is not None or (rest and (self._unpacker.packed or not self._how.growing)):
            self._put([b"" if self._damage else rest], damage)

    async def _take(self, pieces: Iterator[bytes]) -> None:
        """Queue the lines of these pieces."""
        while self._damage is None:
            lines = await asyncio.to_thread(self._cut, pieces)
            if lines is None:
                return
            for start in range(0, len(lines), _BATCH):
                self._damage = self._put(lines[start : start + _BATCH], None)
                if self._damage is not None:
                    return
            while not self._how.room():
                self._go.clear()
                await self._go.wait()

    def _cut(self, pieces: Iterator[bytes]) -> list[bytes] | None:
        """The lines of the next piece."""
        piece = next(pieces, None)
        return None if piece is None else self._lines.feed(piece)

    def _put(self, lines: list[bytes], damage: Damage | None) -> Damage | None:
        """Number these lines and queue what is not committed yet; returns why reading cannot go on."""
        headers = damage is None and self._how.headers and any(line.startswith(b"#") for line in lines)
        if headers and (wrong := self._wrong_header(lines)) is not None:
            at, why = wrong
            self._put(lines[:at], None)
            return why
        first = self._row + 1
        self._row += len(lines)
        positions: Sequence[int] = range(first, first + len(lines))
        if headers:
            kept = [
                (at, line) for at, line in zip(positions, lines, strict=True) if not line.startswith(b"#")
            ]
            positions, lines = [at for at, _ in kept], [line for _, line in kept]
        if positions and positions[0] <= self._through:
            new = next((n for n, at in enumerate(positions) if at > self._through), len(positions))
            positions, lines = positions[new:], lines[new:]
        if not lines:
            return None
        after, through = self._through, positions[-1]
        size = sum(map(len, lines))
        self._queue.append(
            RecordBatch(
                self.partition,
                after,
                through,
                lines,
                positions,
                self._modified_ms,
                size,
                damage=damage,
            )
        )
        self._through = through
        self.queued_bytes += size
        self._how.arrived.set()
        return None

    def _wrong_header(self, lines: list[bytes]) -> tuple[int, Damage] | None:
        """Which of the lines says other fields than the page; ``None``: none does."""
        if self._how.fields is None:
            return None
        for at, line in enumerate(lines):
            if not line.startswith(_FIELDS):
                continue
            told = line.removeprefix(_FIELDS).decode(errors="replace").split()
            if told and told != self._how.fields.split():
                detail = f"its #Fields are others than those of the page: {' '.join(told)}"
                return at, Damage(Reason.CORRUPT_OBJECT, detail)
        return None
