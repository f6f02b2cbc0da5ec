"""Sending rejects again, each at most once.

In batches: claim in the ledger (:mod:`streamproc.ledger.redrives`), send what the claim gave us, note what
the broker acknowledged. A reject is left alone when

* it was sent before,
* an interrupted redrive claimed it: it may have been sent,
* it is itself what a redrive sent, and was rejected again: once more would only make one more,
* its partition is not there any more,
* today's topic page would reject it again: sent, it could never be sent again when the page is mended.

A *corrected* record is sent in the place of the reject's own bytes, and is otherwise the same: it counts as that
reject, so neither is sent when the other was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Protocol

import polars as pl

from streamproc.errors import ConfigError, Mistake
from streamproc.ledger.redrives import Coordinate, Redrives, RedriveState
from streamproc.model import Partition
from streamproc.ops.corrections import judge
from streamproc.ops.rejects import Rejects
from streamproc.sources.kafka_origin import origin_headers
from streamproc.sources.kafka_redrive import Outcome, Resend
from streamproc.topology import Contract

#: Rows and bytes claimed together: what an interruption can leave unconfirmed.
_ROWS = 500
_BYTES = 4 * 1024 * 1024


class Sender(Protocol):
    """What sends: :class:`streamproc.sources.kafka_redrive.RedriveProducer`."""

    async def partitions(self) -> frozenset[str]:
        """Ids of the partitions that can be sent to."""

    async def send(self, records: Mapping[str, Sequence[Resend]]) -> dict[str, list[Outcome]]:
        """Send each partition's records in order and say what became of each."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which of the selected rejects are sent, and as what.

    ``corrected``: only these, with these bytes in the place of theirs. ``contract``: only those that it takes
    by now; ``None``: those that would be rejected again too.
    """

    corrected: Mapping[Coordinate, bytes] | None = None
    contract: Contract | None = None


@dataclass(slots=True)
class RedriveReport:
    """What became of the selected rejects; ``selected`` is the sum of the other counts.

    ``sent``: now (in a dry run: would be). ``still_rejected``: not sent, because the contract would reject them
    again, by reason in ``reasons``; the first of them in words in ``example``. ``refused``: the broker did not
    take it, a later redrive tries again. ``unconfirmed``: sent now or by an interrupted redrive without an
    answer. ``problem``: the broker's last objection.
    """

    selected: int = 0
    sent: int = 0
    sent_before: int = 0
    copies: int = 0
    unconfirmed: int = 0
    refused: int = 0
    no_partition: int = 0
    still_rejected: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    example: str = ""
    problem: str = ""

    def as_json(self) -> dict[str, object]:
        """The report by its fields' names."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Reject:
    at: Coordinate
    resend: Resend


async def redrive(
    rejects: Rejects,
    redrives: Redrives,
    sender: Sender,
    *,
    choice: Choice = Choice(),
    dry_run: bool,
) -> RedriveReport:
    """Send the selected rejects again; with ``dry_run`` only say what would be done.

    Raises :class:`ConfigError`, before anything is sent, when a correction is of no reject that was selected,
    and :class:`DependencyError` when the ledger, the lake or the broker does not answer at all. What was done
    by then stays done.
    """
    report = RedriveReport()
    await redrives.begin()
    there = await sender.partitions()
    if choice.corrected is not None:
        await _refuse_unknown(rejects, choice.corrected)
    async for batch in _batches(rejects, choice.corrected):
        report.selected += len(batch)
        todo = {reject.at: reject.resend for reject in batch if reject.at.partition.id in there}
        report.no_partition += len(batch) - len(todo)
        states = await redrives.states(todo)
        fresh = {at: resend for at, resend in todo.items() if at not in states}
        _count_states(report, states)
        fresh = _acceptable(report, fresh, choice.contract)
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


def _acceptable(
    report: RedriveReport, records: Mapping[Coordinate, Resend], contract: Contract | None
) -> dict[Coordinate, Resend]:
    """Those that the contract takes; the others are counted."""
    if contract is None:
        return dict(records)
    kept: dict[Coordinate, Resend] = {}
    by_partition: dict[Partition, list[Coordinate]] = {}
    for at in records:
        by_partition.setdefault(at.partition, []).append(at)
    for partition, ats in by_partition.items():
        problems = judge(contract, partition, [records[at].value for at in ats])
        for place, at in enumerate(ats):
            problem = problems.get(place)
            if problem is None:
                kept[at] = records[at]
                continue
            report.still_rejected += 1
            report.reasons[problem.reason] = report.reasons.get(problem.reason, 0) + 1
            where = f"partition {partition.id}, position {at.position}"
            report.example = report.example or f"{where}: {problem.reason}, {problem.detail}"
    return {at: records[at] for at in records if at in kept}


async def _refuse_unknown(rejects: Rejects, corrected: Mapping[Coordinate, bytes]) -> None:
    unknown = set(corrected)
    async for source, rows in rejects.pages(("source_partition", "position")):
        unknown -= {Coordinate(Partition(source, number), position) for number, position in rows.iter_rows()}
    if unknown:
        first = min(unknown)
        where = f"--file, partition {first.partition.id}, position {first.position}"
        others = f" (nor are {len(unknown) - 1} others)" if len(unknown) > 1 else ""
        fix = "Take partition and position from `streamproc rejects list --json`"
        raise ConfigError([Mistake(where, f"is not a reject of {first.partition.source}{others}", fix)])


def _count_states(report: RedriveReport, states: Mapping[Coordinate, RedriveState]) -> None:
    counts = Counter(states.values())
    report.sent_before += counts[RedriveState.SENT]
    report.unconfirmed += counts[RedriveState.UNCONFIRMED]
    report.copies += counts[RedriveState.COPY]


async def _batches(
    rejects: Rejects, corrected: Mapping[Coordinate, bytes] | None
) -> AsyncIterator[list[_Reject]]:
    batch: list[_Reject] = []
    size = 0
    async for source, rows in rejects.pages(("source_partition", "position", "reason", "original")):
        for reject in _of_page(source, rows, corrected):
            batch.append(reject)
            size += len(reject.resend.value or b"")
            if len(batch) >= _ROWS or size >= _BYTES:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _of_page(
    source: str, rows: pl.DataFrame, corrected: Mapping[Coordinate, bytes] | None
) -> Iterator[_Reject]:
    for number, position, reason, original in rows.iter_rows():
        at = Coordinate(Partition(source, number), position)
        headers = origin_headers(at.partition, position, reason)
        if corrected is None:
            yield _Reject(at, Resend(original, headers))
        elif at in corrected:
            yield _Reject(at, Resend(corrected[at], headers))
