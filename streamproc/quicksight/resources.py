"""What a stream is in QuickSight: data sources, data sets with their refreshes, a dashboard."""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from streamproc.errors import ConfigError, Mistake
from streamproc.quicksight.dashboard import definition
from streamproc.quicksight.data_sets import DataSet, data_sets
from streamproc.quicksight.permissions import Grants, granted
from streamproc.redaction import Url
from streamproc.settings import QuickSight, Settings
from streamproc.topology import Topology


class Kind(enum.Enum):
    """What QuickSight keeps; the value is the word for it in ARNs. In order of creation."""

    DATA_SOURCE = "datasource"
    DATA_SET = "dataset"
    DASHBOARD = "dashboard"

    def __str__(self) -> str:
        return {"datasource": "data source", "dataset": "data set"}.get(self.value, self.value)


@dataclass(frozen=True, slots=True)
class Place:
    """An account's QuickSight in one region. ``partition``: ``aws``, ``aws-cn`` or ``aws-us-gov``."""

    account: str
    region: str
    partition: str = "aws"

    def arn(self, kind: Kind, id_: str) -> str:
        """The ARN that the service gives to what has this id."""
        return f"arn:{self.partition}:quicksight:{self.region}:{self.account}:{kind.value}/{id_}"

    def __str__(self) -> str:
        return f"QuickSight of {self.account} in {self.region}"


@dataclass(frozen=True, slots=True)
class Resource:
    """One thing to publish.

    ``request``: the arguments of ``Create…`` beside account, permissions and tags. ``refreshes``: the schedules of a
    data set by id. ``lookback``: the arguments of ``PutDataSetRefreshProperties``, when one is incremental.
    """

    kind: Kind
    id: str
    request: Mapping[str, Any]
    grants: Grants | None = None
    lookback: Mapping[str, Any] | None = None
    refreshes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that is published of it; beside permissions, which can be read back exactly."""
        content = [self.request, self.lookback, self.refreshes]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"


def resources(page: Topology, settings: Settings, place: Place) -> list[Resource]:
    """All of a stream, in order of creation. Empty when the stream has nothing to show.

    Raises :class:`ConfigError` when a setting is missing, or QuickSight cannot reach what it names.
    """
    asked = settings.quicksight
    sets = data_sets(page, warehouse=engine(asked.warehouse))
    sources = {
        role: _data_source(page, role, asked)
        for role in ("summaries", "warehouse")
        if any((each.kind == "events") == (role == "warehouse") for each in sets)
    }
    made = [*sources.values()]
    for each in sets:
        source = sources["warehouse" if each.kind == "events" else "summaries"]
        made.append(_data_set(page, each, asked, place.arn(Kind.DATA_SOURCE, source.id)))
    content = definition(sets, lambda each: place.arn(Kind.DATA_SET, _data_set_id(page, each, asked)))
    if content["Sheets"]:
        id_ = f"{asked.prefix}-{page.name}"
        request = {
            "DashboardId": id_,
            "Name": page.name,
            "Definition": content,
            "DashboardPublishOptions": {
                "AdHocFilteringOption": {"AvailabilityStatus": "ENABLED"},
                "ExportToCSVOption": {"AvailabilityStatus": "ENABLED"},
                "SheetControlsOption": {"VisibilityState": "EXPANDED"},
            },
        }
        made.append(Resource(Kind.DASHBOARD, id_, request, granted(Kind.DASHBOARD.value, asked)))
    return made


def _data_source(page: Topology, role: str, asked: QuickSight) -> Resource:
    """Its type is part of its id, because QuickSight cannot change the type of what is there."""
    url, secret = _wanted(role, asked)
    type_, parameters = _database(url)
    id_ = f"{asked.prefix}-{page.name}-{role}-{type_.lower().replace('_', '-')}"
    request: dict[str, Any] = {
        "DataSourceId": id_,
        "Name": f"{page.name} {role}",
        "Type": type_,
        "DataSourceParameters": parameters,
        "Credentials": {"SecretArn": secret},
        "SslProperties": {"DisableSsl": False},
    }
    if asked.vpc_connection:
        request["VpcConnectionProperties"] = {"VpcConnectionArn": asked.vpc_connection}
    return Resource(Kind.DATA_SOURCE, id_, request, granted(Kind.DATA_SOURCE.value, asked))


def _wanted(role: str, asked: QuickSight) -> tuple[Url, str]:
    url = asked.summaries if role == "summaries" else asked.warehouse
    secret = asked.summaries_secret if role == "summaries" else asked.warehouse_secret
    if url is None or secret is None:
        fix = "Set it in the section [quicksight] of the settings file"
        missing = [f"quicksight.{role}"] if url is None else []
        missing += [f"quicksight.{role}_secret"] if secret is None else []
        raise ConfigError(
            Mistake(key, f"is needed: QuickSight reads the {role} by it", fix) for key in missing
        )
    return url, secret


def _database(url: Url) -> tuple[str, dict[str, Any]]:
    """QuickSight's type of a data source and its parameters."""
    server, _, database = url.rest.partition("/")
    if url.scheme == "rds":
        return "POSTGRESQL", {"RdsParameters": {"InstanceId": server, "Database": database}}
    if url.scheme == "redshift-cluster":
        return "REDSHIFT", {"RedshiftParameters": {"ClusterId": server, "Database": database}}
    host, _, port = server.rpartition(":")
    type_, parameters = {
        "aurora-postgresql": ("AURORA_POSTGRESQL", "AuroraPostgreSqlParameters"),
        "postgresql": ("POSTGRESQL", "PostgreSqlParameters"),
        "redshift": ("REDSHIFT", "RedshiftParameters"),
    }[url.scheme]
    return type_, {parameters: {"Host": host, "Port": int(port), "Database": database}}


def engine(url: Url) -> str:
    """What speaks SQL there: ``redshift``, ``postgresql`` or ``none``."""
    return {"none": "none", "redshift": "redshift", "redshift-cluster": "redshift"}.get(
        url.scheme, "postgresql"
    )


def _data_set_id(page: Topology, data: DataSet, asked: QuickSight) -> str:
    return f"{asked.prefix}-{page.name}-{data.key}"


def _data_set(page: Topology, data: DataSet, asked: QuickSight, source: str) -> Resource:
    id_ = _data_set_id(page, data, asked)
    columns = [{"Name": each.name, "Type": each.type} for each in data.columns]
    custom = {
        "DataSourceArn": source,
        "Name": data.key,
        "SqlQuery": data.query,
        "Columns": columns,
    }
    logical: dict[str, Any] = {"Alias": data.key[:64], "Source": {"PhysicalTableId": "query"}}
    if transforms := list(_tagged(data)):
        logical["DataTransforms"] = transforms
    request = {
        "DataSetId": id_,
        "Name": f"{page.name} {data.identifier}"[:128],
        "PhysicalTableMap": {"query": {"CustomSql": custom}},
        "LogicalTableMap": {"table": logical},
        "ImportMode": "DIRECT_QUERY" if data.lookback is None else "SPICE",
    }
    grants = granted(Kind.DATA_SET.value, asked)
    if data.lookback is None:
        return Resource(Kind.DATA_SET, id_, request, grants)
    return Resource(Kind.DATA_SET, id_, request, grants, _lookback(data, asked), dict(_refreshes(asked)))


def _tagged(data: DataSet) -> Iterator[dict[str, Any]]:
    for each in data.columns:
        tags: list[dict[str, Any]] = []
        if each.place:
            tags.append({"ColumnGeographicRole": each.place})
        if each.description:
            tags.append({"ColumnDescription": {"Text": each.description[:500]}})
        if tags:
            yield {"TagColumnOperation": {"ColumnName": each.name, "Tags": tags}}


#: Incremental refreshes may run more often than full ones
#: (https://docs.aws.amazon.com/quicksight/latest/APIReference/API_RefreshFrequency.html).
_INTERVALS = {"15m": "MINUTE15", "30m": "MINUTE30", "1h": "HOURLY"}


def _lookback(data: DataSet, asked: QuickSight) -> Mapping[str, Any] | None:
    if asked.refresh not in _INTERVALS:
        return None
    window = {"ColumnName": data.time, "Size": data.lookback, "SizeUnit": "DAY"}
    return {"RefreshConfiguration": {"IncrementalRefresh": {"LookbackWindow": window}}}


def _refreshes(asked: QuickSight) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """An incremental refresh never takes away rows that retention or a replay did: a full one a day does."""
    daily = {"Interval": "DAILY", "TimeOfTheDay": asked.full_refresh_at, "Timezone": "UTC"}
    yield "streamproc-full", {"ScheduleFrequency": daily, "RefreshType": "FULL_REFRESH"}
    if asked.refresh in _INTERVALS:
        often = {"Interval": _INTERVALS[asked.refresh]}
        yield "streamproc-incremental", {"ScheduleFrequency": often, "RefreshType": "INCREMENTAL_REFRESH"}
