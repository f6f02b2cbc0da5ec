"""Tables worked out the slow way: dicts, loops and sorting, one event at a time.

Shares nothing with streamproc but the declaration of a table. Events are dicts with ``at`` (microseconds),
``position``, ``watermark`` (microseconds or None) and their columns.
"""

from __future__ import annotations

import math
from collections import defaultdict
from datetime import UTC, datetime, timedelta

#: What the SQL conditions used in the tests mean.
CONDITIONS = {
    None: lambda e: True,
    "kind = 'view'": lambda e: e["kind"] == "view",
    "kind = 'cart'": lambda e: e["kind"] == "cart",
    "kind = 'buy'": lambda e: e["kind"] == "buy",
    "kind in ('cart', 'buy')": lambda e: e["kind"] in ("cart", "buy"),
    "amount > 2": lambda e: e["amount"] is not None and e["amount"] > 2,
}

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def moment(us):
    return None if us is None else EPOCH + timedelta(microseconds=us)


def windowed(table, events):
    """``{(start, *by): {column: value}}`` and the number of late events."""
    size = table.window.size
    hop = table.window.hop or size
    groups = defaultdict(list)
    late = 0
    for event in events:
        if not CONDITIONS[table.where](event):
            continue
        starts = []
        start = event["at"] // hop * hop
        while start + size > event["at"]:
            starts.append(start)
            start -= hop
        still_open = [
            s for s in starts if event["watermark"] is None or s + size + table.lateness > event["watermark"]
        ]
        late += not still_open
        for start in still_open:
            groups[(moment(start), *(event[name] for name in table.by))].append(event)
    rows = {}
    for key, members in groups.items():
        rows[key] = {"window_end": key[0] + timedelta(microseconds=size), **measured(table, members)}
    return rows, late


def sessions(table, events):
    """``{(start, key): {column: value}}`` and the number of late events."""
    window = table.window
    by_key = defaultdict(list)
    late = 0
    for event in events:
        if not CONDITIONS[table.where](event) or event[window.key] is None:
            continue
        if event["watermark"] is not None and event["at"] + window.gap + table.lateness <= event["watermark"]:
            late += 1
        else:
            by_key[event[window.key]].append(event)
    rows = {}
    for key, mine in by_key.items():
        runs = []
        for event in sorted(mine, key=lambda e: (e["at"], e["position"])):
            if (
                not runs
                or event["at"] - runs[-1][-1]["at"] > window.gap
                or event["at"] - runs[-1][0]["at"] >= window.cap
            ):
                runs.append([])
            runs[-1].append(event)
        for run in runs:
            rows[moment(run[0]["at"]), key] = {
                "session_end": moment(run[-1]["at"]),
                **measured(table, run),
            }
    return rows, late


def measured(table, events):
    row = {}
    for measure in table.measures:
        if measure.kind == "funnel":
            row |= funnel(measure, events)
            continue
        chosen = [e for e in events if CONDITIONS[measure.where](e)]
        if measure.column is None:
            row[measure.name] = len(chosen)
            continue
        chosen = [e for e in chosen if e[measure.column] is not None]
        values = [e[measure.column] for e in chosen]
        ordered = sorted(chosen, key=lambda e: (e["at"], e["position"], e[measure.column]))
        row[measure.name] = (
            {
                "sum": sum,
                "min": min,
                "max": max,
                "avg": lambda v: sum(v) / len(v),
                "first": lambda v, o=ordered, c=measure.column: o[0][c],
                "last": lambda v, o=ordered, c=measure.column: o[-1][c],
                "distinct": lambda v: len(set(v)),
                "approx_distinct": lambda v: len(set(v)),
                "approx_percentile": lambda v, at=measure.at: sorted(v)[max(math.ceil(at * len(v)), 1) - 1],
            }[measure.kind](values)
            if values
            else None
        )
    return row


def funnel(measure, events):
    reached, last = [], None
    for event in sorted(events, key=lambda e: (e["at"], e["position"])):
        order = (event["at"], event["position"])  # shared by events of two partitions at most
        if order == last or len(reached) == len(measure.steps):
            continue
        if CONDITIONS[measure.steps[len(reached)][1]](event):
            reached.append(event["at"])
            last = order
    names = [f"{measure.name}_{step}_at" for step, _ in measure.steps]
    times = [moment(at) for at in reached] + [None] * (len(names) - len(reached))
    return {f"{measure.name}_step": len(reached), **dict(zip(names, times, strict=True))}
