"""Which names a page may give: columns, tables and schemas that an analyst writes without quotes."""

from __future__ import annotations

import re

from streamproc.model import SYSTEM_COLUMNS
from streamproc.quantities import Invalid, shown
from streamproc.topic_pages.reader import Parse

#: PostgreSQL cuts longer names off (NAMEDATALEN - 1).
LONGEST_NAME = 63

#: The index of a table's state has the table's name and this.
LONGEST_TABLE = LONGEST_NAME - len("__state_row")

_IDENTIFIER = re.compile(r"[a-z][a-z0-9_]*", re.ASCII)
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}", re.ASCII)

#: What PostgreSQL 18 reserves (``pg_get_keywords()``, categories R and T).
RESERVED = frozenset(
    """
    all analyse analyze and any array as asc asymmetric authorization binary both case cast check collate
    collation column concurrently constraint create cross current_catalog current_date current_role
    current_schema current_time current_timestamp current_user default deferrable desc distinct do else end
    except false fetch for foreign freeze from full grant group having ilike in initially inner intersect
    into is isnull join lateral leading left like limit localtime localtimestamp natural not notnull null
    offset on only or order outer overlaps placing primary references returning right select session_user
    similar some symmetric system_user table tablesample then to trailing true union unique user using
    variadic verbose when where window with
    """.split()  # noqa: SIM905 - a list of a hundred quoted words is no easier to read
)

#: Columns every PostgreSQL table has already.
POSTGRES_COLUMNS = frozenset({"ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"})

#: Columns every tumbling or hopping table of a page has already, and every session table beside its key.
WINDOW_COLUMNS = ("window_start", "window_end")
SESSION_COLUMNS = ("session_start", "session_end")
TABLE_COLUMNS = frozenset({*WINDOW_COLUMNS, *SESSION_COLUMNS})

#: What tells the sessions of a key apart in the state of a session table, beside its key and measures.
SESSION_NUMBER = "n"

#: Columns an event frame has, or is given on its way: no field, enrichment or derived column may take them.
EVENT_COLUMNS = frozenset({*SYSTEM_COLUMNS, "event_time", "watermark", *TABLE_COLUMNS})

#: Schemas that are not a stream's: PostgreSQL's own, the ledger's, the warehouse's.
SCHEMAS = frozenset({"public", "information_schema", "ledger", "streamproc", "warehouse"})


def identifier(what: str, taken: frozenset[str] = frozenset(), longest: int = LONGEST_NAME) -> Parse[str]:
    """A name that needs no quotes in SQL, is not reserved and not ``taken``. ``what``: for messages."""

    def parse(value: object) -> str:
        if not isinstance(value, str):
            raise Invalid(f"{shown(value)} is not text", f"Give the {what} a name in quotes")
        if len(value) > longest:
            raise Invalid(f"{shown(value)} is longer than {longest} characters", "Shorten it")
        if not _IDENTIFIER.fullmatch(value):
            problem = f"{shown(value)} is not a name SQL takes without quotes"
            raise Invalid(problem, f"Use a-z, 0-9 and _, a letter first{_snake_case(value)}")
        if value in RESERVED:
            raise Invalid(
                f"{shown(value)} is a reserved word of SQL", f'Choose another name, such as "{value}_"'
            )
        if value in taken or value in POSTGRES_COLUMNS or value.startswith("pg_"):
            raise Invalid(f"{shown(value)} is a name the system uses itself", "Choose another name")
        return value

    return parse


def _snake_case(name: str) -> str:
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+", "_", name).strip("_").lower()
    if not _IDENTIFIER.fullmatch(snake) or len(snake) > LONGEST_NAME:
        return ""
    return f': "{snake}"'


def topic_name(value: object) -> str:
    """A topic's name as Kafka takes it."""
    if not isinstance(value, str) or not _TOPIC.fullmatch(value) or value in {".", ".."}:
        raise Invalid(f"{shown(value)} is not a topic's name", "Use letters, digits, . _ and -, at most 249")
    return value
