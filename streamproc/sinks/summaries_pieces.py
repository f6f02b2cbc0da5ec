"""The SQL that merges the pieces of a delta into a session table.

The state has the sessions of a key side by side. Column ``n`` is 0 in the row of the newest, which is the one that
pieces continue and the one that is locked for all of the key; the others are told apart by their start, see
:func:`numbered_by_start`. So a visitor who comes back costs one update and one row.

What a key's first piece is to its newest session decides how all pieces of the key are merged
(``__how`` of the known rows):

========= ============================================================================================
continues it is the only piece, and the session goes on with it
ends      the session goes on with it and ends there, for the pieces behind it are sessions of their own
after     it and all behind it are sessions of their own
apart     none of these: events out of order, the cap, sketches; :meth:`SessionFold.stitch` has to look
========= ============================================================================================
"""

from __future__ import annotations

import polars as pl
from psycopg import sql

from streamproc.sinks.summaries_known import update_both
from streamproc.sinks.summaries_layout import Column, Layout, published, readable
from streamproc.sinks.summaries_stage import FIRST, LAST, ROW
from streamproc.sinks.summaries_statements import assigned, finished, merged, shown, write_public
from streamproc.tables.funnels import MAX_STEP_EVENTS_BYTES
from streamproc.tables.measures import funnel_columns, state_columns
from streamproc.topology import Measure

_COMMA = sql.SQL(", ")


def numbered_by_start(start: sql.Composable) -> sql.Composed:
    """SQL: ``n`` of a session that is not the newest: its start, but never 0."""
    return sql.SQL("{0} + ({0} >= 0)::int").format(start)


def lock_newest(layout: Layout, staged: sql.Identifier, known: sql.Identifier) -> sql.Composed:
    """Lock the newest session of each staged key that has one, and say in ``known`` how it is merged."""
    key = layout.by[0]
    steps = [Column(f"{m.name}__steps", pl.Binary()) for m in layout.table.measures if m.kind == "funnel"]
    return sql.SQL(
        "INSERT INTO {known} SELECT excluded.{row}, t.__at, t.__how "
        "FROM (SELECT {wanted_columns} FROM {staged} WHERE {first} = {row} ORDER BY {row} OFFSET 0) excluded "
        "CROSS JOIN LATERAL (SELECT ctid AS __at, CASE "
        "WHEN {joins} AND excluded.{last} THEN 'continues' "
        "WHEN {joins} AND excluded.session_end >= t.session_end THEN 'ends' "
        "WHEN excluded.session_start > t.session_end + {gap} THEN 'after' ELSE 'apart' END AS __how "
        "FROM {state} t WHERE {stored} = {wanted} AND t.n = 0 FOR UPDATE) t"
    ).format(
        known=known,
        row=ROW.id,
        wanted_columns=_COMMA.join(column.id for column in [ROW, LAST, *layout.by, *layout.span, *steps]),
        staged=staged,
        first=FIRST.id,
        last=LAST.id,
        joins=_joins(layout),
        gap=sql.Literal(layout.table.window.gap),
        state=layout.state,
        stored=layout.indexed(key, "t"),
        wanted=layout.indexed(key, "excluded"),
    )


def insert_newest(layout: Layout, staged: sql.Identifier, known: sql.Identifier) -> sql.Composed:
    """Put the last pieces of unknown keys into the state. One without a span is its key only, as a lock."""
    return _insert_last(layout, staged, known, sql.SQL("k.{} IS NULL").format(ROW.id))


def insert_next(layout: Layout, staged: sql.Identifier, known: sql.Identifier) -> sql.Composed:
    """Put the last pieces of the keys whose newest session has ended into the state."""
    return _insert_last(layout, staged, known, sql.SQL("k.__how IN ('after', 'ends')"))


def _insert_last(
    layout: Layout, staged: sql.Identifier, known: sql.Identifier, condition: sql.Composable
) -> sql.Composed:
    return sql.SQL(
        "INSERT INTO {state} ({names}, n) SELECT {names}, 0 FROM {staged} d LEFT JOIN {known} k ON k.{row} = d.{first} "
        "WHERE d.{last} AND {condition} ORDER BY d.{row}"
    ).format(
        state=layout.state,
        names=_names(layout),
        staged=staged,
        known=known,
        row=ROW.id,
        first=FIRST.id,
        last=LAST.id,
        condition=condition,
    )


def insert_older(
    layout: Layout, staged: sql.Identifier, known: sql.Identifier, *, replacing: bool = False
) -> sql.Composed:
    """Put the other pieces that are sessions of their own into the state."""
    conflict = sql.SQL("ON CONFLICT ({}) DO UPDATE SET {}").format(
        layout.conflict(state=True),
        _replaced(layout),
    )
    return sql.SQL(
        "INSERT INTO {state} ({names}, n) SELECT {names}, {number} FROM {new} WHERE NOT d.{last} "
        "ORDER BY d.{row} {conflict}"
    ).format(
        state=layout.state,
        names=_names(layout),
        number=numbered_by_start(sql.Identifier("d", "session_start")),
        new=_new(staged, known),
        last=LAST.id,
        row=ROW.id,
        conflict=conflict if replacing else sql.SQL(""),
    )


def insert_public(
    layout: Layout, staged: sql.Identifier, known: sql.Identifier, *, replacing: bool = False
) -> sql.Composed:
    """Put the pieces that are sessions of their own into the public table."""
    spanning = sql.SQL("WHERE d.session_start IS NOT NULL")
    if replacing:
        return write_public(layout, source=_new(staged, known), where=spanning)
    # They are staged by their key, but indexed by their start: appending there is cheaper than looking around.
    return sql.SQL(
        "INSERT INTO {public} ({names}) SELECT {values} FROM {new} {spanning} ORDER BY d.session_start"
    ).format(
        public=layout.public,
        names=_COMMA.join(sql.Identifier(name) for name, _ in finished(layout)),
        values=_COMMA.join(value for _, value in finished(layout)),
        new=_new(staged, known),
        spanning=spanning,
    )


def _new(staged: sql.Identifier, known: sql.Identifier) -> sql.Composed:
    """SQL: the staged pieces that are sessions of their own (and the locks of unknown keys), to stand behind FROM."""
    return sql.SQL(
        "(SELECT s.* FROM {staged} s LEFT JOIN {known} k ON k.{row} = s.{first} "
        "WHERE k.{row} IS NULL OR k.__how = 'after' OR (k.__how = 'ends' AND s.{row} <> s.{first})) d"
    ).format(staged=staged, known=known, row=ROW.id, first=FIRST.id)


def continue_newest(layout: Layout, staged: sql.Identifier, known: sql.Identifier) -> sql.Composed:
    """Merge the pieces that continue the newest session of their key; one that ends with its piece gets its number."""
    number = sql.SQL("CASE excluded.__how WHEN 'ends' THEN {} ELSE t.n END").format(
        numbered_by_start(sql.Identifier("t", "session_start"))
    )
    pieces = sql.SQL(
        "(SELECT d.*, k.__at, k.__how FROM {staged} d JOIN {known} k USING ({row}) "
        "WHERE k.__how IN ('continues', 'ends')) AS excluded"
    ).format(staged=staged, known=known, row=ROW.id)
    return update_both(layout, pieces, [*_merges(layout), ("n", number)])


def number_ended(layout: Layout, known: sql.Identifier) -> sql.Composed:
    """Give their numbers to the newest sessions that have ended before this delta."""
    return sql.SQL(
        "UPDATE {state} t SET n = {number} FROM {known} k WHERE t.ctid = k.__at AND k.__how = 'after'"
    ).format(state=layout.state, number=numbered_by_start(sql.Identifier("t", "session_start")), known=known)


def rows_apart(known: sql.Identifier) -> sql.Composed:
    """The first pieces of the keys whose pieces have not been merged."""
    return sql.SQL("SELECT {} FROM {} WHERE __how = 'apart'").format(ROW.id, known)


def stored_sessions(layout: Layout, stage: sql.Identifier) -> sql.Composed:
    """The sessions of the staged keys that pieces between the staged times can join, the newest of each key, and their
    number ``n``.
    """
    key = layout.by[0]
    return sql.SQL(
        "SELECT {columns}, s.n FROM {stage} k CROSS JOIN LATERAL (SELECT * FROM {state} s "
        "WHERE {stored} = {wanted} AND s.session_start IS NOT NULL AND (s.n = 0 "
        "OR s.session_end >= k.session_start - {gap} AND s.session_start <= k.session_end + {gap}) "
        "OFFSET 0) s"  # OFFSET: look up, never scan
    ).format(
        gap=sql.Literal(layout.table.window.gap),
        columns=_COMMA.join(sql.Identifier("s", column.name) for column in layout.staged),
        stage=stage,
        state=layout.state,
        stored=layout.indexed(key, "s"),
        wanted=layout.indexed(key, "k"),
    )


def number_stored(layout: Layout, stage: sql.Identifier) -> sql.Composed:
    """Give their new numbers to those of the staged sessions that are there: a session keeps its row, as when it ends,
    because this page may not know all columns of it.
    """
    key = layout.by[0]
    return sql.SQL(
        "UPDATE {state} t SET n = s.n FROM (SELECT d.n, s.__at FROM {stage} d CROSS JOIN LATERAL "
        "(SELECT ctid AS __at FROM {state} s WHERE {stored} = {wanted} AND s.session_start = d.session_start "
        "AND s.n <> d.n OFFSET 0) s) s WHERE t.ctid = s.__at"
    ).format(
        state=layout.state, stage=stage, stored=layout.indexed(key, "s"), wanted=layout.indexed(key, "d")
    )


def replace_sessions(layout: Layout, stage: sql.Identifier) -> sql.Composed:
    """Put the staged sessions, which have their numbers ``n``, in the place of what is there."""
    state = sql.SQL(
        "INSERT INTO {state} AS t ({names}, n) SELECT {names}, n FROM {stage} ORDER BY {conflict} "
        "ON CONFLICT ({conflict}) DO UPDATE SET {replaced} RETURNING t.*"
    ).format(
        state=layout.state,
        names=_names(layout),
        stage=stage,
        conflict=layout.conflict(state=True),
        replaced=_replaced(layout),
    )
    return sql.SQL("WITH merged AS ({}) {}").format(state, write_public(layout))


def public_sessions(layout: Layout, stage: sql.Identifier) -> sql.Composed:
    """The public rows of the staged keys' sessions that may still change, times as integers."""
    key = layout.by[0]
    return sql.SQL(
        "SELECT {columns} FROM (SELECT DISTINCT {key} FROM {stage}) k CROSS JOIN LATERAL "
        "(SELECT session_start FROM {state} s WHERE {stored} = {wanted} OFFSET 0) s CROSS JOIN LATERAL "
        "(SELECT {shown} FROM {public} p WHERE p.session_start = {start} AND {mine} = {published} OFFSET 0) p"
    ).format(
        columns=_COMMA.join(readable(column, "p") for column in layout.columns),
        shown=shown(layout),
        key=key.id,
        stage=stage,
        state=layout.state,
        public=layout.public,
        start=published(layout.span[0], sql.Identifier("s", "session_start")),
        stored=layout.indexed(key, "s"),
        wanted=layout.indexed(key, "k"),
        mine=layout.indexed(key, "p"),
        published=published(key, layout.indexed(key, "k")),
    )


def _replaced(layout: Layout) -> sql.Composed:
    """SQL: everything but the key as it is in the row that was to be put in, to stand behind SET."""
    return assigned((column.name, sql.SQL("excluded.{}").format(column.id)) for column in layout.staged[1:])


def _names(layout: Layout) -> sql.Composed:
    return _COMMA.join(column.id for column in layout.staged)


def _joins(layout: Layout) -> sql.Composable:
    """SQL: whether a piece (``excluded``) continues the session ``t`` and can be merged here."""
    if layout.sketches:
        return sql.SQL("false")  # they are merged outside the server
    window = layout.table.window
    joins: sql.Composable = sql.SQL(
        "excluded.session_start >= t.session_start AND excluded.session_start <= t.session_end + {gap} "
        "AND greatest(t.session_end, excluded.session_end) - t.session_start < {cap}"
    ).format(gap=sql.Literal(window.gap), cap=sql.Literal(window.cap))
    for measure in layout.table.measures:
        if measure.kind == "funnel":
            joins = sql.SQL("{} AND {}").format(joins, _funnel_follows(measure))
    return joins


def _merges(layout: Layout) -> list[tuple[str, sql.Composable]]:
    """The columns that change of a session ``t`` which a piece (``excluded``) continues, and their values."""
    end = sql.SQL("greatest(t.session_end, excluded.session_end)")
    values: list[tuple[str, sql.Composable]] = [("session_end", end)]
    for measure in layout.table.measures:
        if measure.kind == "funnel":
            values += _funnel_merges(measure)
        else:
            values += [(column.name, merged(column, session=True)) for column in state_columns(measure)]
    return values


def _funnel_follows(measure: Measure) -> sql.Composed:
    """Whether the staged piece of a funnel comes after everything in the row, and fits into it."""
    return sql.SQL(
        "excluded.session_start > t.session_end AND "
        "coalesce(octet_length(t.{0}), 0) + coalesce(octet_length(excluded.{0}), 0) <= {1}"
    ).format(sql.Identifier(f"{measure.name}__steps"), sql.Literal(MAX_STEP_EVENTS_BYTES))


def _funnel_merges(measure: Measure) -> list[tuple[str, sql.Composable]]:
    """Go on from the step the row has reached (``onward``), or start with the piece where it has none."""
    step = f"{measure.name}_step"
    count = len(measure.steps)
    onward = [
        sql.SQL("excluded.{}[(t.{} - 1) * {} + {}]").format(
            sql.Identifier(f"{measure.name}__onward"),
            sql.Identifier(step),
            sql.Literal(count),
            sql.Literal(number),
        )
        for number in range(1, count + 1)
    ]
    reached = sql.SQL(
        "CASE WHEN coalesce(t.{0}, 0) = 0 THEN excluded.{0} ELSE t.{0} + num_nonnulls({1}) END"
    ).format(sql.Identifier(step), _COMMA.join(onward))
    moved = [
        (
            name,
            sql.SQL(
                "CASE WHEN coalesce(t.{1}, 0) = 0 THEN excluded.{0} ELSE coalesce(t.{0}, {2}) END"
            ).format(sql.Identifier(name), sql.Identifier(step), next_),
        )
        for (name, _), next_ in zip(funnel_columns(measure)[1:], onward, strict=True)
    ]
    steps = f"{measure.name}__steps"
    all_steps = sql.SQL("nullif(concat(t.{0}, excluded.{0}), '')").format(sql.Identifier(steps))
    return [(step, reached), *moved, (steps, all_steps)]
