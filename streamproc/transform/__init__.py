"""Records to events: decode → filter → enrich → derive → filter → anonymise, as one pure function.

Every runtime calls the same :class:`Transform`. It knows no clock, no randomness and no order of batches:
the same records give the same events, so a replay agrees with the stream.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace

import polars as pl

from streamproc.errors import ConfigError, EnrichmentFailed, Mistake
from streamproc.model import SYSTEM_COLUMNS, Counts, RecordBatch, Transformed
from streamproc.topology import Enrichment, Topology
from streamproc.transform.decode import decode
from streamproc.transform.enrich import ORDER, PRIVACY, SPECS
from streamproc.transform.enrich.distinct import Answers, Shared
from streamproc.transform.enrich.spec import Resources, Step
from streamproc.transform.erased import Erased
from streamproc.transform.expressions import named
from streamproc.transform.filters import Filters, compiled_or_mistake, reads_only
from streamproc.transform.weblog_formats import PARSERS as LOG_PARSERS

__all__ = ["Resources", "Transform"]


class Transform:
    """The transform of one stream.

    Filters that need only what was decoded run first, so that enrichments see fewer rows; the others run
    once enrichments and derived columns are there; privacy comes last, so that filters, lookups and derived
    columns work on true values and nothing downstream ever sees them. A filter whose expression is null
    keeps the row.

    Several threads may call it at once; they share what enrichments remember.

    Raises ConfigError, with every mistake, when an enrichment cannot be built (a file or secret is missing).
    """

    def __init__(self, topology: Topology, resources: Resources) -> None:
        self.topology = topology
        #: Under which the visitors of web logs get their ids (64 bytes at most; empty: none). Workers set it to the
        #: ledger's before the first batch.
        self.visitor_key = b""
        #: Visitors whose past is left out; ``None``: nobody. Workers set it to the ledger's whenever they claim.
        self.erased: Erased | None = None
        mistakes: list[Mistake] = []
        ordered = sorted(topology.enrichments, key=lambda enrichment: ORDER.index(enrichment.kind))
        self._enrich = _build([e for e in ordered if e.kind not in PRIVACY], resources, mistakes)
        self._privacy = _build([e for e in ordered if e.kind in PRIVACY], resources, mistakes)
        decoded = {field.name: field.type.polars for field in topology.contract.fields}
        decoded |= {"event_time": pl.Datetime("us", "UTC"), **SYSTEM_COLUMNS}
        self._shared = Shared([*self._enrich, *self._privacy], decoded)
        self._early, self._late = _filters(topology, decoded, self._shared.adds(self._enrich), mistakes)
        self._derive = _derived(topology, mistakes)
        if mistakes:
            raise ConfigError([replace(each, where=f"{topology.name}: {each.where}") for each in mistakes])

    @property
    def wants_visitor_key(self) -> bool:
        """Whether :attr:`visitor_key` is used: records are lines of web logs."""
        return self.topology.contract.decoder in LOG_PARSERS

    def __call__(self, batches: Sequence[RecordBatch]) -> Transformed:
        """Transform the records of ``batches``; rows keep the order of the records.

        Bad data never raises: it is in ``rejects``. Raises EnrichmentFailed when an enrichment's own code or
        an expression is at fault, naming it; nothing of the batches is lost then, for nothing was committed.
        """
        decoded = decode(batches, self.topology.contract, self.visitor_key)
        counts: dict[str, Counts] = {}
        for batch in batches:
            counts.setdefault(batch.partition.id, Counts()).records += len(batch)
        for partition, rows in _per_partition(decoded.rejects, counts):
            counts[partition].rejected += rows
        result = Transformed(decoded.frame, decoded.rejects, counts)

        answers = self._shared.answers()
        self._filter(self._early, result, answers)
        for step in self._enrich:
            result.events = answers.run(step, result.events)
        # One after the other: a derived column may read those before it.
        for name, expr in self._derive.items():
            with named(f"{self.topology.name}: derive.{name}"):
                result.events = result.events.with_columns(expr.alias(name))
        self._filter(self._late, result, answers)
        for step in self._privacy:
            result.events = answers.run(step, result.events)

        result.events = self._conform(result.events)
        for partition, rows in _per_partition(result.events, counts):
            counts[partition].accepted += rows
        if self.erased is not None:
            self.erased.leave_out(result)
        return result

    def _filter(self, filters: Filters, result: Transformed, answers: Answers) -> None:
        events = answers.join(result.events, filters.reads)
        with named(f"{self.topology.name}: filters"):
            keep = filters.keep(events, result)
        if keep is not None:
            result.events = result.events.filter(keep)
            answers.filter(keep)

    def _conform(self, events: pl.DataFrame) -> pl.DataFrame:
        columns = self.topology.columns
        events = events.select(list(columns))
        for name, dtype in events.schema.items():
            if dtype != columns[name]:
                raise EnrichmentFailed(name, f"the column came out as {dtype}, declared is {columns[name]}")
        return events


def _filters(
    topology: Topology, decoded: Mapping[str, pl.DataType], by_value: Set[str], mistakes: list[Mistake]
) -> tuple[Filters, Filters]:
    """The filters that run first and those that run last.

    One that reads an enrichment's column can still run first if the column follows from a decoded value, and
    if no filter stands before it that has to wait: for whom a row counts follows from the page alone.
    """
    early = [each for each in topology.filters if reads_only(each, decoded)]
    late = [each for each in topology.filters if each not in early]
    known = {**decoded, **{name: topology.columns[name] for name in by_value}}
    soon = list(itertools.takewhile(lambda each: reads_only(each, known), late))
    return Filters([*early, *soon], known, mistakes), Filters(late[len(soon) :], topology.columns, mistakes)


def _build(enrichments: Sequence[Enrichment], resources: Resources, mistakes: list[Mistake]) -> list[Step]:
    steps = []
    for enrichment in enrichments:
        try:
            steps.append(SPECS[enrichment.kind].build(enrichment.options, resources))
        except ConfigError as error:
            mistakes += [_in_the_page(each, enrichment) for each in error.mistakes]
    return steps


def _in_the_page(mistake: Mistake, enrichment: Enrichment) -> Mistake:
    """What an enrichment says of itself (``lookup.file``) by its place: ``enrich.lookup.prices.file``."""
    kind, _, option = mistake.where.partition(".")
    section = "privacy" if enrichment.kind in PRIVACY else "enrich"
    return replace(mistake, where=".".join(filter(None, (section, kind, enrichment.name, option))))


def _derived(topology: Topology, mistakes: list[Mistake]) -> dict[str, pl.Expr]:
    derived = {}
    for name, sql, dtype in topology.derive:
        compiled = compiled_or_mistake(f"derive.{name}", sql, topology.columns, mistakes)
        if compiled is None:
            continue
        if compiled.type != dtype:
            problem = f"it gives {compiled.type}, declared is {dtype}"
            mistakes.append(Mistake(f"derive.{name}", problem, "Cast it in the SQL"))
        derived[name] = compiled.expr
    return derived


def _per_partition(frame: pl.DataFrame, counts: Mapping[str, Counts]) -> Iterable[tuple[str, int]]:
    if len(counts) == 1:
        return [(partition, frame.height) for partition in counts]
    return frame.group_by("source_partition").len().rows()
