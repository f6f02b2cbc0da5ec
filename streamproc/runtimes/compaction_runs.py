"""Which commits become one: those of a partition and of an hour that is over."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from streamproc.ledger import Ledger
from streamproc.ledger.compaction import Commit, commits
from streamproc.model import Partition
from streamproc.topology import Topology

#: Bytes of a merged object.
TARGET = 128 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class CompactionLimits:
    """A run ends at ``bytes`` or ``rows``, whichever comes first; the sums are of the objects that are merged.

    128 MiB is what Spark and Athena split large files into. ``rows``: a replay folds what is outside its range
    commit by commit, in memory. ``quiet``: seconds without a commit of a partition after which its last hour counts
    as over too.
    """

    bytes: int = TARGET
    rows: int = 1_048_576
    quiet: int = 2 * 3600


@dataclass(frozen=True, slots=True)
class Run:
    """Commits ``(after, through]`` of a partition that become one; ``hour``: see :class:`Commit`."""

    partition: Partition
    after: int | None
    through: int
    hour: int | None
    commits: int
    objects: int
    bytes: int
    rows: int


async def runs(page: Topology, ledger: Ledger, limits: CompactionLimits) -> AsyncIterator[Run]:
    """What can be compacted now, by partition and position."""
    contract = page.contract
    patience = contract.event_time.disorder + (contract.duplicates.horizon if contract.duplicates else 0)
    taken: list[Commit] = []
    async with aclosing(commits(ledger.database, ledger.stream, patience, limits.quiet)) as listed:
        async for commit in listed:
            if taken and not _belongs(taken, commit, limits):
                if len(taken) > 1:
                    yield _run(taken)
                taken = []
            if commit.over and not commit.held:
                taken.append(commit)
        if len(taken) > 1:
            yield _run(taken)


def _belongs(taken: Sequence[Commit], commit: Commit, limits: CompactionLimits) -> bool:
    """Whether the commit goes into one run with those before it."""
    last = taken[-1]
    return (
        commit.over
        and not commit.held
        and commit.partition == last.partition
        and commit.hour == last.hour
        and (-1 if commit.after is None else commit.after) >= last.through
        and sum(each.bytes for each in taken) + commit.bytes <= limits.bytes
        and sum(each.rows for each in taken) + commit.rows <= limits.rows
    )


def _run(commits: Sequence[Commit]) -> Run:
    return Run(
        commits[0].partition,
        commits[0].after,
        commits[-1].through,
        commits[0].hour,
        commits=len(commits),
        objects=sum(commit.objects for commit in commits),
        bytes=sum(commit.bytes for commit in commits),
        rows=sum(commit.rows for commit in commits),
    )
