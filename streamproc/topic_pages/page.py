"""Reads topic pages: files in, valid :class:`~streamproc.topology.Topology` out, or every mistake."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from streamproc.errors import ConfigError, Mistake
from streamproc.model import FOLDER_COLUMNS
from streamproc.quantities import Invalid
from streamproc.topic_pages import names, reader
from streamproc.topic_pages.columns import Columns, named
from streamproc.topic_pages.contract import read_contract, read_topic
from streamproc.topic_pages.enrichments import read_derive, read_enrichments, read_filters
from streamproc.topic_pages.reader import Mistakes, Reader
from streamproc.topic_pages.tables import read_tables
from streamproc.topology import DAY, HOUR, Duplicates, Enrichment, Retention, Sinks, Table, Topic, Topology

#: A page is written by hand; a larger file is not one.
LARGEST_PAGE = 2**20

#: Measures whose result is one of the values they measure.
_KEEPING = ("first", "last", "min", "max")

#: Of a retention: longer is for ever.
LONGEST = 100 * 365 * DAY

_HERE = "topics"
_SHIPPED = "_topics"


def find_pages(explicit: Path | None) -> Path:
    """The folder of topic pages (or the single page) to use.

    ``explicit`` if given; else ``topics`` in the working directory; else the pages shipped with streamproc.

    Raises:
        ConfigError: ``explicit`` does not exist.
    """
    if explicit is not None:
        if not explicit.exists():
            raise ConfigError(
                [Mistake(str(explicit), "does not exist", "Name the folder of the topic pages")]
            )
        return explicit
    here = Path(_HERE)
    if any(here.glob("*.toml")):
        return here
    package = Path(__file__).parents[1]
    shipped = package / _SHIPPED  # in a wheel; in a checkout the pages are beside the package
    return shipped if shipped.is_dir() else package.parent / _HERE


def load_pages(directory: Path) -> dict[str, Topology]:
    """Every ``*.toml`` of a folder (or one page, named by its file) as stream name → topology, in file order.

    Raises:
        ConfigError: the mistakes of all pages, and streams or topics that two of them share.
    """
    paths = [directory] if directory.is_file() else sorted(directory.glob("*.toml"))
    if not paths:
        raise ConfigError(
            [Mistake(str(directory), "holds no topic page", "Put a page there: docs/topic-files.md")]
        )
    mistakes: list[Mistake] = []
    pages: dict[Path, Topology] = {}
    for path in paths:
        try:
            pages[path] = load_page(path)
        except ConfigError as error:
            mistakes += error.mistakes
    mistakes += _clashes(pages)
    if mistakes:
        raise ConfigError(mistakes)
    return {page.name: page for page in pages.values()}


def load_page(path: Path) -> Topology:
    """One topic page.

    Raises:
        ConfigError: every mistake in it, each with its dotted path and what to write instead.
    """
    return read_page(_read(path), path.name)


def read_page(raw: Mapping[str, object], file: str) -> Topology:
    """A page that is parsed already; ``file`` names it in mistakes. Raises as :func:`load_page`."""
    mistakes = Mistakes(file)
    topology = _topology(Reader(raw, "", mistakes), _fingerprint(raw))
    if mistakes.found:
        raise ConfigError(mistakes.found)
    return topology


def _read(path: Path) -> dict[str, object]:
    try:
        if path.stat().st_size > LARGEST_PAGE:
            raise Invalid(f"is larger than {LARGEST_PAGE:,} bytes", "Name a topic page")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        mistake = Mistake(str(path), f"cannot be read: {error.strerror}", "Name a file this process may read")
    except UnicodeDecodeError as error:
        mistake = Mistake(path.name, f"is not UTF-8 text (byte {error.start})", "Save it as UTF-8")
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        mistake = Mistake(path.name, f"is not TOML: {error}", "See https://toml.io for the format")
    except ValueError as error:
        # tomllib lets one of these out for an integer of more digits than Python converts.
        mistake = Mistake(path.name, f"is not usable: {error}", "See docs/topic-files.md for the format")
    raise ConfigError([mistake])


def _fingerprint(raw: Mapping[str, object]) -> str:
    """SHA-256 of what the page says, in hex: comments and layout do not count, the order of keys does."""
    return hashlib.sha256(json.dumps(raw, default=str, ensure_ascii=False).encode()).hexdigest()


def _topology(page: Reader, fingerprint: str) -> Topology:
    stream = page.table("stream")
    name = stream.required(
        "name", names.identifier("stream", names.SCHEMAS), 'Write [stream] with name = "…"'
    )
    stream.finish()
    topic = read_topic(page.table("topic"), name or "stream")
    if "contract" not in page:
        page.mistake(
            "contract", "is missing", "Describe what a record looks like: docs/topic-files.md, Contract"
        )
    contract, columns = read_contract(page.table("contract"))
    enrichments = read_enrichments(page, "enrich", columns)
    derive = read_derive(page, columns)
    filters = read_filters(page, columns)
    privacy = read_enrichments(page, "privacy", columns)
    tables = read_tables(page, columns)
    sinks = _read_sinks(page.table("sinks"), topic.name, columns)
    retention = _read_retention(page.table("retention"), topic, sinks)
    erasure = _read_erasure(page.table("erasure"), columns, tables)
    _check_duplicates(page, contract.duplicates, privacy, sinks, retention)
    if sinks.publish_tables is not None and not tables:
        page.mistakes.add("sinks.publish_tables", "there is no table to publish", "Declare one, or remove it")
    page.finish()
    return Topology(
        name=name or "",
        topic=topic,
        contract=contract,
        filters=filters,
        enrichments=enrichments + privacy,
        derive=derive,
        tables=tables,
        sinks=sinks,
        columns=columns.types,
        fingerprint=fingerprint,
        retention=retention,
        erasure=erasure,
    )


def _check_duplicates(
    page: Reader,
    duplicates: Duplicates | None,
    privacy: tuple[Enrichment, ...],
    sinks: Sinks,
    retention: Retention,
) -> None:
    """After a restart, the ids seen are read back from the lake: they must be there, as they came."""
    if duplicates is None:
        return
    if not sinks.lake:
        fix = "Write sinks.lake = true, or remove [contract.duplicates]"
        problem = "needs the lake, from which the ids seen are read back after a restart"
        page.mistakes.add("contract.duplicates", problem, fix)
    if retention.events is not None and duplicates.horizon > retention.events:
        fix = "Keep events at least as long: after a restart the ids seen are read back from them"
        page.mistakes.add("contract.duplicates.horizon", "is longer than retention.events", fix)
    for enrichment in privacy:
        hidden = enrichment.options.get("fields", enrichment.options.get("field"))
        if duplicates.field == hidden or (isinstance(hidden, tuple) and duplicates.field in hidden):
            problem = f"{duplicates.field!r} is changed by privacy.{enrichment.kind}"
            fix = "Leave it as it comes: duplicates are recognised by it after a restart"
            page.mistakes.add("contract.duplicates.field", problem, fix)


def _read_sinks(table: Reader, source: str, columns: Columns) -> Sinks:
    sinks = Sinks(
        lake=table.optional("lake", reader.flag, True),
        warehouse=table.optional("warehouse", reader.flag, True),
        compact=table.optional("compact", reader.flag, False),
        publish_events=table.optional("publish_events", names.topic_name, None),
        publish_tables=table.optional("publish_tables", names.topic_name, None),
        sort_key=table.optional("sort_key", reader.texts, ()),
        dist_key=table.optional("dist_key", reader.text, None),
    )
    table.finish()
    for key, wanted in (
        ("sort_key", sinks.sort_key),
        ("dist_key", (sinks.dist_key,) if sinks.dist_key else ()),
    ):
        for column in wanted:
            if columns.complete and column not in columns.types:
                fix = reader.suggestion(column, columns.types, "Name a column of the events")
                table.mistake(key, f"there is no column {column!r}", fix)
    if len(set(sinks.sort_key)) < len(sinks.sort_key):
        table.mistake("sort_key", "names a column twice", "Name it once")
    if sinks.warehouse and not sinks.lake:
        fix = "Write lake = true, or warehouse = false"
        table.mistake("warehouse", "is loaded from the lake, which is switched off", fix)
    if sinks.compact and not sinks.lake:
        table.mistake("compact", "there is no lake to compact", "Write lake = true, or remove it")
    if sinks.publish_events is not None and not sinks.lake:
        table.mistake("publish_events", "needs the lake", "Write lake = true, or remove it")
    for column in FOLDER_COLUMNS if sinks.lake else ():
        if column in columns.types:
            fix = "Give the column another name, or write lake = false"
            table.mistake("lake", f"has folders that are called as the column {column!r}", fix)
    for key, topic in (("publish_events", sinks.publish_events), ("publish_tables", sinks.publish_tables)):
        if topic == source:
            table.mistake(
                key, "is the topic that is read: events would go round for ever", "Choose another topic"
            )
    if sinks.publish_events is not None and sinks.publish_events == sinks.publish_tables:
        table.mistake("publish_tables", "is the topic of publish_events", "Choose another topic")
    return sinks


def _read_retention(table: Reader, topic: Topic, sinks: Sinks) -> Retention:
    age = reader.duration_or_forever(HOUR, LONGEST)
    shipped = Retention()
    assert shipped.history is not None
    # What the topic still has can be replayed, and a replay needs the commits of its range.
    longest = None if topic.retention is None else max(shipped.history, topic.retention)
    retention = Retention(
        events=table.optional("events", age, None),
        rejects=table.optional("rejects", age, None),
        history=table.optional("history", age, longest),
    )
    table.finish()
    for key, kept in (("events", retention.events), ("rejects", retention.rejects)):
        if kept is not None and not sinks.lake:
            table.mistake(key, "there is no lake to keep them in", "Remove it, or write sinks.lake = true")
    history = retention.history
    if history is not None and (topic.retention is None or history < topic.retention):
        fix = "Keep it as long as the topic keeps records, or they cannot be replayed"
        table.mistake("history", "is shorter than topic.retention", fix)
    return retention


def _read_erasure(table: Reader, columns: Columns, tables: tuple[Table, ...]) -> tuple[str, ...]:
    """``[erasure]``: the columns by which a visitor is found, and no table that would keep one of their values."""
    found = table.optional("columns", reader.texts, ())
    table.finish()
    for column in found:
        dtype = columns.known(table, "columns", column)
        if dtype is not None and dtype != pl.String():
            table.mistake("columns", f"{column!r} is {named(dtype)}", "Name columns that are text")
        for each in tables:
            for measure in each.measures:
                if measure.kind in _KEEPING and measure.column == column:
                    problem = f"{column!r} is shown by tables.{each.name}.measures.{measure.name}"
                    fix = "Remove that measure: a value of one visitor in a row of many cannot be erased"
                    table.mistake("columns", problem, fix)
    return found


def _clashes(pages: Mapping[Path, Topology]) -> list[Mistake]:
    """Streams and topics that two pages give: both would write them."""
    mistakes: list[Mistake] = []
    given: dict[tuple[str, str], str] = {}
    for path, page in pages.items():
        claims = [
            ("stream.name", "stream", page.name),
            ("topic.name", "topic", page.topic.name),
            ("sinks.publish_events", "topic", page.sinks.publish_events),
            ("sinks.publish_tables", "topic", page.sinks.publish_tables),
        ]
        for key, what, name in claims:
            if name is not None and (other := given.setdefault((what, name), path.name)) != path.name:
                problem = f"{other} has the {what} {name!r} already"
                mistakes.append(Mistake(f"{path.name}: {key}", problem, "Choose another name in one of them"))
    return mistakes
