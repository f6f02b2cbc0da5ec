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

import hashlib
import re
from collections.abc import Iterator

import polars as pl

from streamproc.topology import Contract, Field, FieldType
from streamproc.transform.decode_batch import Batch
from streamproc.transform.decode_rejects import Problem, Reason

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

#: Where a path belongs when neither the line nor the contract's ``site`` names its host.
DEFAULT_SITE = "http://localhost"

_QUOTED = r'(?:[^"\\]|\\.)*'
_LINE = (
    r"^(?:(?P<vhost>[^ :]+):(?P<port>[0-9]{1,5}) )?"
    r"(?P<ip>[^ ]+) [^ ]+ (?P<remote_user>.+?) \[(?P<time>[^\]]+)\] "
    rf'"(?P<request>{_QUOTED})" (?P<status>[0-9]{{3}}) (?P<bytes>[0-9]{{1,18}}|-) '
    rf'"(?P<referrer>{_QUOTED})" "(?P<user_agent>{_QUOTED})"(?: .*)?\s*$'
)
_REQUEST = r"^(?P<method>[A-Z]+) (?P<target>[^ ].*?)(?: (?P<protocol>HTTP/[0-9.]+))?$"
_TIME = "%d/%b/%Y:%H:%M:%S %z"
_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000}

_ASSETS = "css|js|mjs|map|png|jpe?g|gif|svg|webp|avif|ico|bmp|woff2?|ttf|otf|eot|json|xml|txt|wasm"
_DOWNLOADS = (
    "pdf|zip|gz|tgz|bz2|xz|zst|7z|rar|tar|exe|msi|dmg|pkg|deb|rpm|apk|jar|whl|iso|img|bin"
    "|mp3|mp4|m4a|mov|avi|mkv|webm|ogg|wav|flac|docx?|xlsx?|pptx?|odt|ods|odp|epub|csv"
)

_ESCAPE = re.compile(rb"\\(?:x([0-9A-Fa-f]{2})|(.))", re.DOTALL)
_CONTROLS = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"b": b"\b", b"v": b"\v", b"f": b"\f"}


class LineParser:
    """The parser of ``decoder = "combined"``. Keeps nothing between calls."""

    def __init__(self, contract: Contract) -> None:
        self._site = (contract.site or DEFAULT_SITE).rstrip("/")
        self._per_second = _PER_SECOND[contract.event_time.format]

    def parse(self, batch: Batch) -> pl.DataFrame:
        """The columns of :data:`FIELDS` for the lines that stay in ``batch``; the others get a problem."""
        lines = _text(batch)
        parts = _parse(lines)
        keep = batch.drop(dict(_problems(lines, parts)))
        parts = parts.filter(keep)
        return parts.with_columns(
            event_time=pl.col("second") * self._per_second,
            visitor_id=visitor_ids(parts["ip"], parts["user_agent"]),
            page_url=_page_url(self._site),
            event_type=_event_type(),
        ).select(field.name for field in FIELDS)


def _text(batch: Batch) -> pl.Series:
    """The records as text, null where one is not UTF-8."""
    try:
        return batch.series.cast(pl.String)
    except (pl.exceptions.InvalidOperationError, pl.exceptions.ComputeError):
        # Polars refuses the series for one bad record; only then are they looked at one by one.
        return pl.Series([_decoded(value) for value in batch.series.to_list()], dtype=pl.String)


def _decoded(value: bytes) -> str | None:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


def _parse(lines: pl.Series) -> pl.DataFrame:
    """The parts of each line, unescaped, and its ``second`` of Unix time; null when it is no such line."""
    parts = lines.str.extract_groups(_LINE).struct.unnest()
    request = parts["request"].str.extract_groups(_REQUEST).struct.unnest()
    parts = pl.concat([parts.drop("request"), request], how="horizontal")
    for name in ("target", "referrer", "user_agent", "remote_user"):
        parts = parts.with_columns(_unescape(parts[name]))
    blank = [pl.col(name).replace(["-", ""], None) for name in ("referrer", "user_agent", "remote_user")]
    return parts.with_columns(
        *blank,
        status=pl.col("status").cast(pl.Int64),
        bytes=pl.col("bytes").replace("-", None).cast(pl.Int64),
        second=pl.col("time").str.to_datetime(_TIME, time_unit="us", strict=False).dt.epoch("s"),
    )


def _unescape(texts: pl.Series) -> pl.Series:
    """Backslash escapes undone; only texts that have one are looked at."""
    escaped = texts.filter(texts.str.contains("\\", literal=True)).unique()
    if escaped.is_empty():
        return texts
    return texts.replace(escaped, pl.Series(map(_unescaped, escaped.to_list()), dtype=pl.String))


def _unescaped(text: str) -> str:
    def one(escape: re.Match[bytes]) -> bytes:
        code, other = escape.groups()
        return bytes([int(code, 16)]) if code else _CONTROLS.get(other, other)

    try:
        plain = _ESCAPE.sub(one, text.encode()).decode()
    except UnicodeDecodeError:  # of a charset nobody told us: the escapes lose nothing
        return text
    return text if "\0" in plain else plain


def visitor_ids(addresses: pl.Series, agents: pl.Series) -> pl.Series:
    """A visitor as a log can tell one: BLAKE2b-128, in hex, of the address and the agent.

    It is not keyed, so that streams agree on it; who has a list of addresses could try them. A page that
    must not allow that names ``visitor_id`` in ``[privacy.pseudonym]``.
    """
    frame = pl.DataFrame({"ip": addresses, "agent": agents})
    pairs = frame.unique()
    hashed = [
        hashlib.blake2b(f"{ip}\0{agent or ''}".encode(), digest_size=16).hexdigest()
        for ip, agent in pairs.iter_rows()
    ]
    known = pairs.with_columns(pl.Series("visitor_id", hashed, dtype=pl.String))
    joined = frame.join(known, on=["ip", "agent"], how="left", nulls_equal=True, maintain_order="left")
    return joined["visitor_id"]


def _page_url(site: str) -> pl.Expr:
    """The page's URL: of a proxy's request it is the target itself; ``*`` and CONNECT name no page."""
    target = pl.col("target")
    secure = pl.when(pl.col("port") == "443").then(pl.lit("https://")).otherwise(pl.lit("http://"))
    port = pl.when(~pl.col("port").is_in(["80", "443"])).then(":" + pl.col("port")).otherwise(pl.lit(""))
    host = pl.coalesce(secure + pl.col("vhost") + port, pl.lit(site))
    return (
        pl.when(target.str.starts_with("/"))
        .then(host + target)
        .when(target.str.contains(r"^[A-Za-z][A-Za-z0-9+.\-]*://"))
        .then(target)
    )


def _event_type() -> pl.Expr:
    """What a line is, the first that fits.

    ``error``: status 400 or more, or no HTTP request at all; ``redirect``: 3xx but 304; ``request``: a method
    other than GET; ``download`` and ``asset``: by the path's extension; ``page_view``: everything else.
    """
    status = pl.col("status")
    path = pl.col("target").str.extract(r"^([^?#]*)").str.to_lowercase()
    return (
        pl.when((status >= 400) | pl.col("method").is_null())
        .then(pl.lit("error"))
        .when((status >= 300) & (status != 304))
        .then(pl.lit("redirect"))
        .when(pl.col("method") != "GET")
        .then(pl.lit("request"))
        .when(path.str.contains(rf"\.(?:{_DOWNLOADS})$"))
        .then(pl.lit("download"))
        .when(path.str.contains(rf"\.(?:{_ASSETS})$"))
        .then(pl.lit("asset"))
        .otherwise(pl.lit("page_view"))
    )


def _problems(lines: pl.Series, parts: pl.DataFrame) -> Iterator[tuple[int, Problem]]:
    """What is wrong with some lines, by row number; of a row named twice the last counts."""
    for row in parts["ip"].is_null().arg_true():
        yield row, Problem(Reason.BAD_LOG_LINE, None, "the line is not in the combined log format")
    for row in (parts["second"].is_null() & parts["ip"].is_not_null()).arg_true():
        detail = f"{parts['time'][row]!r} is no time of the form 17/May/2015:10:05:03 +0000"
        yield row, Problem(Reason.BAD_EVENT_TIME, "event_time", detail)
    for row in lines.str.contains("\0", literal=True).arg_true():
        yield row, Problem(Reason.NUL_CHARACTER, None, "the line holds U+0000")
    for row in (lines.str.strip_chars() == "").arg_true():
        yield row, Problem(Reason.EMPTY, None, "the line is blank")
    for row in lines.is_null().arg_true():
        yield row, Problem(Reason.NOT_UTF8, None, "the line is not UTF-8")
