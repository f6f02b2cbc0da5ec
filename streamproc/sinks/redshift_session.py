"""What Redshift is asked: several statements, all of them or none."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from streamproc.errors import StreamprocError

#: Of one statement. The Data API takes 100 KB of a statement and 40 statements at once:
#: https://docs.aws.amazon.com/redshift/latest/mgmt/data-api.html and the API reference of BatchExecuteStatement.
#: Less, because it is not said whether KB are 1000 or 1024 bytes, or whether the limit itself is in.
MOST_BYTES = 90_000
MOST_STATEMENTS = 40

#: Of all statements of a batch together: requests of megabytes are nobody's tested case.
MOST_BATCH_BYTES = 900_000

#: Seconds within which the first statement of a batch has to end. It has little to do but to wait for a lock; those
#: behind it may take as long as they take.
FIRST_WITHIN = 3600.0

#: What to do when it has not.
LOCKED = "does another transaction hold a lock? svv_transactions says which, see docs/redshift.md, Failures"

#: Messages of transactions that another one got in the way of: the same again may work.
#: https://docs.aws.amazon.com/redshift/latest/dg/c_serial_isolation-serializable-isolation-troubleshooting.html
_IN_THE_WAY = re.compile(
    r"\b1023\b|serializable isolation violation|could not serialize|deadlock detected|\b1018\b|"
    r"conflict with concurrent transaction",
    re.IGNORECASE,
)

#: Messages that speak of the way to the data or of the cluster, never of what is in an object.
_WAY = re.compile(
    r"access ?denied|not authori[sz]ed|permission denied|assume ?role|forbidden|credentials|"
    r"invalid(accesskey|token)|expiredtoken|token (has|is) expired|signaturedoesnotmatch|nosuchbucket|slow ?down|"
    r"must be addressed using the specified endpoint|timed? ?out|"
    r"connection (was |is |has been )?(lost|refused|closed|reset|terminated)|"
    r"disk full|out of memory|cancell?ed|shutting down|quota|try again|internal error|read-only",
    re.IGNORECASE,
)


class BatchFailed(StreamprocError):
    """A statement failed, and nothing of the batch was kept. ``index``: which one, from 0; ``None``: not said."""

    def __init__(self, index: int | None, message: str) -> None:
        self.index = index
        self.message = " ".join(message.split())
        super().__init__(self.message)

    @property
    def in_the_way(self) -> bool:
        """Whether another transaction was in the way of this one."""
        return _IN_THE_WAY.search(self.message) is not None

    @property
    def of_the_way(self) -> bool:
        """Whether it says that data or cluster could not be got at: no fault of the data."""
        return _WAY.search(self.message) is not None

    @property
    def divided_by_zero(self) -> bool:
        """Whether a statement failed that is written to fail: one found what it must not find."""
        return re.search(r"divi(de|sion) by zero", self.message, re.IGNORECASE) is not None


#: The rows of a statement, ``None`` for null; no rows where it gives none.
Results = list[list[tuple[object, ...]]]


class Session(Protocol):
    """Runs statements. One batch at a time is under way, others wait."""

    async def open(self) -> None:
        """Connect. Raises :class:`DependencyError` when it does not answer."""

    async def close(self) -> None:
        """Disconnect. Calling it again does nothing."""

    async def run(self, statements: Sequence[str]) -> Results:
        """Run at most :data:`MOST_STATEMENTS` in one transaction; the results of each, in order.

        Raises :class:`BatchFailed` when nothing was kept, and :class:`DependencyError` when it is not known
        whether all was kept or nothing, or the first has not ended within :data:`FIRST_WITHIN`. Cancelling cancels
        what is under way there, as far as it can be.
        """


def batches(statements: Iterable[str], most: int = MOST_STATEMENTS) -> Iterator[list[str]]:
    """The statements in batches of at most ``most`` and :data:`MOST_BATCH_BYTES`."""
    batch: list[str] = []
    size = 0
    for statement in statements:
        more = len(statement.encode())
        if batch and (len(batch) == most or size + more > MOST_BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(statement)
        size += more
    if batch:
        yield batch
