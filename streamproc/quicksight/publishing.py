"""Makes QuickSight as the topic pages say: compare, then create or update only what differs.

Everything published carries three tags: the prefix of the settings, the stream, and the fingerprint of what was last
published in full. The fingerprint says what differs, because QuickSight answers a definition with
defaults filled in; it is set last, so what was interrupted or failed is done again. Nothing is changed or
deleted that does not carry the first two.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streamproc.errors import ConfigError, Mistake
from streamproc.quicksight.refreshing import synchronize
from streamproc.quicksight.resources import Kind, Resource
from streamproc.quicksight.service import Service, failures

_PREFIX, _STREAM, _CONTENT = "streamproc:prefix", "streamproc:stream", "streamproc:content"

#: Details of one change that are worth reading.
_DETAILS = 12


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that is not as the page says, or was put right.

    ``action``: ``create``, ``replace`` (its creation had failed), ``update``, ``share`` (permissions and tags only) or
    ``delete``. ``details``: what differs. ``obstacle``: why it cannot be done. ``ingestion``: the import that it began.
    """

    kind: Kind
    id: str
    action: str
    details: tuple[str, ...] = ()
    obstacle: str = ""
    ingestion: str | None = None

    def __str__(self) -> str:
        details = "".join(f"\n    {detail}" for detail in self.details)
        return f"{self.action} {self.kind} {self.id}{details}" + (
            f" ({self.obstacle})" if self.obstacle else ""
        )


class Publisher:
    """Publishes one stream. ``tags``: of the user's, for everything."""

    def __init__(self, service: Service, prefix: str, stream: str, tags: Mapping[str, str]) -> None:
        self._service = service
        self._base = f"{prefix}-{stream}"
        self._mark = {_PREFIX: prefix, _STREAM: stream}
        self._tags = {**tags, **self._mark}

    async def changes(self, wanted: Sequence[Resource]) -> list[Change]:
        """What differs, in the order in which it would be done; what is not wanted any more comes last."""
        found = [change for each in wanted if (change := await self._change(each)) is not None]
        ids = {(each.kind, each.id) for each in wanted}
        gone = [each for each in await self._owned() if each not in ids]
        return found + [
            Change(kind, id_, "delete", ("is not in the topic page any more",)) for kind, id_ in gone
        ]

    async def publish(self, wanted: Sequence[Resource], *, prune: bool) -> AsyncIterator[Change]:
        """Put right what differs, each change as it is done. ``prune``: delete what is not wanted any more.

        Raises :class:`ConfigError` before anything is changed when something is in the way, and
        :class:`~streamproc.errors.DependencyError` when the service refuses or fails; called again, it goes on there.
        """
        changes = await self.changes(wanted)
        fix = "Choose another quicksight.prefix, or delete it by hand"
        if obstacles := [Mistake(f"{e.kind} {e.id}", e.obstacle, fix) for e in changes if e.obstacle]:
            raise ConfigError(obstacles)
        by_id = {(each.kind, each.id): each for each in wanted}
        for change in changes:
            if change.action != "delete":
                yield await self._apply(by_id[change.kind, change.id], change)
            elif prune:
                await self._service.delete(change.kind, change.id)
                yield change

    async def remove(self) -> AsyncIterator[Change]:
        """Delete everything that was published of the stream, and nothing else."""
        for kind, id_ in await self._owned():
            await self._service.delete(kind, id_)
            yield Change(kind, id_, "delete")

    async def imported(self, change: Change) -> int:
        """Wait for the import that a change began; returns its rows."""
        assert change.ingestion is not None, "asked before"
        return await self._service.imported(change.id, change.ingestion)

    async def owned(self) -> list[Change]:
        """What :meth:`remove` would do."""
        return [Change(kind, id_, "delete") for kind, id_ in await self._owned()]

    async def _owned(self) -> list[tuple[Kind, str]]:
        """What carries this stream's tags, in order of deletion: what is built on others first."""
        return [
            (kind, id_)
            for kind in reversed(Kind)
            for id_ in await self._service.ids(kind, self._base)
            if self._is_ours(await self._service.tags(kind, id_))
        ]

    def _is_ours(self, tags: Mapping[str, str]) -> bool:
        return self._mark.items() <= tags.items()

    async def _change(self, wanted: Resource) -> Change | None:
        there = await self._service.describe(wanted.kind, wanted.id)
        if there is None:
            return Change(wanted.kind, wanted.id, "create")
        tags = await self._service.tags(wanted.kind, wanted.id)
        if not self._is_ours(tags):
            obstacle = "is there already and was not made by this command for this stream"
            return Change(wanted.kind, wanted.id, "update", obstacle=obstacle)
        state = there.get("Version", there)
        # A later version of a dashboard that fails leaves the published one as it was.
        if state.get("Status") == "CREATION_FAILED" and state.get("VersionNumber", 1) == 1:
            return Change(wanted.kind, wanted.id, "replace", (f"its creation failed: {failures(state)}",))
        shared = await self._sharing(wanted)
        shared += [f"tag {key}" for key in self._tags if tags.get(key) != self._tags[key]]
        if tags.get(_CONTENT) != wanted.fingerprint:
            details = [*await self._details(wanted, there), *shared]
            if len(details) > _DETAILS:
                details[_DETAILS:] = [f"and {len(details) - _DETAILS} more"]
            return Change(wanted.kind, wanted.id, "update", tuple(details))
        return Change(wanted.kind, wanted.id, "share", tuple(shared)) if shared else None

    async def _details(self, wanted: Resource, there: Mapping[str, Any]) -> list[str]:
        """What differs, to be read by a person only: the service fills in defaults, which are left out."""
        if wanted.kind is Kind.DASHBOARD:
            there = {**there, "Definition": await self._service.definition(wanted.id)}
        compared = {key: value for key, value in wanted.request.items() if key in there}
        return list(differing(compared, there))

    async def _sharing(self, wanted: Resource) -> list[str]:
        if wanted.grants is None:
            return []
        there = await self._service.grants(wanted.kind, wanted.id)
        principals = sorted({*wanted.grants, *there})
        return [f"permissions of {who}" for who in principals if wanted.grants.get(who) != there.get(who)]

    async def _apply(self, wanted: Resource, change: Change) -> Change:
        answer: Mapping[str, Any] = {}
        if change.action == "replace":
            await self._service.delete(wanted.kind, wanted.id)
        if change.action in {"create", "replace"}:
            answer = await self._service.create(wanted, self._tags)
        else:
            await self._service.tag(wanted.kind, wanted.id, self._tags)
            if change.action == "update":
                answer = await self._service.update(wanted)
            await self._share(wanted)
        if wanted.kind is Kind.DATA_SET and change.action != "share":
            await synchronize(self._service, wanted)
        await self._service.tag(wanted.kind, wanted.id, {_CONTENT: wanted.fingerprint})
        return Change(
            change.kind, change.id, change.action, change.details, ingestion=answer.get("IngestionId")
        )

    async def _share(self, wanted: Resource) -> None:
        """Exactly the principals of the settings: somebody who was taken out of them must not stay.

        What is granted is always an owner's or a viewer's whole list; the service refuses others.
        """
        if wanted.grants is None:
            return
        there = await self._service.grants(wanted.kind, wanted.id)
        nothing: frozenset[str] = frozenset()
        granted = {who: may for who, may in wanted.grants.items() if may - there.get(who, nothing)}
        excess = {who: may - wanted.grants.get(who, nothing) for who, may in there.items()}
        revoked = {who: actions for who, actions in excess.items() if actions}
        if granted or revoked:
            await self._service.grant(wanted, granted, revoked)


def differing(wanted: Any, there: Any, path: str = "") -> list[str]:
    """Paths at which ``there`` lacks or contradicts what is ``wanted``; what it has beside that does not count.

    Parts of a list are matched by what names them, where something does.
    """
    if isinstance(wanted, Mapping) and isinstance(there, Mapping):
        return [
            found
            for key, value in wanted.items()
            for found in differing(value, there.get(key), f"{path}.{key}" if path else key)
        ]
    if isinstance(wanted, list) and isinstance(there, list):
        by_name, named = {_name(each): each for each in there}, [_name(each) for each in wanted]
        if None not in by_name and None not in named:
            gone = [f"{path}[{name}] goes" for name in by_name if name not in named]
            return gone + [
                found
                for name, each in zip(named, wanted, strict=True)
                for found in differing(each, by_name.get(name), f"{path}[{name}]")
            ]
    if there is None:
        return [f"{path} is new"]
    return [] if wanted == there else [path]


#: Members that name a part of a list, the most telling first.
_NAMING = (
    "SheetId",
    "VisualId",
    "FilterGroupId",
    "FilterId",
    "Identifier",
    "ElementId",
    "FieldId",
    "ColumnName",
    "Name",
)


def _name(part: Any) -> str | None:
    if not isinstance(part, Mapping):
        return None
    for key in _NAMING:
        if isinstance(part.get(key), str):
            return str(part[key])
    return _name(next(iter(part.values()))) if len(part) == 1 else None
