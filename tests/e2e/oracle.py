"""What the shipped clickstream page must have computed, worked out a second time.

Shares no code with the service: records are read by a plain consumer and judged with ``json``; tables
are recomputed by DuckDB from the lake's Parquet (and funnels in plain Python).
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import duckdb

STREAM_SQL = """
create or replace view lake as
    select * from read_parquet($files, union_by_name = true);
create or replace table e as
    select *,
        max(event_time) over (
            partition by source_partition order by position
            rows between unbounded preceding and 1 preceding) - interval 30 second as wm
    from lake;
"""

PAGE_VIEWS = """
select time_bucket(interval 1 minute, event_time) as w, host, path, count(*) as views,
    count(distinct visitor_id) as visitors
from e where event_type = 'page_view'
    and not coalesce(time_bucket(interval 1 minute, event_time) + interval 1 minute + interval 10 minute <= wm, false)
group by all
"""

SITE_ACTIVITY = """
with hops as (
    select *, time_bucket(interval 1 minute, event_time) - to_minutes(h) as w
    from e, (select unnest([0, 1, 2, 3, 4]) as h))
select w, host, count(*) as events, count(*) filter (event_type = 'page_view') as page_views,
    count(distinct visitor_id) as visitors
from hops where not coalesce(w + interval 5 minute + interval 10 minute <= wm, false)
group by all
"""

TRAFFIC_SOURCES = """
select time_bucket(interval 1 hour, event_time) as w, host, referrer_medium, referrer_source, utm_source,
    utm_medium, utm_campaign, count(*) as views, count(distinct visitor_id) as visitors
from e where event_type = 'page_view'
    and not coalesce(time_bucket(interval 1 hour, event_time) + interval 1 hour + interval 10 minute <= wm, false)
group by all
"""

AUDIENCE = """
select time_bucket(interval 1 hour, event_time) as w, country, device_class, count(*) as events,
    count(distinct visitor_id) as visitors, sum(value) filter (event_type = 'purchase') as revenue
from e
where not coalesce(time_bucket(interval 1 hour, event_time) + interval 1 hour + interval 10 minute <= wm, false)
group by all
"""

_SESSIONED = """
with live as (
    select * from e where {where}
        and not coalesce(event_time + interval 30 minute + interval 10 minute <= wm, false)),
marked as (
    select *, case when event_time - lag(event_time) over v <= interval 30 minute then 0 else 1 end as fresh
    from live window v as (partition by visitor_id order by event_time, position)),
numbered as (
    select *, sum(fresh) over (partition by visitor_id order by event_time, position) as n from marked)
"""

SESSIONS = (
    _SESSIONED.format(where="true")
    + """
select visitor_id, min(event_time) as session_start, max(event_time) as session_end, count(*) as events,
    count(*) filter (event_type = 'page_view') as pages,
    first(path order by event_time, position) filter (event_type = 'page_view' and path is not null) as landing_page,
    last(path order by event_time, position) filter (event_type = 'page_view' and path is not null) as exit_page,
    first(host order by event_time, position) filter (host is not null) as host,
    first(utm_campaign order by event_time, position) filter (utm_campaign is not null) as utm_campaign,
    first(referrer_medium order by event_time, position) filter (referrer_medium is not null) as referrer_medium,
    first(referrer_source order by event_time, position) filter (referrer_source is not null) as referrer_source,
    sum(value) filter (event_type = 'purchase') as revenue
from numbered group by visitor_id, n
"""
)

FUNNEL_EVENTS = (
    _SESSIONED.format(where="event_type in ('product_view', 'add_to_cart', 'checkout', 'purchase')")
    + """
select visitor_id, n, list({'at': event_time, 'type': event_type} order by event_time, position) as steps,
    min(event_time) as session_start
from numbered group by visitor_id, n
"""
)

FUNNEL = ("product_view", "add_to_cart", "checkout", "purchase")


@dataclass(frozen=True)
class Expected:
    """Every table of the shipped page, as sets of rows or dicts of key → row."""

    page_views: dict
    site_activity: dict
    traffic_sources: dict
    audience: dict
    sessions: dict
    funnel: dict


def connect(files: list[Path]) -> duckdb.DuckDBPyConnection:
    """A DuckDB over these Parquet objects, with the events in ``e``."""
    db = duckdb.connect()
    db.execute("set timezone = 'UTC'")
    db.execute("set enable_progress_bar = false")
    names = ", ".join("'" + str(f).replace("'", "''") + "'" for f in files)
    for statement in STREAM_SQL.replace("$files", f"[{names}]").split(";"):
        if statement.strip():
            db.execute(statement)
    return db


def _keyed(db: duckdb.DuckDBPyConnection, sql: str, keys: int) -> dict:
    rows = db.execute(sql).fetchall()
    out = {row[:keys]: row[keys:] for row in rows}
    assert len(out) == len(rows)
    return out


def expect(files: list[Path]) -> Expected:
    """Recompute every shipped table from the lake."""
    db = connect(files)
    funnel = {}
    for visitor, _, steps, start in db.execute(FUNNEL_EVENTS).fetchall():
        reached: list = []
        for step in steps:
            if len(reached) < len(FUNNEL) and step["type"] == FUNNEL[len(reached)]:
                reached.append(step["at"])
        funnel[visitor, start] = (len(steps), len(reached), *(reached + [None] * 4)[:4])
    return Expected(
        page_views=_keyed(db, PAGE_VIEWS, 3),
        site_activity=_keyed(db, SITE_ACTIVITY, 2),
        traffic_sources=_keyed(db, TRAFFIC_SOURCES, 7),
        audience=_keyed(db, AUDIENCE, 3),
        sessions=_keyed(db, SESSIONS, 2),
        funnel=funnel,
    )


REQUIRED = {"event_id": str, "event_type": str, "event_time": int, "visitor_id": str, "page_url": str}
OPTIONAL = {"session_id": str, "referrer": str, "user_agent": str, "ip": str, "value": (int, float)}
LIMITS = {
    "event_id": 64,
    "event_type": 64,
    "visitor_id": 64,
    "session_id": 64,
    "page_url": 4096,
    "referrer": 4096,
    "ip": 45,
}


def _no_repeats(pairs: list[tuple[str, object]]) -> dict:
    seen = Counter(key for key, _ in pairs)
    for key in (*REQUIRED, *OPTIONAL, "properties"):
        if seen[key] > 1 and "event_id" in seen:
            raise ValueError(f"{key} twice")
    return dict(pairs)


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _bounded(digits: str) -> int:
    """Integers that fit 128 bits; the documented limit."""
    if len(digits) > 40 or not -(2**127) <= int(digits) < 2**128:
        raise ValueError(digits)
    return int(digits)


def usable(value: bytes | None) -> dict | None:
    """The record as a dict if the shipped contract accepts it, else ``None``. Judged with ``json`` alone."""
    if not value or len(value) > 1_048_576:
        return None
    try:
        text = value.decode("utf-8")
        if text.startswith("\ufeff"):
            return None
        event = json.loads(
            text, object_pairs_hook=_no_repeats, parse_constant=_no_constant, parse_int=_bounded
        )
        json.dumps(event, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (ValueError, RecursionError):
        return None
    if type(event) is not dict:
        return None
    for name, kind in REQUIRED.items():
        if type(event.get(name)) is not kind:
            return None
    for name, kind in OPTIONAL.items():
        found = event.get(name)
        if found is not None and (type(found) is bool or not isinstance(found, kind)):
            return None
    for name, limit in LIMITS.items():
        if event.get(name) is not None and len(event[name]) > limit:
            return None
    if not 0 <= event["event_time"] <= min(253_402_300_800_000, (time.time() + 600) * 1000):
        return None
    if any("\x00" in str(event.get(name) or "") for name in (*REQUIRED, *OPTIONAL)):
        return None
    if "\\u0000" in json.dumps(event.get("properties")):
        return None
    return event
