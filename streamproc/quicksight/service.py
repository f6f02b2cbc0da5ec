"""QuickSight's API as the publisher needs it: the same few verbs for data sources, data sets and dashboards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession, get_session
from botocore.exceptions import NoRegionError

from streamproc.errors import DependencyError
from streamproc.quicksight.permissions import Grants
from streamproc.quicksight.resources import Kind, Place, Resource
from streamproc.s3_client import speaking
from streamproc.settings import QuickSight

#: What to look at, by error code.
_HINTS = {
    "AccessDeniedException": "docs/quicksight.md lists the permissions that are needed",
    "ConflictException": "something else changes it at this moment; run it again",
    "LimitExceededException": "the account has no more of these; see its quotas, and the capacity of SPICE",
    "NoRegionError": "set quicksight.region, or AWS_DEFAULT_REGION",
    "PreconditionNotMetException": "the account or the data set is not ready for it",
    "ThrottlingException": "too many requests, also of others; run it again, it goes on where it stopped",
    "UnsupportedUserEditionException": "QuickSight's Enterprise edition is needed",
}

#: Requests until the service counts as away. It is throttled by the account, and a publication has dozens.
_ATTEMPTS = 8

#: Seconds until something that is made counts as stuck, between two looks at it at first, and at most.
_DEADLINE, _FIRST_LOOK, _LAST_LOOK = 600.0, 0.25, 5.0

#: Seconds that an import may take when it is waited for.
_IMPORT_DEADLINE = 4 * 3600.0


@dataclass(frozen=True, slots=True)
class _Names:
    """How the API names a kind. ``described``: the member of what ``Describe…`` answers."""

    id: str
    verb: str
    listed: str
    described: str


_NAMES = {
    Kind.DATA_SOURCE: _Names("DataSourceId", "data_source", "DataSources", "DataSource"),
    Kind.DATA_SET: _Names("DataSetId", "data_set", "DataSetSummaries", "DataSet"),
    Kind.DASHBOARD: _Names("DashboardId", "dashboard", "DashboardSummaryList", "Dashboard"),
}


class _NotThere(Exception):
    """There is no such resource."""


@asynccontextmanager
async def connected(asked: QuickSight) -> AsyncIterator[Service]:
    """The service of the account and region in the settings. Raises :class:`DependencyError`."""
    config = AioConfig(
        # As for S3: exponential backoff with full jitter, at most 20 s, on throttling, 5xx and lost connections.
        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
        connect_timeout=10,
        read_timeout=60,
        user_agent_extra="streamproc",
    )
    session = get_session()
    with speaking("QuickSight", "connect", _HINTS):
        region = asked.region or session.get_config_variable("region")
        if region is None:
            raise NoRegionError
        place = Place(
            asked.account or await _account(session, region, config),
            region,
            session.get_partition_for_region(region),
        )
        context = session.create_client(
            "quicksight", region_name=region, endpoint_url=asked.endpoint_url, config=config
        )
    async with context as api:
        yield Service(api, place)


async def _account(session: AioSession, region: str, config: AioConfig) -> str:
    async with session.create_client("sts", region_name=region, config=config) as sts:
        return str((await sts.get_caller_identity())["Account"])


class Service:
    """Asks for one account and region. Every method raises :class:`DependencyError` when that fails.

    ``pause``: waits some seconds.
    """

    def __init__(
        self, api: Any, place: Place, pause: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self.place = place
        self._api = api
        self._pause = pause

    async def call(self, operation: str, **arguments: object) -> dict[str, Any]:
        """One call, by the name that botocore gives its method."""
        with speaking(str(self.place), operation, _HINTS):
            method = getattr(self._api, operation)
            answer: dict[str, Any] = await method(AwsAccountId=self.place.account, **arguments)
        return answer

    async def maybe(self, operation: str, **arguments: object) -> dict[str, Any] | None:
        """One call; ``None`` when what it is about is not there."""
        with suppress(_NotThere), speaking(str(self.place), operation, _HINTS, _refused):
            answer: dict[str, Any] = await getattr(self._api, operation)(
                AwsAccountId=self.place.account, **arguments
            )
            return answer
        return None

    async def ids(self, kind: Kind, base: str) -> list[str]:
        """The ids of a kind that are ``base`` or begin with it and a hyphen, sorted."""
        names = _NAMES[kind]
        found = []
        with speaking(str(self.place), f"list_{names.verb}s", _HINTS):
            pages = self._api.get_paginator(f"list_{names.verb}s").paginate(AwsAccountId=self.place.account)
            async for page in pages:
                found += [each[names.id] for each in page.get(names.listed, ())]
        return sorted(each for each in found if each == base or each.startswith(f"{base}-"))

    async def describe(self, kind: Kind, id_: str) -> dict[str, Any] | None:
        """As the service has it, of a dashboard its newest version. ``None`` when there is none."""
        names = _NAMES[kind]
        newest = {"AliasName": "$LATEST"} if kind is Kind.DASHBOARD else {}
        answer = await self.maybe(f"describe_{names.verb}", **{names.id: id_}, **newest)
        return None if answer is None else dict(answer[names.described])

    async def definition(self, id_: str) -> dict[str, Any]:
        """What a dashboard is made of; empty while it cannot be told."""
        answer = await self.maybe("describe_dashboard_definition", DashboardId=id_) or {}
        return dict(answer.get("Definition") or {})

    async def tags(self, kind: Kind, id_: str) -> dict[str, str]:
        """The tags of what is there."""
        arn = self.place.arn(kind, id_)
        with speaking(str(self.place), "list_tags_for_resource", _HINTS):
            answer = await self._api.list_tags_for_resource(ResourceArn=arn)
        return {each["Key"]: each["Value"] for each in answer.get("Tags", ())}

    async def tag(self, kind: Kind, id_: str, tags: Mapping[str, str]) -> None:
        """Set these tags, beside those that are there."""
        with speaking(str(self.place), "tag_resource", _HINTS):
            await self._api.tag_resource(ResourceArn=self.place.arn(kind, id_), Tags=as_tags(tags))

    async def create(self, resource: Resource, tags: Mapping[str, str]) -> dict[str, Any]:
        """Create it with its permissions, and wait until the service says that it is made."""
        verb = _NAMES[resource.kind].verb
        permissions = {"Permissions": as_permissions(resource.grants)} if resource.grants else {}
        answer = await self.call(f"create_{verb}", **resource.request, **permissions, Tags=as_tags(tags))
        await self._settled(resource, 1)
        return answer

    async def update(self, resource: Resource) -> dict[str, Any]:
        """Make what is there as ``resource`` says, and wait; a dashboard's new version becomes the one that is seen."""
        verb = _NAMES[resource.kind].verb
        request = {key: value for key, value in resource.request.items() if key != "Type"}
        await self._quiet(resource)  # a run that was interrupted may have begun something
        answer = await self.call(f"update_{verb}", **request)
        version = int(answer["VersionArn"].rpartition("/")[2]) if resource.kind is Kind.DASHBOARD else 1
        await self._settled(resource, version)
        if resource.kind is Kind.DASHBOARD:
            await self.call(
                "update_dashboard_published_version", DashboardId=resource.id, VersionNumber=version
            )
        return answer

    async def delete(self, kind: Kind, id_: str) -> None:
        """Delete it; nothing happens when it is gone already."""
        names = _NAMES[kind]
        await self.maybe(f"delete_{names.verb}", **{names.id: id_})

    async def imported(self, data_set: str, ingestion: str) -> int:
        """Wait for an import to end; returns its rows. Raises :class:`DependencyError` when it fails."""
        waited, look = 0.0, _FIRST_LOOK
        while waited < _IMPORT_DEADLINE:
            answer = await self.call("describe_ingestion", DataSetId=data_set, IngestionId=ingestion)
            state = answer["Ingestion"]
            status = state["IngestionStatus"]
            if status == "COMPLETED":
                return int(state.get("RowInfo", {}).get("RowsIngested", 0))
            if status not in {"INITIALIZED", "QUEUED", "RUNNING"}:
                raise DependencyError(f"import into {data_set}", f"{status}: {failures(state)}")
            await self._pause(look)
            waited, look = waited + look, min(look * 2, _LAST_LOOK)
        raise DependencyError(f"import into {data_set}", f"is not done after {_IMPORT_DEADLINE:.0f} s")

    async def grants(self, kind: Kind, id_: str) -> Grants:
        """Who may do what with it."""
        names = _NAMES[kind]
        answer = await self.call(f"describe_{names.verb}_permissions", **{names.id: id_})
        return {each["Principal"]: frozenset(each["Actions"]) for each in answer.get("Permissions", ())}

    async def grant(self, resource: Resource, granted: Grants, revoked: Grants) -> None:
        """Change who may do what with it."""
        names = _NAMES[resource.kind]
        changes: dict[str, object] = {}
        if granted:
            changes["GrantPermissions"] = as_permissions(granted)
        if revoked:
            changes["RevokePermissions"] = as_permissions(revoked)
        await self.call(f"update_{names.verb}_permissions", **{names.id: resource.id}, **changes)

    async def _settled(self, resource: Resource, version: int) -> None:
        """Wait while it is being made. Raises :class:`DependencyError` with what the service found wrong."""
        state = await self._quiet(resource, version)
        if not state.get("Status", "_SUCCESSFUL").endswith("_SUCCESSFUL"):
            raise DependencyError(str(resource), f"{state['Status']}: {failures(state)}")

    async def _quiet(self, resource: Resource, version: int | None = None) -> dict[str, Any]:
        """Its state once nothing is in progress; of a dashboard, that of a version or of the newest.

        A data set has none: it is there at once, and its rows come later.
        """
        waited, look = 0.0, _FIRST_LOOK
        while True:
            if version is not None and resource.kind is Kind.DASHBOARD:
                answer = await self.call("describe_dashboard", DashboardId=resource.id, VersionNumber=version)
                found = answer["Dashboard"]
            else:
                found = await self.describe(resource.kind, resource.id) or {}
            state: dict[str, Any] = found.get("Version", found)
            if not state.get("Status", "").endswith("_IN_PROGRESS"):
                return state
            if waited >= _DEADLINE:
                problem = f"is still {state['Status']} after {_DEADLINE:.0f} s"
                raise DependencyError(str(resource), problem, "run it again")
            await self._pause(look)
            waited, look = waited + look, min(look * 2, _LAST_LOOK)


def failures(state: Mapping[str, Any]) -> str:
    """What the service says is wrong with a data source or a version of a dashboard."""
    errors = [*state.get("Errors", ()), *([state["ErrorInfo"]] if state.get("ErrorInfo") else [])]
    return "; ".join(f"{each.get('Type')} {each.get('Message')}" for each in errors) or "no reason given"


def as_tags(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """As the API wants them."""
    return [{"Key": key, "Value": value} for key, value in sorted(tags.items())]


def as_permissions(grants: Grants) -> list[dict[str, Any]]:
    """As the API wants them."""
    return [{"Principal": who, "Actions": sorted(actions)} for who, actions in sorted(grants.items())]


def _refused(code: str, message: str) -> Exception | None:
    return _NotThere(message) if code == "ResourceNotFoundException" else None
