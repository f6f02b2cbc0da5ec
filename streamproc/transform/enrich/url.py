"""``url``: the parts of a URL column.

Adds ``scheme``, ``host`` (lower case, without user, password and port), ``port`` (as written; Int32),
``path`` (``/`` when empty), ``query`` and ``fragment`` (null when empty). Parts are as they stand in the
URL: nothing is percent-decoded, dot segments and internationalised names are left alone. As in the WHATWG
URL standard, space around a URL and tabs and newlines in it are ignored, and ``\\`` ends the host as ``/``
does. A relative URL, one without ``//``, or one whose host or port cannot be: every part is null.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from streamproc.transform.enrich.distinct import ByValue, Remembered
from streamproc.transform.enrich.spec import (
    Checked,
    EnrichmentSpec,
    OptionMistake,
    OptionReader,
    Resources,
    Step,
)

ADDS: dict[str, pl.DataType] = {
    "scheme": pl.String(),
    "host": pl.String(),
    "port": pl.Int32(),
    "path": pl.String(),
    "query": pl.String(),
    "fragment": pl.String(),
}

# Forbidden in a host by the WHATWG standard; '%' too, as a percent-encoded host is nobody's real page.
_HOST = r"\[[0-9A-Fa-f:.]+\]|[^\x00-\x20\x7f#%/:<>?@\[\\\]^|]+"
_PORT = r"0*(?:6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[0-9]{1,4})"
_URL = (
    r"(?s)^(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]*)://"
    r"(?:[^/?#\\]*@)?"
    rf"(?P<host>{_HOST})(?::(?P<port>{_PORT})?)?"
    r"(?P<path>[/\\][^?#]*)?"
    r"(?:\?(?P<query>[^#]*))?"
    r"(?:#(?P<fragment>.*))?$"
)
_HOST_GROUP = 2
_SPACE = "".join(map(chr, range(0x21)))


def url_parts(urls: pl.Series) -> pl.DataFrame:
    """The columns of :data:`ADDS` for a series of URLs, row by row."""
    parts = _cleaned(urls).str.extract_groups(_URL).struct.unnest()
    return parts.select(
        pl.col("scheme").str.to_lowercase(),
        pl.col("host").str.to_lowercase(),
        pl.col("port").cast(pl.Int32),
        path=pl.when(pl.col("host").is_not_null()).then(pl.col("path").fill_null("/")),
        query=_unless_empty(pl.col("query")),
        fragment=_unless_empty(pl.col("fragment")),
    )


def url_hosts(urls: pl.Series) -> pl.Series:
    """The column ``host`` alone, at half the cost."""
    return _cleaned(urls).str.extract(_URL, _HOST_GROUP).str.to_lowercase().alias("host")


def _cleaned(urls: pl.Series) -> pl.Series:
    cleaned = urls.str.strip_chars(_SPACE)
    if urls.str.contains(r"[\t\n\r]").any():
        cleaned = cleaned.str.replace_all(r"[\t\n\r]", "")
    return cleaned


def _unless_empty(text: pl.Expr) -> pl.Expr:
    return pl.when(text != "").then(text)


def _check(
    options: Mapping[str, object], columns: Mapping[str, pl.DataType]
) -> Checked | list[OptionMistake]:
    reader = OptionReader(options, columns)
    reader.column("field")
    return reader.done(ADDS)


def _build(options: Mapping[str, Any], _: Resources) -> Step:
    field, only = options["field"], options["only"]
    return ByValue(Remembered(field, lambda urls: url_parts(urls).select(only)))


#: Option: ``field``, the column with the URL.
SPEC = EnrichmentSpec("url", _check, _build)
