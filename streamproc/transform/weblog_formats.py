"""Which decoders read web logs, and what each is told by the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from streamproc.topology import Contract, Field, FieldType
from streamproc.transform.weblog import FIELDS, LineParser
from streamproc.transform.weblog_aws import AlbParser, S3AccessParser
from streamproc.transform.weblog_cloudfront import (
    REALTIME_FIELDS,
    STANDARD_FIELDS,
    CloudFrontParser,
    checked_fields,
)
from streamproc.transform.weblog_events import ClickEvents
from streamproc.transform.weblog_format import FormatParser
from streamproc.transform.weblog_json import JsonLogParser
from streamproc.transform.weblog_pattern import COMMON, compile_format

if TYPE_CHECKING:
    from streamproc.transform.decode import Parser

#: The columns of every web-log decoder but ``combined``: those of :data:`~streamproc.transform.weblog.FIELDS`,
#: and ``host`` (of the page, without a port), ``request_id`` (the server's own) and ``seconds`` (that
#: answering took). A part that the format does not have is null.
LOG_FIELDS: tuple[Field, ...] = (
    *FIELDS,
    Field("host", ("host",), FieldType.STRING, max_length=253, truncate=True),
    Field("request_id", ("request_id",), FieldType.STRING, max_length=256, truncate=True),
    Field("seconds", ("seconds",), FieldType.NUMBER),
)


def _cloudfront(standard: str) -> Callable[[Contract, bytes], Parser]:
    return lambda contract, key: CloudFrontParser(contract.log_format or standard, ClickEvents(contract, key))


def _written_out(contract: Contract, key: bytes) -> Parser:
    assert contract.log_format is not None, "the page reader asks for it"
    return FormatParser(compile_format(contract.log_format), ClickEvents(contract, key), "page's")


def _common(contract: Contract, key: bytes) -> Parser:
    return FormatParser(compile_format(COMMON, vhost=True), ClickEvents(contract, key), "common")


#: By the decoder's name: makes the parser of a contract, with the key of visitors' ids.
PARSERS: Mapping[str, Callable[[Contract, bytes], Parser]] = {
    "combined": LineParser,
    "common": _common,
    "log_format": _written_out,
    "nginx_json": lambda contract, key: JsonLogParser("nginx_json", ClickEvents(contract, key)),
    "alb": lambda contract, key: AlbParser(ClickEvents(contract, key)),
    "cloudfront": _cloudfront(STANDARD_FIELDS),
    "cloudfront_realtime": _cloudfront(REALTIME_FIELDS),
    "s3_access": lambda contract, key: S3AccessParser(ClickEvents(contract, key)),
    "api_gateway": lambda contract, key: JsonLogParser("api_gateway", ClickEvents(contract, key)),
}

#: Decoders that take ``log_format`` from the page.
FORMATTED = frozenset({"log_format", "cloudfront", "cloudfront_realtime"})


def fields_of(decoder: str) -> tuple[Field, ...]:
    """The columns that a web-log decoder brings."""
    return FIELDS if decoder == "combined" else LOG_FIELDS


def check_format(decoder: str, text: str) -> str:
    """``log_format`` as that decoder takes it. Raises :class:`~streamproc.quantities.Invalid`."""
    if decoder == "log_format":
        compile_format(text)
        return text
    return checked_fields(text, "date time" if decoder == "cloudfront" else "timestamp")
