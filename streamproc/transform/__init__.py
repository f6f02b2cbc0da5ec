"""Records to events: decode → filter → enrich → derive → filter → anonymise, as one pure function.

Every runtime calls the same :class:`Transform`. It knows no clock, no randomness and no order of batches:
the same records give the same events, so a replay agrees with the stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import polars as pl

from streamproc.errors import ConfigError, EnrichmentFailed, Mistake
from streamproc.model import SYSTEM_COLUMNS, Counts, RecordBatch, Transformed
from streamproc.topology import Enrichment, Filter, Topology
from streamproc.transform.decode import decode
from streamproc.transform.enrich import ORDER, PRIVACY, SPECS
from streamproc.transform.enrich.spec import Resources, Step
from streamproc.transform.expressions import Compiled, ExpressionError, compile_sql

__all__ = ["Resources", "Transform"]


class Transform:
    """The transform of one stream.

    Filters that need only what was decoded run first, so that enrichments see fewer rows; the others run
    once enrichments and derived columns are there; privacy comes last, so that filters, lookups and derived
    columns work on true values and nothing downstream ever sees them. A filter whose expression is null
    keeps the row.

    Raises ConfigError, with every mistake, when an enrichment cannot be built (a file or secret is missing).
    """

    def __init__(self, topology: Topology, resources: Resources) -> None:
        self.topology = topology
        mistakes: list[Mistake] = []
        ordered = sorted(topology.enrichments, key=lambda enrichment: ORDER.index(enrichment.kind))
        self._enrich = _build([e for e in ordered if e.kind not in PRIVACY], resources, mistakes)
        self._privacy = _build([e for e in ordered if e.kind in PRIVACY], resources, mistakes)
        decoded = {field.name: field.type.polars for field in topology.contract.fields}
        decoded |= {"event_time": pl.Datetime("us", "UTC"), **SYSTEM_COLUMNS}
        early = [each for each in topology.filters if _reads_only(each, decoded)]
        late = [each for each in topology.filters if each not in early]
        self._early = _Filters(early, decoded, mistakes)
        self._late = _Filters(late, topology.columns, mistakes)
        self._derive = _derived(topology, mistakes)
        if mistakes:
            raise ConfigError(mistakes)

    def __call__(self, batches: Sequence[RecordBatch]) -> Transformed:
        """Transform the records of ``batches``; rows keep the order of the records.

        Bad data never raises: it is in ``rejects``. Raises EnrichmentFailed when an enrichment's own code
        is at fault, naming it; nothing of the batches is lost then, for nothing was committed.
        """
        decoded = decode(batches, self.topology.contract)
        counts: dict[str, Counts] = {}
        for batch in batches:
            counts.setdefault(batch.partition.id, Counts()).records += len(batch)
        for partition, rows in _per_partition(decoded.rejects):
            counts[partition].rejected += rows
        result = Transformed(decoded.frame, decoded.rejects, counts)

        self._early(result)
        for step in self._enrich:
            result.events = step(result.events)
        for expr in self._derive:  # one after the other: a derived column may read those before it
            result.events = result.events.with_columns(expr)
        self._late(result)
        for step in self._privacy:
            result.events = step(result.events)

        result.events = self._conform(result.events)
        for partition, rows in _per_partition(result.events):
            counts[partition].accepted += rows
        return result

    def _conform(self, events: pl.DataFrame) -> pl.DataFrame:
        columns = self.topology.columns
        events = events.select(list(columns))
        for name, dtype in events.schema.items():
            if dtype != columns[name]:
                raise EnrichmentFailed(name, f"the column came out as {dtype}, declared is {columns[name]}")
        return events


class _Filters:
    """Some filters, applied in one pass over the frame."""

    def __init__(
        self, filters: Sequence[Filter], columns: Mapping[str, pl.DataType], mistakes: list[Mistake]
    ) -> None:
        self._drops: list[tuple[str, pl.Expr]] = []
        for each in filters:
            compiled = _compile(f"filters.{each.name}.drop", each.drop, columns, mistakes)
            if compiled is None:
                continue
            if compiled.type != pl.Boolean():
                mistakes.append(
                    Mistake(f"filters.{each.name}.drop", f"it gives {compiled.type}", "Write a condition")
                )
            self._drops.append((each.name, compiled.expr))

    def __call__(self, result: Transformed) -> None:
        """Drop from ``result.events``; count by partition and by filter."""
        if not self._drops or result.events.is_empty():
            return
        # The number of the first filter that drops the row, null for a row that stays.
        first = pl.coalesce(
            pl.when(drop).then(pl.lit(number, pl.UInt16)) for number, (_, drop) in enumerate(self._drops)
        )
        dropped = result.events.select(partition="source_partition", by=first)
        if dropped["by"].null_count() == dropped.height:
            return
        result.events = result.events.filter(dropped["by"].is_null())
        for partition, by, rows in dropped.drop_nulls("by").group_by("partition", "by").len().iter_rows():
            result.counts[partition].filtered += rows
            name = self._drops[by][0]
            result.filtered_by[name] = result.filtered_by.get(name, 0) + rows


def _build(enrichments: Sequence[Enrichment], resources: Resources, mistakes: list[Mistake]) -> list[Step]:
    steps = []
    for enrichment in enrichments:
        try:
            steps.append(SPECS[enrichment.kind].build(enrichment.options, resources))
        except ConfigError as error:
            mistakes.extend(error.mistakes)
    return steps


def _derived(topology: Topology, mistakes: list[Mistake]) -> list[pl.Expr]:
    derived = []
    for name, sql, dtype in topology.derive:
        compiled = _compile(f"derive.{name}", sql, topology.columns, mistakes)
        if compiled is None:
            continue
        if compiled.type != dtype:
            problem = f"it gives {compiled.type}, declared is {dtype}"
            mistakes.append(Mistake(f"derive.{name}", problem, "Cast it in the SQL"))
        derived.append(compiled.expr.alias(name))
    return derived


def _compile(
    where: str, sql: str, columns: Mapping[str, pl.DataType], mistakes: list[Mistake]
) -> Compiled | None:
    try:
        return compile_sql(sql, columns)
    except ExpressionError as error:
        mistakes.append(Mistake(where, error.problem, f"The expression is: {sql}"))
        return None


def _reads_only(each: Filter, columns: Mapping[str, pl.DataType]) -> bool:
    try:
        compile_sql(each.drop, columns)
    except ExpressionError:
        return False  # it needs more, or it is wrong: then the late filters say how
    return True


def _per_partition(frame: pl.DataFrame) -> Iterator[tuple[str, int]]:
    yield from frame.group_by("source_partition").len().iter_rows()
