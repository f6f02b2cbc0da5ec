"""Every error this project raises.

::

    StreamprocError
    ├── ConfigError            what the user wrote is wrong; lists every mistake at once   (exit 2)
    ├── ExpressionError        one SQL expression of a topic page is wrong
    ├── EnrichmentFailed       an enrichment broke its promise; the worker stops, the batch is not lost
    ├── DependencyError        a broker, database or object store does not answer; retried
    │   └── MissingObject      the store answers, and does not have an object that should be there
    ├── LedgerError
    │   ├── Fenced             another worker claimed a partition we thought was ours
    │   └── Inconsistent       the ledger's own arithmetic does not add up; the worker stops
    └── SourceError
        ├── Gap                the source no longer has the records after our position
        └── UnexpectedPosition the source handed out a position it cannot have

Bad *data* never raises: it becomes a reject (see :mod:`streamproc.transform`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


class StreamprocError(Exception):
    """Base of everything raised on purpose."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing wrong in a configuration.

    ``where`` is the file and the dotted path in it (``clickstream.toml: tables.sessions.window.gap``),
    ``problem`` says what is wrong, ``fix`` what to write instead.
    """

    where: str
    problem: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}. {self.fix}"


class ConfigError(StreamprocError):
    """The configuration is wrong. ``mistakes`` holds all of them, not just the first."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        count = len(self.mistakes)
        heading = f"{count} configuration mistake{'s' if count != 1 else ''}"
        super().__init__("\n".join([heading, *(f"  {m}" for m in self.mistakes)]))


class ExpressionError(StreamprocError):
    """A SQL expression cannot be used. ``problem`` says why, without naming where it was written."""

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(problem)


class EnrichmentFailed(StreamprocError):
    """An enrichment raised, or changed what it may not change.

    ``enrichment`` names it (a user's function by its dotted path). Bad data never causes this in a built-in
    enrichment; it means code is wrong, so retrying does not help and dropping the batch would lose events.
    """

    def __init__(self, enrichment: str, problem: str) -> None:
        self.enrichment = enrichment
        self.problem = problem
        super().__init__(f"{enrichment}: {problem}")


class DependencyError(StreamprocError):
    """Something we need does not answer. ``what`` names it, ``hint`` says what to look at."""

    def __init__(self, what: str, problem: str, hint: str = "") -> None:
        self.what = what
        self.problem = problem
        self.hint = hint
        super().__init__(f"{what}: {problem}" + (f" ({hint})" if hint else ""))


class MissingObject(DependencyError):
    """An object that should be there is not, or not yet. ``what`` is its place."""


class LedgerError(StreamprocError):
    """The ledger refused a write; nothing of the transaction was kept."""


class Fenced(LedgerError):
    """Another worker has claimed the partition since; drop the buffers and claim again."""


class Inconsistent(LedgerError):
    """An invariant of the ledger does not hold. Never retried: the worker stops and says so."""


class Stuck(StreamprocError):
    """Records can be read, nothing is waited for, and yet no position has moved for long."""


class SourceError(StreamprocError):
    """The source cannot give what the ledger says comes next."""


class Gap(SourceError):
    """Records between the committed position and the oldest record still kept are gone."""


class UnexpectedPosition(SourceError):
    """A record arrived whose position cannot follow the one before it."""
