"""Sending rejects again, each at most once.

In batches: claim in the ledger (:mod:`streamproc.ledger.redrives`), send what the claim gave us, note what
the broker acknowledged. A reject is left alone when

* it was sent before,
* an interrupted redrive claimed it: it may have been sent,
* it is itself what a redrive sent, and was rejected again: once more would only make one more,
* its partition is not there any more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import polars as pl

from streamproc.ledger.redrives import Coordinate, Redrives, RedriveState
from streamproc.model import Partition
from streamproc.ops.rejects import Rejects
from streamproc.sources.kafka_redrive import Outcome, Resend

#: Rows and bytes claimed together: what an interruption can leave unconfirmed.
_ROWS = 500
_BYTES = 4 * 1024 * 1024


class Sender(Protocol):
    """What sends: :class:`streamproc.sources.kafka_redrive.RedriveProducer`."""

    async def partitions(self) -> frozenset[str]:
        """Ids of the partitions that can be sent to."""

    async def send(self, records: Mapping[str, Sequence[Resend]]) -> dict[str, list[Outcome]]:
        """Send each partition's records in order and say what became of each."""


@dataclass(slots=True)
class RedriveReport:
    """What became of the selected rejects; ``selected`` is the sum of the others.

    ``sent``: now (in a dry run: would be). ``refused``: the broker did not take it, a later redrive tries
    again. ``unconfirmed``: sent now or by an interrupted redrive without an answer. ``problem``: the
    broker's last objection.
    """

    selected: int = 0
    sent: int = 0
    sent_before: int = 0
    copies: int = 0
    unconfirmed: int = 0
    refused: int = 0
    no_partition: int = 0
    problem: str = ""

    def as_json(self) -> dict[str, object]:
        """The report by its fields' names."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Reject:
    at: Coordinate
    resend: Resend


async def redrive(rejects: Rejects, redrives: Redrives, sender: Sender, *, dry_run: bool) -> RedriveReport:
    """Send the selected rejects again; with ``dry_run`` only say what would be done.

    Raises :class:`DependencyError` when the ledger, the lake or the broker does not answer at all. What was
    done by then stays done.
    """
    report = RedriveReport()
    await redrives.begin()
    there = await sender.partitions()
    async for batch in _batches(rejects):
        report.selected += len(batch)
        todo = {reject.at: reject.resend for reject in batch if reject.at.partition.id in there}
        report.no_partition += len(batch) - len(todo)
        states = await redrives.states(todo)
        fresh = {at: resend for at, resend in todo.items() if at not in states}
        _count_states(report, states)
        if dry_run:
            report.sent += len(fresh)
        elif fresh:
            claimed = await redrives.claim(fresh)
            report.sent_before += len(fresh) - len(claimed)  # another redrive was quicker, or a promotion
            await _send(report, redrives, sender, {at: fresh[at] for at in fresh if at in claimed})
    return report


async def _send(
    report: RedriveReport, redrives: Redrives, sender: Sender, records: Mapping[Coordinate, Resend]
) -> None:
    by_partition: dict[str, list[Coordinate]] = {}
    for at in records:
        by_partition.setdefault(at.partition.id, []).append(at)
    outcomes = await sender.send(
        {number: [records[at] for at in ats] for number, ats in by_partition.items()}
    )
    sent: dict[Coordinate, int | None] = {}
    refused: list[Coordinate] = []
    for number, ats in by_partition.items():
        for at, outcome in zip(ats, outcomes[number], strict=True):
            report.problem = outcome.problem or report.problem
            if outcome.sent:
                sent[at] = outcome.position
            elif outcome.refused:
                refused.append(at)
            else:
                report.unconfirmed += 1
    report.sent += len(sent)
    report.refused += len(refused)
    if sent:
        await redrives.confirm(sent)
    if refused:
        await redrives.give_back(refused)


def _count_states(report: RedriveReport, states: Mapping[Coordinate, RedriveState]) -> None:
    counts = Counter(states.values())
    report.sent_before += counts[RedriveState.SENT]
    report.unconfirmed += counts[RedriveState.UNCONFIRMED]
    report.copies += counts[RedriveState.COPY]


async def _batches(rejects: Rejects) -> AsyncIterator[list[_Reject]]:
    batch: list[_Reject] = []
    size = 0
    async for source, rows in rejects.pages(("source_partition", "position", "reason", "original")):
        for reject in _of_page(source, rows):
            batch.append(reject)
            size += len(reject.resend.value or b"")
            if len(batch) >= _ROWS or size >= _BYTES:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _of_page(source: str, rows: pl.DataFrame) -> list[_Reject]:
    return [
        _Reject(
            Coordinate(Partition(source, number), position),
            Resend(
                original,
                # Names that no producer's own headers are likely to have.
                [
                    ("streamproc.redrive.source", source.encode()),
                    ("streamproc.redrive.partition", number.encode()),
                    ("streamproc.redrive.position", str(position).encode()),
                    ("streamproc.redrive.reason", reason.encode()),
                ],
            ),
        )
        for number, position, reason, original in rows.iter_rows()
    ]
