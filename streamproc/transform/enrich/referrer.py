"""``referrer``: where a visitor came from.

Adds ``referrer_host``, ``referrer_medium`` (never null), ``referrer_source`` and ``referrer_term``:

========  ==================================================================================
direct    no referrer, or a blank one or ``-``
internal  the page's own host, or one of ``internal_hosts``
search    a search engine; ``referrer_term`` is the decoded search term, if it still says one
social    a social network
ai        an AI assistant
email     a mail program
other     anything else
========  ==================================================================================
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from streamproc.transform.enrich.distinct import ByValue, Remembered
from streamproc.transform.enrich.percent import decode_component
from streamproc.transform.enrich.referrer_table import (
    ReferrerTable,
    Source,
    is_path_pattern,
    medium_of,
    read_matomo,
    shipped_table,
)
from streamproc.transform.enrich.spec import (
    Checked,
    EnrichmentSpec,
    OptionMistake,
    OptionReader,
    Resources,
    Step,
    mistake,
)
from streamproc.transform.enrich.url import url_hosts, url_parts

ADDS: dict[str, pl.DataType] = {
    f"referrer_{name}": pl.String() for name in ("host", "medium", "source", "term")
}
_SITE, _PAGE_SITE = "site of the referrer", "site of the page"


class _Referrers:
    """What distinct referrers say by themselves; whether one is internal depends on the page."""

    def __init__(self, table: ReferrerTable, internal_hosts: tuple[str, ...]) -> None:
        self._table = table
        self._internal = frozenset(host.lower() for host in internal_hosts)
        paths = sorted(map(re.escape, table.paths()), key=len, reverse=True)
        self._path = re.compile(rf"({'|'.join(paths)})(?:/|\Z)")

    def __call__(self, referrers: pl.Series) -> pl.DataFrame:
        blank = referrers.str.strip_chars().is_in(["", "-"])
        parts = url_parts(referrers).select("host", "path", "query")
        sources: dict[tuple[str | None, str], Source] = {}  # hosts are few where referrers are many
        rows = []
        for host, whole, query in parts.iter_rows():
            known = self._path.match(whole or "")
            path = known[1] if known else ""
            source = sources.get((host, path))
            if source is None:
                source = sources[host, path] = self._classify(host, path)
            term = _term(source, whole, query) if source.medium == "search" else None
            rows.append((source.medium, source.name or None, term))
        names = ("referrer_medium", "referrer_source", "referrer_term")
        answers = pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String()), orient="row")
        return parts.hstack(answers).select(
            _site("host").alias(_SITE),
            pl.col("host").alias("referrer_host"),
            pl.when(~blank).then("referrer_medium").otherwise(pl.lit("direct")).alias("referrer_medium"),
            "referrer_source",
            "referrer_term",
        )

    def _classify(self, host: str | None, path: str) -> Source:
        if host is None:
            return Source("other", "")
        if host in self._internal or host.removeprefix("www.") in self._internal:
            return Source("internal", "")
        return self._table.find(host, path) or Source("other", "")


def _term(source: Source, path: str, query: str | None) -> str | None:
    """The search term of a search engine's URL: the first of the source's parameters that says one."""
    for param in source.params:
        if is_path_pattern(param):
            found = re.search(param[1:-1], path)
            raw = found[1] if found and found.groups() else ""
        else:
            found = re.search(rf"(?:^|&){re.escape(param)}=([^&]*)", query or "")
            raw = found[1] if found else ""
        if term := _decode(raw, source.charsets).strip():
            return term
    return None


def _decode(raw: str, charsets: tuple[str, ...]) -> str:
    text = decode_component(raw)
    for charset in charsets:
        if "\ufffd" not in text:
            break
        text = decode_component(raw, charset)
    return text


def _compare(only: tuple[str, ...]) -> Step:
    """Makes referrers from the page's own host internal, and leaves the columns ``only`` of the answers."""
    internal = (pl.col(_SITE) == pl.col(_PAGE_SITE)).fill_null(False)
    columns = {
        "referrer_medium": pl.when(internal).then(pl.lit("internal")).otherwise("referrer_medium"),
        "referrer_source": pl.when(~internal).then("referrer_source"),
        "referrer_term": pl.when(~internal).then("referrer_term"),
    }
    compared = [expr.alias(name) for name, expr in columns.items() if name in only]
    unwanted = [_SITE, _PAGE_SITE, *(name for name in ADDS if name not in only)]
    return lambda frame: frame.with_columns(compared).drop(unwanted)


def _page_hosts(pages: pl.Series) -> pl.DataFrame:
    return url_hosts(pages).to_frame().select(_site("host").alias(_PAGE_SITE))


def _site(host: str) -> pl.Expr:
    return pl.col(host).str.strip_prefix("www.")


def _check(
    options: Mapping[str, object], columns: Mapping[str, pl.DataType]
) -> Checked | list[OptionMistake]:
    reader = OptionReader(options, columns)
    reader.column("field", "referrer")
    if reader.value("page", str, None) is not None:
        reader.column("page")
    reader.names("internal_hosts", ())
    for name in reader.names("lists", ()):
        if medium_of(Path(name)) is None:
            reader.wrong(
                "lists",
                f"the name '{name}' does not say what it holds",
                "Name it as Matomo does: SearchEngines.yml, Socials.yml or AIAssistants.yml",
            )
    return reader.done(ADDS)


def _build(options: Mapping[str, Any], resources: Resources) -> Step:
    table = shipped_table()
    for name in options["lists"]:
        path = resources.file("referrer", "lists", name)
        try:
            read_matomo(path, medium_of(path) or "", table)
        except (OSError, UnicodeDecodeError, ValueError, yaml.YAMLError) as error:
            raise mistake("referrer", "lists", f"{path} cannot be used: {error}", "Mend the file") from error
    only = options["only"]
    field, describe = options["field"], _Referrers(table, options["internal_hosts"])
    of_null = {"referrer_medium": "direct"}
    if options["page"] is None:
        of_null = {name: value for name, value in of_null.items() if name in only}
        by_itself = Remembered(field, lambda values: describe(values).select(only), of_null=of_null)
        return ByValue(by_itself)
    known, page = Remembered(field, describe, of_null=of_null), Remembered(options["page"], _page_hosts)
    return ByValue(known, page, combine=_compare(only))


#: Options: ``field``, the column with the referrer; ``page``, that with the page's URL; ``internal_hosts``,
#: more hosts of one's own (with or without ``www.``); ``lists``, files in Matomo's format, read over the
#: shipped table.
SPEC = EnrichmentSpec("referrer", _check, _build)
