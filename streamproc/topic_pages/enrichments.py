"""``[enrich.*]``, ``[derive]``, ``[[filters]]``, ``[privacy.*]``: what the transform does, in its order."""

from __future__ import annotations

import polars as pl

from streamproc.quantities import Invalid
from streamproc.topic_pages import names, reader
from streamproc.topic_pages.columns import Columns, can_be_stored
from streamproc.topic_pages.reader import Reader
from streamproc.topology import Enrichment, Filter
from streamproc.transform.enrich import ORDER, PRIVACY, SPECS

#: Kinds of which a page may have several: ``[enrich.lookup.products]``.
SEVERAL = ("lookup",)


def read_enrichments(page: Reader, section: str, columns: Columns) -> tuple[Enrichment, ...]:
    """The enrichments of ``[enrich]`` or ``[privacy]`` in their fixed order, whatever the page's.

    ``columns`` grows by what they add, in that order.
    """
    table = page.table(section)
    before = len(table.mistakes.found)
    kinds = [kind for kind in ORDER if (kind in PRIVACY) == (section == "privacy")]
    found: list[Enrichment] = []
    for kind in kinds:
        if kind not in table:
            table.optional(kind, lambda value: value, None)
            continue
        sub = table.table(kind)
        steps = sub.tables() if kind in SEVERAL else [("", sub)]
        for name, step in steps:
            checked = _check(kind, name, step, columns)
            if checked is not None:
                columns.types |= checked.adds
                found.append(checked)
    _finish(table, section)
    columns.complete &= len(table.mistakes.found) == before
    return tuple(found)


def _check(kind: str, name: str, table: Reader, columns: Columns) -> Enrichment | None:
    before = len(table.mistakes.found)
    answer = SPECS[kind].check(table.raw, columns.types)
    if isinstance(answer, list):
        for mistake in answer:
            path = f"{table.path}.{mistake.path}" if mistake.path else table.path
            if columns.complete or not mistake.problem.startswith("there is no column"):
                table.mistakes.add(path, mistake.problem, mistake.fix)
        return None
    for column in answer.adds:
        try:
            names.identifier("column", names.EVENT_COLUMNS)(column)
        except Invalid as error:
            table.mistake("", error.problem, error.fix)
    if len(table.mistakes.found) > before:
        return None
    return Enrichment(kind, answer.options, answer.adds, name)


def _finish(table: Reader, section: str) -> None:
    other = "enrich" if section == "privacy" else "privacy"
    for key in table.raw:
        if key in SPECS and (key in PRIVACY) != (section == "privacy"):
            table.mistake(key, f"belongs below [{other}]", f"Write [{other}.{key}]")
    table.finish(allowed_elsewhere=SPECS)


def read_derive(page: Reader, columns: Columns) -> tuple[tuple[str, str, pl.DataType], ...]:
    """``[derive]``: name → SQL over the columns before it, those derived above it included."""
    table = page.table("derive")
    found = []
    for name in table.raw:
        try:
            names.identifier("column", names.EVENT_COLUMNS)(name)
            if name in columns.types:
                raise Invalid(f"there is a column {name!r} already", "Choose another name")
        except Invalid as error:
            table.mistake(name, error.problem, error.fix)
        sql = table.optional(name, reader.text, None)
        dtype = columns.expression(table, name, sql)
        if sql is None or dtype is None:
            columns.complete = False
            continue
        if not can_be_stored(table, name, dtype):
            columns.complete = False
            continue
        columns.types[name] = dtype
        found.append((name, sql, dtype))
    return tuple(found)


def read_filters(page: Reader, columns: Columns) -> tuple[Filter, ...]:
    """``[[filters]]``: each has a name, under which it counts, and a condition."""
    found: list[Filter] = []
    for table in page.array("filters"):
        name = table.required(
            "name", names.identifier("filter"), 'Write name = "…": filtered events count under it'
        )
        drop = columns.condition(table, "drop")
        if "drop" not in table:
            table.mistake("drop", "is missing", 'Write drop = "SQL condition", such as "is_bot"')
        table.finish()
        if name in {other.name for other in found}:
            table.mistake("name", f"there is a filter {name!r} already", "Choose another name")
        found.append(Filter(name or "", drop or ""))
    return tuple(found)
