"""The statements of one load, and what it means when one of them fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from streamproc.sinks import redshift_statements as sql
from streamproc.sinks.redshift_objects import SchemaGroup
from streamproc.sinks.redshift_session import BatchFailed

#: A temporary table, gone before the next group needs it.
_STAGE = "streamproc_stage"


@dataclass(frozen=True, slots=True)
class LoadBatch:
    """One transaction. ``refusing``: the statements that fail when an object is loaded already. ``loading``: by
    its place, each statement that fails when there is something wrong with a group's objects.
    """

    statements: list[str]
    refusing: range
    loading: Mapping[int, SchemaGroup]

    def refuses(self, error: BatchFailed) -> bool:
        """Whether an object was loaded by somebody else."""
        return error.divided_by_zero and error.index in self.refusing

    def blames(self, error: BatchFailed) -> SchemaGroup | None:
        """The group with an object that cannot be loaded, if that is what happened."""
        if error.index is None or error.of_the_way or error.in_the_way:
            return None
        return self.loading.get(error.index)


def load_batch(
    stream: str,
    iam_role: str,
    groups: Sequence[SchemaGroup],
    manifests: Sequence[str],
    *,
    types: Mapping[str, str],
    parts: Mapping[str, int],
) -> LoadBatch:
    """Lock, refuse, COPY each group by its manifest's URL and count, note the objects.

    ``types``: those of the table's columns. ``parts``: of objects whose rows take the place of others, by key, how many
    rows those are: they are deleted first.
    """
    plans = [each.plan for group in groups for each in group.objects]
    refusing = list(sql.refuse(stream, [plan.key for plan in plans]))
    statements = [sql.LOCK, *refusing]
    statements += sql.delete_places(stream, [plan for plan in plans if plan.key in parts])
    loading: dict[int, SchemaGroup] = {}
    for group, url in zip(groups, manifests, strict=True):
        copying = _copying(stream, iam_role, group, url, types)
        loading |= {len(statements) + offset: group for offset in range(len(copying))}
        statements += copying
    statements += sql.record(stream, {plan.key: plan.rows - parts.get(plan.key, 0) for plan in plans})
    return LoadBatch(statements, range(1, 1 + len(refusing)), loading)


def _copying(stream: str, iam_role: str, group: SchemaGroup, url: str, types: Mapping[str, str]) -> list[str]:
    """COPY straight into the table, or by way of a stage where texts are to be parsed as JSON."""
    columns = group.columns
    nested = {name for name, dtype in columns.items() if dtype.is_nested()}
    parsed = frozenset(name for name in columns if types[name] == "super" and name not in nested)
    target = sql.identifier(_STAGE) if parsed else sql.table(stream)
    copying = [
        sql.copy(target, columns, url, iam_role, nested=bool(nested)),
        sql.check_copied(group.rows),
    ]
    if not parsed:
        return copying
    staged = {name: sql.TEXT if name in parsed else types[name] for name in columns}
    return [
        sql.create_stage(_STAGE, staged),
        *copying,
        sql.insert_parsed(stream, _STAGE, columns, parsed),
        sql.drop_stage(_STAGE),
    ]
