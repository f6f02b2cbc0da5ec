"""Small streams of events, tables over them, and ways to cut a stream up."""

from __future__ import annotations

import polars as pl
from hypothesis import strategies as st

from streamproc.topology import MINUTE, SECOND, Measure, Table, Window

START = 1_760_000_400 * SECOND  # on a full minute

SCHEMA = {
    "event_time": pl.Datetime("us", "UTC"),
    "position": pl.Int64(),
    "watermark": pl.Datetime("us", "UTC"),
    "visitor": pl.String(),
    "site": pl.String(),
    "kind": pl.String(),
    "page": pl.String(),
    "amount": pl.Float64(),
    "units": pl.Int64(),
    "bot": pl.Boolean(),
}

MEASURES = (
    Measure("events", "count", pl.Int64()),
    Measure("views", "count", pl.Int64(), where="kind = 'view'"),
    Measure("revenue", "sum", pl.Float64(), "amount", where="kind = 'buy'"),
    Measure("units", "sum", pl.Int64(), "units"),
    Measure("least", "min", pl.Float64(), "amount"),
    Measure("most", "max", pl.Int64(), "units", where="amount > 2"),
    Measure("mean", "avg", pl.Float64(), "amount"),
    Measure("landing", "first", pl.String(), "page", where="kind = 'view'"),
    Measure("leaving", "last", pl.String(), "page"),
    Measure("automatic", "first", pl.Boolean(), "bot"),
    Measure("visitors", "approx_distinct", pl.Int64(), "visitor"),
    Measure("pages", "distinct", pl.Int64(), "page"),
    Measure("amounts", "approx_percentile", pl.Float64(), "amount", at=0.5, precision=200),
)
FUNNEL = Measure(
    "shop",
    "funnel",
    pl.Int32(),
    steps=(("seen", "kind = 'view'"), ("chosen", "kind in ('cart', 'buy')"), ("bought", "kind = 'buy'")),
)


def tumbling(measures=MEASURES, **settings):
    return Table(
        "per_minute", Window("tumbling", size=MINUTE), ("site",), (pl.String(),), tuple(measures), **settings
    )


def hopping(measures=MEASURES, *, size=5 * MINUTE, hop=2 * MINUTE, **settings):
    window = Window("hopping", size=size, hop=hop)
    return Table("hops", window, ("site", "kind"), (pl.String(), pl.String()), tuple(measures), **settings)


def visits(measures=(*MEASURES, FUNNEL), *, gap=2 * MINUTE, cap=10_000 * MINUTE, **settings):
    return Table(
        "visits", Window("session", key="visitor", gap=gap, cap=cap), (), (), tuple(measures), **settings
    )


def frame(events):
    rows = [{**e, "event_time": e["at"], "watermark": e["watermark"]} for e in events]
    integers = SCHEMA | {"event_time": pl.Int64(), "watermark": pl.Int64()}
    return pl.DataFrame([{name: row[name] for name in SCHEMA} for row in rows], schema=integers).cast(SCHEMA)


def _event(at, visitor, site, kind, page, number):
    return {
        "at": START + at,
        "visitor": visitor,
        "site": site,
        "kind": kind,
        "page": page,
        "amount": None if number is None else number / 4,
        "units": number,
        "bot": None if number is None else number % 2 == 0,
        "watermark": None,
    }


#: Times meet often, and lie on, before and after the edges of windows and gaps.
times = st.one_of(
    st.integers(0, 20).map(lambda n: n * MINUTE // 2),
    st.builds(lambda n, d: n * MINUTE + d, st.integers(1, 20), st.sampled_from([-1, 1])),
)
_few = st.builds(
    _event,
    times,
    st.sampled_from(["a", "b", "c", None]),
    st.sampled_from(["x", "y", None]),
    st.sampled_from(["view", "view", "cart", "buy", "click"]),
    st.sampled_from(["/", "/a", "/b", None]),
    st.one_of(st.none(), st.integers(0, 20)),
)


@st.composite
def streams(draw, *, most=40):
    """Events of two partitions: a position is unique within its partition only."""
    drawn = draw(st.lists(_few, max_size=most))
    return [
        {**event, "position": index // 2, "partition": index % 2, "serial": index}
        for index, event in enumerate(drawn)
    ]


@st.composite
def cut(draw, events, *, shuffle=True):
    """The events as epochs of batches, in any order."""
    events = draw(st.permutations(events)) if shuffle else list(events)
    epochs = []
    while events:
        size = draw(st.integers(1, len(events)))
        epoch, events = events[:size], events[size:]
        batches = []
        while epoch:
            size = draw(st.integers(1, len(epoch)))
            batches.append(epoch[:size])
            epoch = epoch[size:]
        epochs.append(batches)
    return epochs


def sealed(fold, batches):
    """One epoch folded, and its number of late events."""
    partials, late = [], 0
    for batch in batches:
        partial, missed = fold.partial(frame(batch))
        partials.append(partial)
        late += missed
    half = len(partials) // 2
    if half:  # some merged before the others, as under memory pressure
        partials = [fold.merge(partials[:half]), *partials[half:]]
    return fold.seal(fold.merge(partials)), late


def event(at, **columns):
    """One event ``at`` microseconds after START, as plain as can be but for ``columns``."""
    given = {
        "visitor": "a",
        "site": "x",
        "kind": "view",
        "page": "/",
        "amount": None,
        "units": None,
        "bot": None,
    }
    return {**given, "at": START + at, "position": at, "watermark": None, **columns}
