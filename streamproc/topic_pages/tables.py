"""``[tables.*]``: windows, keys, measures and derived columns."""

from __future__ import annotations

import polars as pl

from streamproc.quantities import Invalid
from streamproc.topic_pages import names, reader
from streamproc.topic_pages.columns import Columns, can_be_stored, named
from streamproc.topic_pages.divisors import unsafe_divisor
from streamproc.topic_pages.measures import finished_columns, read_measure, stored_columns
from streamproc.topic_pages.reader import Reader
from streamproc.topology import DAY, MINUTE, SECOND, Derived, FieldType, Measure, Table, Window

#: An event is folded into ``size / hop`` windows: a day of minutes is the most anyone should pay for.
MOST_OVERLAPPING = 1_440

#: A table's rows are told apart by an index, which begins with the window's start. PostgreSQL's have 32 columns
#: (INDEX_MAX_KEYS).
MOST_KEYS = 31

_FOREVER = 100 * 365 * DAY

_WINDOW_KEYS = {
    "tumbling": ("size",),
    "hopping": ("size", "hop"),
    "session": ("key", "gap", "cap"),
}


def read_tables(page: Reader, columns: Columns) -> tuple[Table, ...]:
    """``[tables]``: one summary table per name."""
    found = []
    section = page.table("tables")
    for name, table in section.tables():
        try:
            names.identifier("table", longest=names.LONGEST_TABLE)(name)
        except Invalid as error:
            table.mistake("", error.problem, error.fix)
        found.append(_read_table(name, table, columns))
    return tuple(found)


def _read_table(name: str, table: Reader, columns: Columns) -> Table:
    window = _read_window(table, columns)
    by = _read_by(table, columns, window)
    lateness = table.optional("lateness", reader.duration(0, 30 * DAY), 10 * MINUTE)
    retention = table.optional("retention", reader.duration_or_forever(MINUTE, _FOREVER), None)
    if retention is not None and retention < lateness + max(window.size, window.cap if window.key else 0):
        fix = "Keep rows at least as long as the window and its lateness, or they go while they still change"
        table.mistake("retention", "is shorter than the window and its lateness together", fix)
    bounds = names.SESSION_COLUMNS if window.kind == "session" else names.WINDOW_COLUMNS
    keys = dict.fromkeys(bounds, pl.Datetime("us", "UTC")) | by
    measures, complete = _read_measures(table, columns, window.kind, keys)
    finished = Columns(dict(keys), complete and columns.complete)
    for measure in measures:
        finished.types |= finished_columns(measure)
    built = Table(
        name=name,
        window=window,
        by=() if window.kind == "session" else tuple(by),
        by_types=tuple(by.values()),
        measures=measures,
        derived=_read_derived(table, finished),
        where=columns.condition(table, "where"),
        lateness=lateness,
        retention=retention,
        comment=table.optional("comment", reader.text, ""),
    )
    table.finish()
    return built


def _read_window(table: Reader, columns: Columns) -> Window:
    if "window" not in table:
        table.mistake("window", "is missing", 'Write window = { kind = "tumbling", size = "1m" }')
    sub = table.table("window")
    kinds = reader.one_of(_WINDOW_KEYS, "kind of window")
    kind = (
        sub.required("kind", kinds, f"Write kind = one of {', '.join(_WINDOW_KEYS)}")
        if "window" in table
        else None
    )
    if kind is None:
        return Window("")
    bounds = reader.duration(SECOND, 366 * DAY)
    window = Window(kind)
    if kind == "session":
        key = sub.required("key", reader.text, 'Name the column whose sessions these are: key = "visitor_id"')
        window = Window(
            kind,
            key=key or "",
            gap=sub.optional("gap", bounds, 30 * MINUTE),
            cap=sub.optional("cap", bounds, DAY),
        )
        _check_key(sub, "key", columns, key)
        if key == names.SESSION_NUMBER:
            sub.mistake("key", f"is {key!r}, a column every session table has", "Give the field another name")
        if window.gap > window.cap:
            sub.mistake("gap", "is longer than cap, the longest session", "Shorten gap or raise cap")
    else:
        size = sub.required("size", bounds, 'Write size = "1m"') or 0
        hop = (sub.required("hop", bounds, 'Write hop = "1m"') or 0) if kind == "hopping" else 0
        window = Window(kind, size=size, hop=hop)
        if size and hop:
            _check_hop(sub, size, hop)
    for key in sub.raw:
        if key not in ("kind", *_WINDOW_KEYS[kind]) and key in {
            k for keys in _WINDOW_KEYS.values() for k in keys
        }:
            sub.mistake(key, f"has no meaning for a {kind} window", f"It has {', '.join(_WINDOW_KEYS[kind])}")
    sub.finish(allowed_elsewhere=[key for keys in _WINDOW_KEYS.values() for key in keys])
    return window


def _check_hop(window: Reader, size: int, hop: int) -> None:
    if size % hop or size == hop:
        window.mistake(
            "hop", "does not divide size into two or more", 'Choose them like size = "5m" and hop = "1m"'
        )
    elif size // hop > MOST_OVERLAPPING:
        problem = f"puts each event into {size // hop:,} windows"
        window.mistake("hop", problem, f"Raise hop: at most {MOST_OVERLAPPING:,} windows may overlap")


def _check_key(table: Reader, key: str, columns: Columns, column: str | None) -> None:
    dtype = columns.known(table, key, column)
    if dtype is not None and dtype.is_float():
        table.mistake(
            key,
            f"{column!r} is {named(dtype)}; rounding would split its rows",
            "Group by text, integers, dates",
        )


def _read_by(table: Reader, columns: Columns, window: Window) -> dict[str, pl.DataType]:
    """The key columns beside the window's, with their types; a session's is its key."""
    by = table.optional("by", reader.texts, ())
    if window.kind == "session":
        if by:
            table.mistake(
                "by", "has no meaning for sessions, whose key is window.key", 'Use measures of kind "first"'
            )
        by = (window.key,) if window.key else ()
    for index, column in enumerate(by):
        if window.kind != "session":
            _check_key(table, "by", columns, column)
        if column in by[:index]:
            table.mistake("by", f"names {column!r} twice", "Remove one")
        if column in names.TABLE_COLUMNS:
            table.mistake("by", f"names {column!r}, which every table has", "Remove it")
    if len(by) > MOST_KEYS:
        problem = f"names {len(by)} columns, and PostgreSQL tells rows apart by {MOST_KEYS} beside the window"
        table.mistake("by", problem, "Make two tables of it, or a column of several in [derive]")
    return {column: columns.types[column] for column in by if column in columns.types}


def _read_measures(
    table: Reader, columns: Columns, window: str, keys: dict[str, pl.DataType]
) -> tuple[tuple[Measure, ...], bool]:
    """The measures that are right, and whether those are all."""
    if "measures" not in table:
        table.mistake("measures", "is missing", 'Write at least measures.events = { kind = "count" }')
    found: list[Measure] = []
    complete = True
    taken = {*keys, names.SESSION_NUMBER} if window == "session" else set(keys)
    for name, sub in table.table("measures").tables():
        measure = read_measure(name, sub, columns, window)
        added = [name] if measure is None else stored_columns(measure)
        complete &= _check_columns(sub, name, added, taken) and measure is not None
        taken.update(added)
        if measure is not None:
            found.append(measure)
    if "measures" in table and not found and complete:
        table.mistake("measures", "is empty", 'Write at least measures.events = { kind = "count" }')
    return tuple(found), complete


def _read_derived(table: Reader, finished: Columns) -> tuple[Derived, ...]:
    """``derived.*``: columns over the finished row; PostgreSQL lets one use no other derived one."""
    found: list[Derived] = []
    taken = set(finished.types)
    for name, sub in table.table("derived").tables():
        _check_columns(sub, name, [name], taken)
        taken.add(name)
        sql = sub.required("sql", reader.text, 'Write sql = "pages = 1"')
        comment = sub.optional("comment", reader.text, "")
        dtype = finished.expression(sub, "sql", sql)
        kept = dtype if dtype is not None and can_be_stored(sub, "sql", dtype) else None
        _check_type(sub, kept)
        sub.finish()
        if sql is not None and kept is not None:
            _check_divisors(sub, sql)
            found.append(Derived(name, sql, kept, comment))
    return tuple(found)


def _check_divisors(derived: Reader, sql: str) -> None:
    if (divisor := unsafe_divisor(sql)) is not None:
        problem = f"divides by {divisor}, which may be zero: PostgreSQL would raise, and no commit succeed"
        derived.mistake("sql", problem, f"Divide by nullif({divisor}, 0): null is what it then gives")


def _check_type(derived: Reader, kept: pl.DataType | None) -> None:
    words = {kind.value: kind.polars for kind in FieldType if kind is not FieldType.JSON}
    given = derived.optional("type", reader.one_of(words, "type"), None)
    if given is not None and kept is not None and kept != words[given]:
        derived.mistake(
            "type", f"is {given}, but the expression gives {named(kept)}", "Correct it, or leave it out"
        )


def _check_columns(table: Reader, name: str, added: list[str], taken: set[str]) -> bool:
    """Whether the table can have the columns that ``name`` adds to it."""
    try:
        names.identifier("column", names.TABLE_COLUMNS)(name)
        if "__" in name:
            raise Invalid(
                f"{name!r} has a double underscore, which marks unfinished state", "Use a single one"
            )
        for column in added:
            if column in taken:
                raise Invalid(f"the table has a column {column!r} already", "Choose another name")
        longest = max(added, key=len)
        if (excess := len(longest) - names.LONGEST_NAME) > 0:
            problem = f"its column {longest!r} is longer than {names.LONGEST_NAME} characters"
            raise Invalid(problem, f"Shorten the name by {excess}")
    except Invalid as error:
        table.mistake("", error.problem, error.fix)
        return False
    return True
