"""A server that speaks as much QuickSight as is published to it, strictly, with moto behind it for what moto has.

Of the operations that are used, moto 5.2 has those of data sources but their permissions, ``CreateDataSet``,
``CreateDashboard``, ``DescribeDashboard``, ``ListDashboards`` and tags. It keeps of a data set only the name and of a
dashboard only one version, checks nothing, and has no other operation of either. So data sources and their tags are
moto's, ``CreateDataSet`` and ``CreateDashboard`` are sent to it too and have to succeed there, and the rest is kept
here.

Every request is parsed by the service model of botocore, checked against it (types, required members, bounds,
enumerations, patterns), and refused as the service would when it is wrong. A dashboard is made in the background and
fails there when a data set or a column that it names is not there. An answer has defaults filled in.

It differs from the service: nothing is queried, so a wrong SQL query is not noticed and imports are always done; types
of columns are not compared with what visuals do; permissions are kept, not enforced; throttling, slowness and
failures come only as told; how the service normalises a definition is guessed.
"""

from __future__ import annotations

import json
import re
from copy import deepcopy
from typing import Any

from tests.support.quicksight_data import DataSets, DataSources, Refreshes
from tests.support.quicksight_server import ACCOUNT, QuickSightServer, Refusal

__all__ = ["ACCOUNT", "QuickSightStub"]


class Dashboards(QuickSightServer):
    """Versions, the first of which moto keeps too."""

    def _CreateDashboard(self, asked: dict[str, Any]) -> dict[str, Any]:
        id_ = asked["DashboardId"]
        if id_ in self.dashboards:
            raise Refusal("ResourceExistsException", id_)
        assert self._by_moto()["CreationStatus"] == "CREATION_SUCCESSFUL"
        self.dashboards[id_] = []
        self._allow(f"dashboard/{id_}", asked)
        self.published[id_] = 1
        return self._version(asked)

    def _UpdateDashboard(self, asked: dict[str, Any]) -> dict[str, Any]:
        if self._there(self.dashboards, asked["DashboardId"])[-1]["state"]["left"]:
            raise Refusal("ConflictException", "the version before is still being made")
        return self._version(asked)

    def _version(self, asked: dict[str, Any]) -> dict[str, Any]:
        id_ = asked["DashboardId"]
        versions = self.dashboards[id_]
        number, arn = len(versions) + 1, self._arn(f"dashboard/{id_}")
        made: dict[str, Any] = {}
        self._begin(made, id_, "CREATION", self._wrong(asked["Definition"]))
        versions.append({"asked": asked, "state": made[id_], "VersionNumber": number})
        return {
            "Arn": arn,
            "VersionArn": f"{arn}/version/{number}",
            "DashboardId": id_,
            "CreationStatus": "CREATION_IN_PROGRESS",
        }

    def _wrong(self, definition: dict[str, Any]) -> list[dict[str, Any]]:
        """What the service finds when it builds a dashboard."""
        columns: dict[str, set[str]] = {}
        for each in definition["DataSetIdentifierDeclarations"]:
            data = self.data_sets.get(each["DataSetArn"].rpartition("/")[2])
            if data is None:
                return [{"Type": "DATA_SET_NOT_FOUND", "Message": each["DataSetArn"]}]
            columns[each["Identifier"]] = {column["Name"] for column in data["OutputColumns"]}
        named = re.findall(r'"DataSetIdentifier": "([^"]*)", "ColumnName": "([^"]*)"', json.dumps(definition))
        return [
            {"Type": "COLUMN_REPLACEMENT_MISSING", "Message": f"{data}.{column}"}
            for data, column in sorted(set(named))
            if column not in columns.get(data, set())
        ]

    def _DescribeDashboard(self, asked: dict[str, Any]) -> dict[str, Any]:
        id_ = asked["DashboardId"]
        versions = self._there(self.dashboards, id_)
        latest = len(versions) if asked.get("AliasName") == "$LATEST" else self.published[id_]
        number = asked.get("VersionNumber", latest)
        version = versions[number - 1]
        arn = self._arn(f"dashboard/{id_}")
        return {
            "Dashboard": {
                "DashboardId": id_,
                "Arn": arn,
                "Name": version["asked"]["Name"],
                "Version": {
                    "VersionNumber": number,
                    "Arn": f"{arn}/version/{number}",
                    **self._progress(version["state"]),
                },
            }
        }

    def _DescribeDashboardDefinition(self, asked: dict[str, Any]) -> dict[str, Any]:
        id_ = asked["DashboardId"]
        versions = self._there(self.dashboards, id_)
        definition = deepcopy(versions[self.published[id_] - 1]["asked"]["Definition"])
        for sheet in definition["Sheets"]:
            for visual in sheet["Visuals"]:
                for content in visual.values():
                    content.setdefault("Actions", [])
                    content.setdefault("ColumnHierarchies", [])
        return {"DashboardId": id_, "Definition": definition, "ResourceStatus": "CREATION_SUCCESSFUL"}

    def _UpdateDashboardPublishedVersion(self, asked: dict[str, Any]) -> dict[str, Any]:
        id_, number = asked["DashboardId"], asked["VersionNumber"]
        state = self._there(self.dashboards, id_)[number - 1]["state"]
        if state["left"] or state["errors"]:
            raise Refusal("ConflictException", f"version {number} is not made")
        self.published[id_] = number
        return {"DashboardId": id_}

    def _DeleteDashboard(self, asked: dict[str, Any]) -> dict[str, Any]:
        self._there(self.dashboards, asked["DashboardId"])
        self._forget(f"dashboard/{asked['DashboardId']}")
        del self.dashboards[asked["DashboardId"]]
        return {"DashboardId": asked["DashboardId"]}

    def _ListDashboards(self, asked: dict[str, Any]) -> dict[str, Any]:
        found = [{"DashboardId": id_, "Arn": self._arn(f"dashboard/{id_}")} for id_ in self.dashboards]
        return self._page("DashboardSummaryList", found, asked)


class QuickSightStub(DataSources, DataSets, Refreshes, Dashboards):
    """All of it, on a port of its own."""
