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
from streamproc.transform.decode_rejects import Problem, Reason, quoted
from streamproc.transform.weblog_escapes import unescape
from streamproc.transform.weblog_events import ClickEvents, moments, text_problems
from streamproc.transform.weblog_pattern import CLF_TIME, QUOTED

#: The decoder's columns. ``event_time``: Unix time in the contract's unit (lines have whole seconds);
#: ``visitor_id``: of address and agent; ``ip``: the client, a host name when the server resolves them;
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

#: Texts that may be ``-``, and that servers escape with backslashes as they do the target.
_ESCAPED = ("referrer", "user_agent", "remote_user")

_HOST = "(?P<vhost>[^ :]+):(?P<port>[0-9]{1,5}) "
_LINE = (
    rf"^(?:{_HOST})?"
    r"(?P<ip>[^ ]+) [^ ]+ (?P<remote_user>.+?) \[(?P<time>[^\]]+)\] "
    rf'"(?P<request>{QUOTED})" (?P<status>[0-9]{{3}}) (?P<bytes>[0-9]{{1,18}}|-) '
    rf'"(?P<referrer>{QUOTED})" "(?P<user_agent>{QUOTED})"(?: .*)?\s*$'
)


class LineParser:
    """The parser of ``decoder = "combined"``. ``key``: of visitors, see
    :class:`~streamproc.transform.weblog_visitors.Visitors`.
    """

    def __init__(self, contract: Contract, key: bytes = b"") -> None:
        self._events = ClickEvents(contract, key)

    def parse(self, batch: Batch) -> pl.DataFrame:
        """The columns of :data:`FIELDS` for the lines that stay in ``batch``; the others get a problem."""
        lines = batch.text
        parts = _taken_apart(lines)
        parts = parts.with_columns(moments(parts["time"], CLF_TIME))
        if problems := dict(_problems(lines, parts)):
            parts = parts.filter(batch.drop(problems))
        parts = parts.hstack(self._events.requests.parts(parts["request"]))
        parts = parts.with_columns(unescape(parts[name]) for name in ("target", *_ESCAPED))
        parts = parts.with_columns(
            *(pl.when(~pl.col(name).is_in(["-", ""])).then(pl.col(name)).alias(name) for name in _ESCAPED),
            status=pl.col("status").cast(pl.Int64),
            bytes=pl.when(pl.col("bytes") != "-").then(pl.col("bytes")).cast(pl.Int64),
        )
        return self._events.finished(parts).select(field.name for field in FIELDS)


def _taken_apart(lines: pl.Series) -> pl.DataFrame:
    """The groups of ``_LINE``. Plain lines are cut at quotes and spaces, a sixth of the expression's time.

    (2.7 against 0.45 µs a line; ``python -m benchmarks.logs --parse`` measures it with the rest.)
    """
    parts, plain = _cut(lines)
    if plain.all():
        return parts
    return _interleaved(parts, plain, _taken_apart_behind_host(lines.filter(~plain)))


def _taken_apart_behind_host(lines: pl.Series) -> pl.DataFrame:
    """The same of lines that are not plain: perhaps only for the virtual host that they begin with."""
    split = lines.str.extract_groups(rf"^{_HOST}(?P<line>.*)$").struct.unnest()
    parts, plain = _cut(split["line"])
    parts = parts.with_columns(split["vhost"], split["port"])
    if plain.all():
        return parts
    odd = lines.filter(~plain).str.extract_groups(_LINE).struct.unnest()
    return _interleaved(parts, plain, odd.select(parts.columns))


def _interleaved(parts: pl.DataFrame, plain: pl.Series, others: pl.DataFrame) -> pl.DataFrame:
    """The plain ones of ``parts`` and ``others``, in the lines' order."""
    rows = pl.int_range(len(plain), dtype=pl.UInt32, eager=True)
    order = pl.concat([rows.filter(plain), rows.filter(~plain)]).arg_sort()
    return pl.concat([parts.filter(plain), others])[order]


def _cut(lines: pl.Series) -> tuple[pl.DataFrame, pl.Series]:
    """The groups of ``_LINE``, and for which lines they are right: those without escapes, virtual host and oddities."""
    quoted = lines.str.splitn('"', 7).struct.unnest()
    head = quoted["field_0"].str.split_exact(" ", 6).struct.rename_fields([f"head_{n}" for n in range(7)])
    size = pl.col("field_2")
    none = pl.lit(None, pl.String)
    parts = quoted.hstack(head.struct.unnest()).select(
        vhost=none,
        port=none,
        ip="head_0",
        remote_user="head_2",
        time=pl.col("head_3").str.slice(1) + " " + pl.col("head_4").str.head(-1),
        request="field_1",
        status=size.str.slice(1, 3),
        bytes=size.str.slice(5).str.head(-1),
        referrer="field_3",
        user_agent="field_5",
        plain=pl.all_horizontal(pl.col(f"head_{place}") != "" for place in range(3))
        & ~pl.col("head_0").str.contains(r"^[^:]+:[0-9]{1,5}$")
        # Nothing but `[time zone] ` behind the user.
        & pl.col("head_3").str.starts_with("[")
        & pl.col("head_4").str.ends_with("]")
        & (pl.col("head_5") == "")
        & pl.col("head_6").is_null()
        & size.str.contains(r"^ [0-9]{3} (?:[0-9]{1,18}|-) $")
        & (pl.col("field_4") == " ")
        & (pl.col("field_6").is_in(["", "\r"]) | pl.col("field_6").str.starts_with(" ")),
    )
    odd = lines.str.contains(r"[\\\n]") | parts["time"].str.contains("]", literal=True)
    return parts.drop("plain"), parts["plain"].fill_null(value=False) & ~odd.fill_null(value=True)


def _problems(lines: pl.Series, parts: pl.DataFrame) -> Iterator[tuple[int, Problem]]:
    """What is wrong with some lines, by row number; of a row named twice the last counts."""
    for row in parts["ip"].is_null().arg_true():
        yield row, Problem(Reason.BAD_LOG_LINE, None, "the line is not in the combined log format")
    for row in (parts["microsecond"].is_null() & parts["ip"].is_not_null()).arg_true():
        detail = f"{quoted(parts['time'][row])} is no time of the form 17/May/2015:10:05:03 +0000"
        yield row, Problem(Reason.BAD_EVENT_TIME, "event_time", detail)
    yield from text_problems(lines)
