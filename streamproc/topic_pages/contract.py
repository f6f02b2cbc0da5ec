"""``[topic]`` and ``[contract]``: the Kafka topic, and what a record of it looks like."""

from __future__ import annotations

import re

import polars as pl

from streamproc.model import SYSTEM_COLUMNS
from streamproc.quantities import Invalid, shown
from streamproc.topic_pages import names, reader
from streamproc.topic_pages.columns import Columns
from streamproc.topic_pages.reader import Reader
from streamproc.topology import (
    DAY,
    HOUR,
    MINUTE,
    SECOND,
    Contract,
    Duplicates,
    EventTime,
    Field,
    FieldType,
    Topic,
)
from streamproc.transform.weblog_formats import FORMATTED, PARSERS, check_format, fields_of

#: Deeper contracts are a sign of a path written wrongly, and each level costs decoding time.
DEEPEST_PATH = 16

_FORMATS = {
    "s": (FieldType.INTEGER, FieldType.NUMBER),
    "ms": (FieldType.INTEGER, FieldType.NUMBER),
    "us": (FieldType.INTEGER, FieldType.NUMBER),
    "iso8601": (FieldType.STRING,),
}


def read_topic(table: Reader, stream: str) -> Topic:
    """``[topic]``; the name is the stream's unless given."""
    topic = Topic(
        name=table.optional("name", names.topic_name, stream),
        partitions=table.optional("partitions", reader.whole(1, 10_000), 4),
        replication=table.optional("replication", reader.whole(1, 100), 1),
        retention=table.optional("retention", reader.duration_or_forever(MINUTE, 3650 * DAY), 7 * DAY),
    )
    table.finish()
    return topic


def read_contract(table: Reader) -> tuple[Contract, Columns]:
    """``[contract]``, and the columns a decoded frame has."""
    decoder = table.optional("decoder", reader.one_of(("json", *PARSERS), "decoder"), "json")
    fields, complete = _read_fields(table, decoder)
    by_name = {field.name: field for field in fields}
    columns = Columns({field.name: field.type.polars for field in fields}, complete)
    key = _field_name(table, "key", by_name, columns, required=False)
    contract = Contract(
        fields=fields,
        event_time=_read_event_time(table, by_name, columns),
        key=key,
        duplicates=_read_duplicates(table, by_name, columns),
        decoder=decoder,
        duplicate_keys=table.optional(
            "duplicate_keys", reader.one_of(("reject", "first"), "way to treat duplicate keys"), "reject"
        ),
        max_record_bytes=table.optional("max_record_bytes", reader.size(1024, 2**28), 2**20),
        site=_read_site(table, decoder),
        log_format=_read_log_format(table, decoder),
    )
    table.finish()
    columns.types["event_time"] = pl.Datetime("us", "UTC")
    columns.types |= SYSTEM_COLUMNS
    return contract, columns


def _read_site(table: Reader, decoder: str) -> str | None:
    if "site" in table and decoder not in PARSERS:
        table.mistake("site", f"is of no use to the decoder {decoder!r}", "Remove it")
    return table.optional("site", _site, None)


def _site(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"https?://[^\s/?#@]+/?", value):
        raise Invalid(f"{shown(value)} is not a site", 'Write scheme and host: "https://www.example.com"')
    return value


def _read_log_format(table: Reader, decoder: str) -> str | None:
    if "log_format" not in table:
        if decoder == "log_format":
            table.mistake("log_format", "is missing", "Copy the format from the server's configuration")
        return None
    if decoder not in FORMATTED:
        table.mistake("log_format", f"is of no use to the decoder {decoder!r}", "Remove it")
    elif isinstance(table.raw["log_format"], str):
        return table.optional("log_format", lambda value: check_format(decoder, str(value)), None)
    return table.optional("log_format", reader.text, None)


def _read_fields(table: Reader, decoder: str) -> tuple[tuple[Field, ...], bool]:
    """The fields, and whether names and types of all of them could be read."""
    if decoder in PARSERS:
        if "fields" in table:
            fix = "Remove [contract.fields]: docs/topic-files.md lists the fields of a log line"
            table.optional("fields", lambda value: value, None)
            table.mistake("fields", f'the decoder "{decoder}" brings its own fields', fix)
        return fields_of(decoder), True
    if "fields" not in table:
        table.mistake("fields", "is missing", "Describe at least the event's time, below [contract.fields]")
    section = table.table("fields")
    read = [_read_field(name, sub) for name, sub in section.tables()]
    fields = tuple(field for field, _ in read)
    _check_paths(section, fields)
    return fields, len(fields) == len(section.raw) > 0 and all(sound for _, sound in read)


def _read_field(name: str, table: Reader) -> tuple[Field, bool]:
    """The field, and whether its name and type are sound."""
    sound = True
    try:
        names.identifier("field", names.EVENT_COLUMNS - {"event_time"})(name)
    except Invalid as error:
        sound = False
        short = error.fix.startswith("Shorten")
        fix = error.fix if short else f'{error.fix}, and path = "{name}" for its JSON key'
        table.mistake("", error.problem, fix)
    kinds = {kind.value: kind for kind in FieldType}
    kind = table.required("type", reader.one_of(kinds, "type"), f"Write type = one of {', '.join(kinds)}")
    field = Field(
        name=name,
        path=table.optional("path", _path, (name,)),
        type=kinds[kind or "string"],
        required=table.optional("required", reader.flag, False),
        max_length=table.optional("max_length", reader.whole(1, 2**24), None),
        truncate=table.optional("truncate", reader.flag, False),
    )
    if kind in {"integer", "number", "boolean"} and field.max_length is not None:
        table.mistake(
            "max_length", f"has no meaning for type {kind}", "Remove it, or make the field a string"
        )
    if field.truncate and (kind != "string" or field.max_length is None):
        table.mistake(
            "truncate", "cuts strings longer than max_length", "Set max_length on a string, or remove it"
        )
    table.finish()
    return field, sound and kind is not None


def _path(value: object) -> tuple[str, ...]:
    fix = 'Write "context.page.url", or ["key.with.dots", "url"]'
    parts = value.split(".") if isinstance(value, str) else value
    if not isinstance(parts, list) or not all(isinstance(part, str) and part for part in parts) or not parts:
        raise Invalid(f"{shown(value)} is not a path of keys", fix)
    if len(parts) > DEEPEST_PATH or any(len(part) > 256 or "\0" in part for part in parts):
        raise Invalid(
            f"{shown(value)} is too deep, or a key of it too long", f"At most {DEEPEST_PATH} keys of 256"
        )
    return tuple(parts)


def _check_paths(table: Reader, fields: tuple[Field, ...]) -> None:
    at: dict[tuple[str, ...], Field] = {}
    for field in fields:
        if (other := at.setdefault(field.path, field)) is not field:
            problem = f"reads the same JSON key as {other.name!r}"
            table.mistake(field.name, problem, "Remove one of the two fields, or correct its path")
    for field in fields:
        for end in range(1, len(field.path)):
            outer = at.get(field.path[:end])
            if outer is not None and outer.type is not FieldType.JSON:
                problem = f"lies inside {outer.name!r}, which is a {outer.type.value}"
                table.mistake(field.name, problem, f'Give {outer.name!r} type = "json", or correct the path')


def _read_event_time(table: Reader, fields: dict[str, Field], columns: Columns) -> EventTime:
    if "event_time" not in table:
        table.mistake(
            "event_time", "is missing", 'Write [contract.event_time] with field = "…" and format = "ms"'
        )
    sub = table.table("event_time")
    name = _field_name(sub, "field", fields, columns, required="event_time" in table)
    event_time = EventTime(
        field=name or "",
        format=sub.optional("format", reader.one_of(_FORMATS, "format"), "ms"),
        future_skew=sub.optional("future_skew", reader.duration(0, 365 * DAY), 10 * MINUTE),
        disorder=sub.optional("disorder", reader.duration(0, 7 * DAY), 30 * SECOND),
        max_age=sub.optional("max_age", reader.duration_or_forever(HOUR, 36_500 * DAY), None),
    )
    sub.finish()
    if "event_time" in fields and name not in {None, "event_time"}:
        problem = f"has the name of the event time, which is read from {name!r}"
        fix = 'Rename the field, with path = "event_time" for its JSON key'
        table.mistakes.add(f"{table.at('fields')}.event_time", problem, fix)
    field = fields.get(name or "")
    if field is not None and columns.complete:
        place = f"{table.at('fields')}.{field.name}"
        if not field.required:
            table.mistakes.add(f"{place}.required", "an event needs its time", "Write required = true")
        if field.type not in _FORMATS[event_time.format]:
            wanted = " or ".join(kind.value for kind in _FORMATS[event_time.format])
            problem = f"event time in format {event_time.format!r} cannot be a {field.type.value}"
            table.mistakes.add(f"{place}.type", problem, f"Make it {wanted}, or correct event_time.format")
    return event_time


def _read_duplicates(table: Reader, fields: dict[str, Field], columns: Columns) -> Duplicates | None:
    if "duplicates" not in table:
        return None
    sub = table.table("duplicates")
    name = _field_name(sub, "field", fields, columns, required=True)
    horizon = sub.optional("horizon", reader.duration(SECOND, 24 * HOUR), 10 * MINUTE)
    sub.finish()
    if name in fields and fields[name].type not in {FieldType.STRING, FieldType.INTEGER}:
        sub.mistake(
            "field",
            f"{name!r} is a {fields[name].type.value}",
            "Name a string or an integer that identifies the event",
        )
    return Duplicates(name or "", horizon)


def _field_name(
    table: Reader, key: str, fields: dict[str, Field], columns: Columns, *, required: bool
) -> str | None:
    name = (
        table.required(key, reader.text, "Name a field of [contract.fields]")
        if required
        else table.optional(key, reader.text, None)
    )
    if name is not None and name not in fields and columns.complete:
        table.mistake(key, f"there is no field {name!r}", reader.suggestion(name, fields, ""))
    return name
