r"""Web-server log lines as click events: the ``combined`` decoder.

Apache's and nginx's combined format, which is all a line has to say of a visit::

    83.149.9.216 - - [17/May/2015:10:05:03 +0000] "GET /a HTTP/1.1" 200 20302 "http://x.org/" "Mozilla/5.0"

Apache's ``vhost_combined`` (``host:port`` before the address) is read too, and fields that a server appends
after the agent are passed over. ``-`` is null. The servers' escapes (``\"``, ``\\``, ``\n``, ``\xe4``) are
undone, unless what comes out is not UTF-8 or holds NUL: such a text stays as it is in the line. A request
that is no HTTP request (``-``, a TLS handshake) leaves method, protocol and page null; the line is still an
event.
"""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from streamproc.topology import Contract, Field, FieldType
from streamproc.transform.decode_batch import Batch
from streamproc.transform.decode_rejects import Problem, Reason
from streamproc.transform.weblog_events import (
    DEFAULT_SITE,
    PER_SECOND,
    event_type,
    moments,
    page_url,
    request_parts,
    text_problems,
    unescape,
    visitor_ids,
)

#: The decoder's columns. ``event_time``: Unix time in the contract's unit (lines have whole seconds);
#: ``visitor_id``: see :func:`visitor_ids`; ``ip``: the client, a host name when the server resolves them;
#: ``bytes``: of the response's body. A line has no identifier of its own: ``source_partition`` and
#: ``position`` name the event, and a page can derive an ``event_id`` of them.
FIELDS: tuple[Field, ...] = tuple(
    Field(name, (name,), kind, required=required, max_length=length, truncate=length is not None)
    for name, kind, required, length in (
        ("event_type", FieldType.STRING, True, None),
        ("event_time", FieldType.INTEGER, True, None),
        ("visitor_id", FieldType.STRING, True, None),
        ("page_url", FieldType.STRING, False, 4096),
        ("referrer", FieldType.STRING, False, 4096),
        ("user_agent", FieldType.STRING, False, 1024),
        ("ip", FieldType.STRING, False, 253),
        ("remote_user", FieldType.STRING, False, 256),
        ("method", FieldType.STRING, False, 32),
        ("protocol", FieldType.STRING, False, 16),
        ("status", FieldType.INTEGER, False, None),
        ("bytes", FieldType.INTEGER, False, None),
    )
)

_QUOTED = r'(?:[^"\\]|\\.)*'
_LINE = (
    r"^(?:(?P<vhost>[^ :]+):(?P<port>[0-9]{1,5}) )?"
    r"(?P<ip>[^ ]+) [^ ]+ (?P<remote_user>.+?) \[(?P<time>[^\]]+)\] "
    rf'"(?P<request>{_QUOTED})" (?P<status>[0-9]{{3}}) (?P<bytes>[0-9]{{1,18}}|-) '
    rf'"(?P<referrer>{_QUOTED})" "(?P<user_agent>{_QUOTED})"(?: .*)?\s*$'
)
_TIME = "%d/%b/%Y:%H:%M:%S %z"


class LineParser:
    """The parser of ``decoder = "combined"``. Keeps nothing between calls."""

    def __init__(self, contract: Contract) -> None:
        self._site = (contract.site or DEFAULT_SITE).rstrip("/")
        self._per_second = PER_SECOND[contract.event_time.format]

    def parse(self, batch: Batch) -> pl.DataFrame:
        """The columns of :data:`FIELDS` for the lines that stay in ``batch``; the others get a problem."""
        lines = batch.text
        parts = _parse(lines)
        keep = batch.drop(dict(_problems(lines, parts)))
        parts = parts.filter(keep)
        return parts.with_columns(
            event_time=pl.col("second") * self._per_second,
            visitor_id=visitor_ids(parts["ip"], parts["user_agent"]),
            page_url=page_url(self._site),
            event_type=event_type(),
        ).select(field.name for field in FIELDS)


def _parse(lines: pl.Series) -> pl.DataFrame:
    """The parts of each line, unescaped, and its ``second`` of Unix time; null when it is no such line."""
    parts = _taken_apart(lines)
    request = request_parts(parts["request"])
    parts = pl.concat([parts.drop("request"), request], how="horizontal")
    for name in ("target", "referrer", "user_agent", "remote_user"):
        parts = parts.with_columns(unescape(parts[name]))
    blank = [pl.col(name).replace(["-", ""], None) for name in ("referrer", "user_agent", "remote_user")]
    return parts.with_columns(
        *blank,
        status=pl.col("status").cast(pl.Int64),
        bytes=pl.col("bytes").replace("-", None).cast(pl.Int64),
        second=moments(parts["time"], _TIME) // 1_000_000,
    )


def _taken_apart(lines: pl.Series) -> pl.DataFrame:
    """The groups of ``_LINE``. Plain lines are cut at quotes and spaces, a third of the expression's time.

    (2.7 against 0.9 µs a line; ``python -m benchmarks.logs --parse`` measures it with the rest.)
    """
    parts, plain = _cut(lines)
    if plain.all():
        return parts
    rows = pl.int_range(len(lines), dtype=pl.UInt32, eager=True)
    others = lines.filter(~plain).str.extract_groups(_LINE).struct.unnest()
    order = pl.concat([rows.filter(plain), rows.filter(~plain)]).arg_sort()
    return pl.concat([parts.filter(plain), others.select(parts.columns)])[order]


def _cut(lines: pl.Series) -> tuple[pl.DataFrame, pl.Series]:
    """The groups of ``_LINE``, and for which lines they are right: those without escapes, virtual host and oddities."""
    quoted = lines.str.split_exact('"', 6).struct.unnest()
    frame = quoted.hstack(
        [
            column.alias(name)
            for prefix, place, spaces in (("head", 0, 5), ("size", 2, 3))
            for column in quoted[f"field_{place}"].str.split_exact(" ", spaces).struct.unnest()
            for name in [f"{prefix}_{column.name[-1]}"]
        ]
    )
    head = [pl.col(f"head_{place}") for place in range(6)]
    plain = (
        pl.all_horizontal(part != "" for part in head[:3])
        # Nothing but `[time zone] ` behind the user.
        & head[3].str.starts_with("[")
        & head[4].str.ends_with("]")
        & (head[5] == "")
        & (pl.col("field_0").str.count_matches(r"[\[\]]") == 2)
        & pl.col("field_0").str.ends_with(" ")
        & pl.col("field_2").str.contains(r"^ [0-9]{3} (?:[0-9]{1,18}|-) $")
        & (pl.col("field_4") == " ")
        & (pl.col("field_6").is_in(["", "\r"]) | pl.col("field_6").str.starts_with(" "))
    )
    none = pl.lit(None, pl.String)
    parts = frame.select(
        vhost=none,
        port=none,
        ip=head[0],
        remote_user=head[2],
        time=pl.col("field_0").str.extract(r"\[([^\]]+)\]"),
        request="field_1",
        status="size_1",
        bytes="size_2",
        referrer="field_3",
        user_agent="field_5",
    )
    odd = lines.str.contains(r"[\\\n]")
    return parts, frame.select(plain.fill_null(value=False)).to_series() & ~odd.fill_null(value=True)


def _problems(lines: pl.Series, parts: pl.DataFrame) -> Iterator[tuple[int, Problem]]:
    """What is wrong with some lines, by row number; of a row named twice the last counts."""
    for row in parts["ip"].is_null().arg_true():
        yield row, Problem(Reason.BAD_LOG_LINE, None, "the line is not in the combined log format")
    for row in (parts["second"].is_null() & parts["ip"].is_not_null()).arg_true():
        detail = f"{parts['time'][row]!r} is no time of the form 17/May/2015:10:05:03 +0000"
        yield row, Problem(Reason.BAD_EVENT_TIME, "event_time", detail)
    yield from text_problems(lines)
