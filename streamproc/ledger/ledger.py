"""The ledger: how far each partition is committed, which objects belong to the lake, who owns what.

The order of a worker's life::

    claims = await ledger.claim(partitions)                 # seek the source to each claim's position
    await ledger.intend(epoch_id, planned, claims.values()) # T1, before the first byte is put
    done = await ledger.commit(record, apply)               # T2: tables, objects, positions together
    claims |= done.claims                                   # always go on with these
    await ledger.release(claims.values())

After :class:`Fenced`, drop what is buffered for the epoch's partitions and claim again. After
:class:`DependencyError` nothing was kept and the same call may be made again. :class:`Inconsistent` stops
the worker.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self, TypeAlias, TypeVar

from psycopg import AsyncConnection

from streamproc.concurrency import until_answered
from streamproc.database import Database, OutcomeUnknown
from streamproc.errors import Fenced, Inconsistent, LedgerError
from streamproc.failpoints import failpoint, failpoint_when_waiting
from streamproc.ledger import claims as claiming
from streamproc.ledger import commit as committing
from streamproc.ledger import history, objects, origins, positions
from streamproc.ledger import migrate as migrating
from streamproc.ledger import sweep as sweeping
from streamproc.ledger.balance import verify
from streamproc.model import Claim, CommittedObject, EpochRecord, Partition, PlannedObject

T = TypeVar("T")

_Claims: TypeAlias = dict[Partition, Claim]
#: Calls what it is given until that is answered, and may say meanwhile what is waited for.
Patiently: TypeAlias = Callable[[Callable[[], Awaitable[_Claims]]], Awaitable[_Claims]]


@dataclass(frozen=True, slots=True)
class Committed(Generic[T]):
    """A commit that happened. ``result`` is what ``apply`` returned.

    ``claims``: the epoch's partitions with their new positions. They carry a new fence when the outcome
    had to be found out by claiming again; intents made under the old one are void.
    """

    result: T
    claims: Mapping[Partition, Claim]


class Ledger:
    """One stream's ledger in a PostgreSQL database (schema ``streamproc``), as one worker sees it.

    ``conninfo``: URL or libpq keywords. ``worker`` names this process in the ledger. ``pool_size``: most
    connections held at once. ``database`` may be shared with readers of the same database.
    """

    def __init__(self, conninfo: str, stream: str, worker: str, *, pool_size: int = 4) -> None:
        self.database = Database(conninfo, f"streamproc {worker}", size=pool_size)
        self.stream = stream
        self.worker = worker

    async def open(self) -> None:
        """Connect. Raises :class:`DependencyError` when the database does not answer."""
        await self.database.open()

    async def close(self) -> None:
        """Disconnect; claims stay until another worker claims or :meth:`release` is called first."""
        await self.database.close()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def migrate(self) -> int:
        """Create or upgrade the ledger's tables; returns how many migrations were applied.

        Several workers may do it at once. Raises :class:`LedgerError` when the tables belong to a newer
        release, and :class:`ConfigError` when the database is not encoded in UTF-8.
        """
        async with self.database.transaction("migrate the ledger") as conn:
            return await migrating.migrate(conn)

    async def visitor_key(self) -> bytes:
        """The key under which visitors of web logs get their ids: 32 bytes, drawn when the tables were made.

        All streams and workers of a ledger have the same.
        """
        async with self.database.connection("read the visitors' key") as conn:
            cursor = await conn.execute("SELECT value FROM streamproc.keys WHERE name = 'visitors'")
            row = await cursor.fetchone()
        if row is None:
            raise LedgerError(
                "streamproc.keys has no row 'visitors': visitors would get other ids than before"
            )
        return bytes(row[0])

    async def claim(self, partitions: Collection[Partition]) -> dict[Partition, Claim]:
        """Take the partitions, from whoever has them, all or none.

        Waits for a commit of the former owner that is under way. Objects intended for these partitions and
        not committed are abandoned (see :meth:`sweep`).
        """
        async with self.database.transaction("claim") as conn:
            return await claiming.claim(conn, self.stream, self.worker, partitions)

    async def note_log(self, claims: Collection[Claim], log: str) -> dict[Partition, str]:
        """``log`` is what the claimed partitions are read from; returns the log of each one's position.

        It is another one when the positions were committed in a log that is no more. Partitions that others
        have claimed since may be left out.
        """
        async with self.database.transaction("note the log") as conn:
            return await claiming.note_log(conn, self.stream, claims, log)

    async def begun(self, partitions: Sequence[Partition]) -> dict[Partition, int | None] | None:
        """Where these partitions of one source stand; ``None`` while :meth:`begin_behind` has nothing decided."""
        async with self.database.transaction("look where it begins") as conn:
            return await origins.begun(conn, self.stream, partitions)

    async def begin_behind(
        self, newest: Mapping[Partition, int], log: str | None
    ) -> dict[Partition, int | None]:
        """Unless that is decided, the source of these partitions begins behind these positions, of ``log``.

        ``newest``: all partitions of one source. Decided once, and claims do not matter: those made before have to
        go on from what is returned, the position of each. ``None``: it came later, and begins with its first record.
        """
        async with self.database.transaction("note where it begins") as conn:
            return await origins.begin_behind(conn, self.stream, newest, log)

    async def held(self, claims: Collection[Claim]) -> set[Partition]:
        """The partitions of those claims that nobody has claimed since."""
        mine = {claim.partition: claim for claim in claims}
        async with self.database.transaction("look at the claims") as conn:
            rows = await claiming.lock(conn, self.stream, mine, shared=True)
        return {partition for partition, row in rows.items() if row.held_by(mine[partition])}

    async def release(self, claims: Collection[Claim]) -> int:
        """Give up the claims that still hold; returns how many did. The others are left alone."""
        async with self.database.transaction("release") as conn:
            return await claiming.release(conn, self.stream, claims)

    async def intend(
        self, epoch: uuid.UUID, objects: Sequence[PlannedObject], claims: Mapping[Partition, Claim]
    ) -> None:
        """T1: note the objects about to be written, so that none can ever be there unknown.

        Raises :class:`Fenced` unless the claims of all the objects' partitions hold.
        """
        if not objects:
            return
        wanted = {plan.partition for plan in objects}
        if missing := wanted - claims.keys():
            raise Inconsistent(f"objects intended for unclaimed partitions: {sorted(map(str, missing))}")
        held = [claims[partition] for partition in sorted(wanted)]
        async with self.database.transaction("intend") as conn:
            await committing.intend(conn, self.stream, epoch, objects, held)

    async def commit(
        self,
        epoch: EpochRecord,
        apply: Callable[[AsyncConnection[Any]], Awaitable[T]],
        patiently: Patiently | None = None,
    ) -> Committed[T]:
        """T2: commit the epoch's objects, counts and positions, and what ``apply`` does, or nothing.

        ``apply`` gets the transaction's connection to merge the tables; it must not end the transaction and
        is called at most once. It comes last, because its row locks are the ones other workers wait for.

        When the connection is lost during COMMIT the outcome is found out by claiming again, for as long as
        the database takes to come back: returns if it was committed, raises :class:`Fenced` if not. ``patiently``
        is who waits, for callers that tell others of it.
        Cancelling meanwhile leaves it unknown, as a crash does, and the next claim finds out.

        Raises :class:`Fenced`, :class:`Inconsistent` (see :func:`streamproc.ledger.balance.verify`) or
        :class:`DependencyError`; nothing was kept then.
        """
        verify(epoch)
        result: T
        try:
            async with self.database.transaction("commit") as conn:
                await committing.lock_for_commit(conn, self.stream, epoch.advances)
                failpoint("commit.fenced")
                await committing.record(conn, self.stream, self.worker, epoch)
                result = await apply(conn)
                failpoint("commit.merged")
                failpoint_when_waiting("commit.sent")  # what comes next is COMMIT
        except OutcomeUnknown:
            claims = await self._find_out(epoch, patiently)
        else:
            claims = {advance.claim.partition: advance.claim for advance in epoch.advances}
        return Committed(
            result,
            {
                advance.claim.partition: replace(
                    claims[advance.claim.partition],
                    position=advance.through,
                    clock_us=_newest(advance.claim.clock_us, advance.clock_us),
                )
                for advance in epoch.advances
            },
        )

    async def sweep(
        self,
        store: sweeping.Deletes,
        times: sweeping.SweepTimes | None = None,
        now: datetime | None = None,
    ) -> int:
        """Delete abandoned objects from ``store``, twice each; returns the number of deletions."""
        return await sweeping.sweep(self.database, self.stream, store, times or sweeping.SweepTimes(), now)

    async def status(self) -> list[history.PartitionStatus]:
        """Position, owner, fence, clock and counts of every partition ever claimed, sorted."""
        async with self.database.connection("read the status") as conn:
            return await history.status(conn, self.stream)

    async def shards(self) -> dict[Partition, history.ShardStatus]:
        """What is known of the shards of a source without groups; empty for others."""
        async with self.database.connection("read the shards") as conn:
            return await history.shards(conn, self.stream)

    async def epochs(self, since: datetime | None = None, limit: int = 100) -> list[history.EpochSummary]:
        """The newest epochs first, with their ranges, counts and stage timings."""
        async with self.database.connection("read the epochs") as conn:
            return await history.epochs(conn, self.stream, since, limit)

    async def late(self) -> dict[str, int]:
        """Late events by table, of all time."""
        async with self.database.connection("count late events") as conn:
            return await history.late(conn, self.stream)

    async def forget(self, age: timedelta) -> int:
        """Delete the history of epochs and swept objects older than ``age``; positions and totals stay."""
        async with self.database.transaction("forget old epochs") as conn:
            return await history.forget(conn, self.stream, age)

    async def set_position(self, new: positions.NewPosition) -> int | None:
        """An operator's change of a position; it is noted for ever. Returns the position before.

        The partition's owner is fenced off and claims again. Raises :class:`LedgerError` when the change
        skips or repeats records without that being accepted.
        """
        async with self.database.transaction("set a position") as conn:
            return await positions.set_position(conn, self.stream, self.worker, new)

    async def position_changes(self) -> list[positions.PositionChange]:
        """Every position set by an operator, oldest first."""
        async with self.database.connection("read the position changes") as conn:
            return await positions.position_changes(conn, self.stream)

    def manifest(
        self, kind: str = "events", since_us: int | None = None, until_us: int | None = None
    ) -> AsyncIterator[CommittedObject]:
        """Committed objects that may hold rows with event time in ``[since_us, until_us)``, by newest time.

        (``rejects`` objects go by ``received_at``.) An object committed while reading may be left out.
        """
        return objects.by_event_time(self.database, self.stream, kind, since_us, until_us)

    async def now(self) -> datetime:
        """The database's clock, by which commit times are, UTC."""
        async with self.database.connection("ask for the time") as conn:
            row = await (await conn.execute("SELECT clock_timestamp()")).fetchone()
        assert row is not None
        now: datetime = row[0]
        return now

    def committed(
        self, kind: str = "events", since: datetime | None = None
    ) -> AsyncIterator[list[CommittedObject]]:
        """Pages of committed objects by commit time.

        A commit time is taken before its transaction ends, so objects can appear behind the newest one seen:
        a reader that remembers where it was needs an overlap, and a full pass now and then.
        """
        return objects.by_commit(self.database, self.stream, kind, since)

    async def unshared(self, plans: Sequence[PlannedObject]) -> set[str]:
        """Keys of those ``events`` objects of whose positions and hour no other committed object has any."""
        return await objects.unshared(self.database, self.stream, plans)

    def newest_first(self, kind: str = "events") -> AsyncGenerator[list[CommittedObject]]:
        """Pages of committed objects by commit time, the newest first."""
        return objects.newest_first(self.database, self.stream, kind)

    async def recent_objects(self, partition: Partition, since_clock_us: int) -> list[CommittedObject]:
        """The partition's ``events`` objects whose clock reached ``since_clock_us``, in position order."""
        return await objects.by_clock(self.database, self.stream, partition, since_clock_us)

    async def object_totals(self) -> list[objects.ObjectTotal]:
        """Objects, rows and bytes by kind and state. Reads the whole list."""
        return await objects.totals(self.database, self.stream)

    async def _find_out(self, epoch: EpochRecord, patiently: Patiently | None) -> _Claims:
        ask = partial(self._claim_again, epoch)
        if patiently is None:
            return await until_answered(ask, lambda error, attempt: None)
        return await patiently(ask)

    async def _claim_again(self, epoch: EpochRecord) -> _Claims:
        """The claims to go on with if the epoch was committed; :class:`Fenced` if it was not.

        The lost transaction holds the partitions' row locks until it is decided; once we have them, it is.
        A partition somebody else has claimed meanwhile is left to them: its old claim is returned, and the
        next write under it is refused.
        """
        mine = {advance.claim.partition: advance.claim for advance in epoch.advances}
        async with self.database.transaction("claim again after a lost COMMIT") as conn:
            rows = await claiming.lock(conn, self.stream, mine, shared=False)
            ours = [partition for partition, row in rows.items() if row.held_by(mine[partition])]
            happened = await committing.committed(conn, epoch.id)
            again = await claiming.claim(conn, self.stream, self.worker, ours) if ours else {}
        if not happened:
            raise Fenced(f"the connection was lost during COMMIT and epoch {epoch.id} was not committed")
        return mine | again


def _newest(*clocks: int | None) -> int | None:
    return max((clock for clock in clocks if clock is not None), default=None)
