"""Runs one enrichment on values given by column."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from streamproc.transform.enrich import SPECS
from streamproc.transform.enrich.spec import Checked, OptionMistake, Resources, Step


def frame(**columns: list[object] | pl.Series) -> pl.DataFrame:
    """Text columns, unless given as a series, with the coordinates every event has."""
    made = {n: v if isinstance(v, pl.Series) else pl.Series(v, dtype=pl.String) for n, v in columns.items()}
    height = len(next(iter(made.values())))
    return pl.DataFrame(
        {
            **made,
            "source_partition": pl.Series(["0"] * height, dtype=pl.String),
            "position": pl.Series(range(height), dtype=pl.Int64),
        }
    )


def build(
    kind: str,
    options: Mapping[str, object],
    columns: Mapping[str, pl.DataType],
    *,
    base: Path = Path(),
    secrets: Mapping[str, str] | None = None,
) -> Step:
    """The enrichment's step; the options must be right."""
    checked = SPECS[kind].check(options, columns)
    assert isinstance(checked, Checked), checked
    return SPECS[kind].build(checked.options, Resources(secrets or {}, base))


def enrich(
    kind: str, options: Mapping[str, object], events: pl.DataFrame, **resources: object
) -> pl.DataFrame:
    """The events after the enrichment; what it promised of columns, rows and order is checked."""
    checked = SPECS[kind].check(options, events.schema)
    assert isinstance(checked, Checked), checked
    out = build(kind, options, events.schema, **resources)(events)  # type: ignore[arg-type]  # keywords of build
    assert list(out.columns) == [*events.columns, *checked.adds]
    assert {name: out.schema[name] for name in checked.adds} == dict(checked.adds)
    assert out["position"].equals(events["position"])
    return out


def mistakes(kind: str, options: Mapping[str, object], **columns: pl.DataType) -> list[OptionMistake]:
    """What ``check`` finds wrong."""
    found = SPECS[kind].check(options, columns)
    assert isinstance(found, list)
    return found
