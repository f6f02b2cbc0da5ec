"""What log lines of any format become: click events, from the parts that a format finds in them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple
from urllib.parse import unquote

import polars as pl

from streamproc.transform.decode_rejects import Problem, Reason

#: What a format may find in a line; a part it does not know is null. ``microsecond``: Unix time;
#: ``target``: path and query, or a whole URL; ``vhost``, ``port``, ``scheme``: where it belongs if it is a
#: path; ``visitor``: the log's own id of the visitor; ``seconds``: from request to response.
PARTS: dict[str, type[pl.DataType]] = {
    "microsecond": pl.Int64,
    "visitor": pl.String,
    "referrer": pl.String,
    "user_agent": pl.String,
    "ip": pl.String,
    "remote_user": pl.String,
    "method": pl.String,
    "target": pl.String,
    "protocol": pl.String,
    "status": pl.Int64,
    "bytes": pl.Int64,
    "scheme": pl.String,
    "vhost": pl.String,
    "port": pl.String,
    "request_id": pl.String,
    "seconds": pl.Float64,
}

#: The columns of events, in order.
COLUMNS = (
    *("event_type", "event_time", "visitor_id", "page_url", "referrer", "user_agent", "ip", "remote_user"),
    *("method", "protocol", "status", "bytes", "host", "request_id", "seconds"),
)

#: How a request line is read; targets may hold spaces, as browsers' bugs send them.
REQUEST = r"^(?P<method>[A-Z]+) (?P<target>[^ ].*?)(?: (?P<protocol>HTTP/[0-9.]+))?$"

#: Where a path belongs when neither the line nor the contract's ``site`` names its host.
DEFAULT_SITE = "http://localhost"

PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000}

_ASSETS = "css|js|mjs|map|png|jpe?g|gif|svg|webp|avif|ico|bmp|woff2?|ttf|otf|eot|json|xml|txt|wasm"
_DOWNLOADS = (
    "pdf|zip|gz|tgz|bz2|xz|zst|7z|rar|tar|exe|msi|dmg|pkg|deb|rpm|apk|jar|whl|iso|img|bin"
    "|mp3|mp4|m4a|mov|avi|mkv|webm|ogg|wav|flac|docx?|xlsx?|pptx?|odt|ods|odp|epub|csv"
)

_ESCAPE = re.compile(rb"\\(?:x([0-9A-Fa-f]{2})|(.))", re.DOTALL)
_CONTROLS = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"b": b"\b", b"v": b"\v", b"f": b"\f"}


class Shape(NamedTuple):
    """What events of one contract need to know. ``site``: of paths without a host; ``per_second``: see contract."""

    site: str
    per_second: int


def click_events(parts: pl.DataFrame, shape: Shape) -> pl.DataFrame:
    """The columns of :data:`~streamproc.transform.weblog_formats.LOG_FIELDS` for lines taken apart.

    ``parts``: some of :data:`PARTS`, texts where a number has to be read as well. ``-`` and the empty text are
    null. A status or size that is no number is null.
    """
    have = [
        (
            pl.when(~pl.col(name).is_in(["-", ""])).then(pl.col(name)).cast(dtype, strict=False).alias(name)
            if parts.schema[name] == pl.String
            else pl.col(name).cast(dtype)
        )
        if name in parts.columns
        else pl.lit(None, dtype).alias(name)
        for name, dtype in PARTS.items()
    ]
    events = parts.select(have)
    return events.with_columns(
        event_time=pl.col("microsecond") // (1_000_000 // shape.per_second),
        visitor_id=pl.coalesce(pl.col("visitor"), visitor_ids(events["ip"], events["user_agent"])),
        page_url=page_url(shape.site, scheme=pl.col("scheme")),
        event_type=event_type(),
        host=pl.col("vhost"),
    ).select(COLUMNS)


def request_parts(requests: pl.Series) -> pl.DataFrame:
    """``method``, ``target`` and ``protocol`` of request lines; null where one is no HTTP request."""
    return requests.str.extract_groups(REQUEST).struct.unnest()


def moments(times: pl.Series, form: str) -> pl.Series:
    """Texts of strftime's form as microseconds of Unix time, null where one is not; without a zone it is UTC.

    A log has many lines to a second: each distinct text is read once.
    """
    if times.null_count() == len(times):
        return pl.Series(times.name, [None] * len(times), dtype=pl.Int64)
    distinct = times.unique()
    read = distinct.str.to_datetime(form, time_unit="us", strict=False).dt.epoch("us")
    return times.replace_strict(distinct, read, return_dtype=pl.Int64)


def client_and_host(parts: pl.DataFrame) -> pl.DataFrame:
    """The first address where ``ip`` is a list, as X-Forwarded-For is; ``vhost`` without its port.

    A port of ``vhost`` goes to ``port`` unless the log has that already.
    """
    if "ip" in parts.columns:
        parts = parts.with_columns(pl.col("ip").str.extract(r"^\s*([^,\s]+)"))
    if "vhost" in parts.columns:
        own = [pl.col("port")] if "port" in parts.columns else []
        port = pl.coalesce(*own, pl.col("vhost").str.extract(r":([0-9]+)$")).alias("port")
        parts = parts.with_columns(pl.col("vhost").str.extract(r"^(\[.*\]|[^:]+)"), port)
    return parts


def percent_decoded(texts: pl.Series, *, times: int = 1) -> pl.Series:
    """Percent escapes undone; ``times``: also those that come out, while there are any.

    A text that would not be UTF-8, or would hold NUL, stays as it is. Only distinct texts with an escape are
    looked at.
    """
    return _mapped(texts, "%", lambda text: _percent_decoded(text, times))


def _percent_decoded(text: str, times: int) -> str:
    for _ in range(times):
        if "%" not in text:
            break
        try:
            plain = unquote(text, errors="strict")
        except UnicodeDecodeError:
            break
        if "\0" in plain:
            break
        text = plain
    return text


def _mapped(texts: pl.Series, sign: str, change: Callable[[str], str]) -> pl.Series:
    found = texts.filter(texts.str.contains(sign, literal=True)).unique()
    if found.is_empty():
        return texts
    return texts.replace(found, pl.Series(map(change, found.to_list()), dtype=pl.String))


def line_problems(
    lines: pl.Series, matched: pl.Series, seconds: pl.Series, times: pl.Series, name: str
) -> Iterator[tuple[int, Problem]]:
    """What is wrong with some lines, by row number; of a row named twice the last counts.

    ``matched``: whether the line is in the format ``name``; ``seconds``: null where the time is none;
    ``times``: as they stand in the line.
    """
    for row in (~matched).arg_true():
        yield row, Problem(Reason.BAD_LOG_LINE, None, f"the line is not in the {name} log format")
    for row in (seconds.is_null() & matched).arg_true():
        detail = f"{times[row]!r} is no time as the {name} log format has it"
        yield row, Problem(Reason.BAD_EVENT_TIME, "event_time", detail)
    yield from text_problems(lines)


def text_problems(lines: pl.Series) -> Iterator[tuple[int, Problem]]:
    """Lines that are no text at all, by row number; of a row named twice the last counts."""
    for row in lines.str.contains("\0", literal=True).arg_true():
        yield row, Problem(Reason.NUL_CHARACTER, None, "the line holds U+0000")
    for row in (lines.str.strip_chars() == "").arg_true():
        yield row, Problem(Reason.EMPTY, None, "the line is blank")
    for row in lines.is_null().arg_true():
        yield row, Problem(Reason.NOT_UTF8, None, "the line is not UTF-8")


def unescape(texts: pl.Series) -> pl.Series:
    """Backslash escapes undone; only texts that have one are looked at."""
    return _mapped(texts, "\\", _unescaped)


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


def page_url(site: str, *, scheme: pl.Expr | None = None) -> pl.Expr:
    """The page's URL: of a proxy's request it is the target itself; ``*`` and CONNECT name no page."""
    target = pl.col("target")
    secure = pl.when(pl.col("port") == "443").then(pl.lit("https://")).otherwise(pl.lit("http://"))
    if scheme is not None:
        secure = pl.coalesce(scheme + "://", secure)
    port = pl.when(~pl.col("port").is_in(["80", "443"])).then(":" + pl.col("port")).otherwise(pl.lit(""))
    host = pl.coalesce(secure + pl.col("vhost") + port, pl.lit(site))
    return (
        pl.when(target.str.starts_with("/"))
        .then(host + target)
        .when(target.str.contains(r"^[A-Za-z][A-Za-z0-9+.\-]*://"))
        .then(target)
    )


def event_type() -> pl.Expr:
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
