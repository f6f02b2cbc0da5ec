"""Data sources, data sets and refreshes of QuickSight's stand-in."""

from __future__ import annotations

from typing import Any

from tests.support.quicksight_server import QuickSightServer, Refusal


class DataSources(QuickSightServer):
    """Moto's, but for states, permissions and what it answers null to."""

    def _CreateDataSource(self, asked: dict[str, Any]) -> dict[str, Any]:
        id_ = asked["DataSourceId"]
        if id_ in self.sources:
            raise Refusal("ResourceExistsException", id_)
        answer = self._by_moto()
        self._begin(self.sources, id_, "CREATION")
        self._allow(f"datasource/{id_}", asked)
        return answer | {"CreationStatus": "CREATION_IN_PROGRESS"}

    def _UpdateDataSource(self, asked: dict[str, Any]) -> dict[str, Any]:
        if self._there(self.sources, asked["DataSourceId"])["left"]:
            raise Refusal("ConflictException", "it is still being made")
        answer = self._by_moto()
        self._begin(self.sources, asked["DataSourceId"], "UPDATE")
        return answer | {"UpdateStatus": "UPDATE_IN_PROGRESS"}

    def _DescribeDataSource(self, asked: dict[str, Any]) -> dict[str, Any]:
        answer = self._by_moto()
        answer["DataSource"] |= self._progress(self.sources[asked["DataSourceId"]])
        answer["DataSource"] = {
            key: value for key, value in answer["DataSource"].items() if value is not None
        }
        return answer

    def _DeleteDataSource(self, asked: dict[str, Any]) -> dict[str, Any]:
        self.sources.pop(asked["DataSourceId"], None)
        self._forget(f"datasource/{asked['DataSourceId']}")
        return self._by_moto()

    def _ListDataSources(self, _: dict[str, Any]) -> dict[str, Any]:
        return self._by_moto()


class DataSets(QuickSightServer):
    """Kept here; their creation is moto's too."""

    def _CreateDataSet(self, asked: dict[str, Any]) -> dict[str, Any]:
        id_ = asked["DataSetId"]
        if id_ in self.data_sets:
            raise Refusal("ResourceExistsException", id_)
        self._look_at(asked)
        assert self._by_moto()["DataSetId"] == id_
        self._allow(f"dataset/{id_}", asked)
        return self._keep(asked, "created")

    def _UpdateDataSet(self, asked: dict[str, Any]) -> dict[str, Any]:
        self._there(self.data_sets, asked["DataSetId"])
        self._look_at(asked)
        return self._keep(asked, "updated")

    def _look_at(self, asked: dict[str, Any]) -> None:
        for table in asked["PhysicalTableMap"].values():
            (content,) = table.values()
            if content["DataSourceArn"].rpartition("/")[2] not in self.sources:
                raise Refusal("ResourceNotFoundException", content["DataSourceArn"])
            names = [column["Name"] for column in content["Columns"]]
            if len(names) != len(set(names)):
                raise Refusal("InvalidParameterValueException", "a column stands twice")
        for table in asked["LogicalTableMap"].values():
            if table["Source"]["PhysicalTableId"] not in asked["PhysicalTableMap"]:
                raise Refusal("InvalidParameterValueException", "no such physical table")
            tagged = {t["TagColumnOperation"]["ColumnName"] for t in table.get("DataTransforms", ())}
            if not tagged <= set(names):
                raise Refusal("InvalidParameterValueException", f"no such column: {tagged - set(names)}")

    def _keep(self, asked: dict[str, Any], ingestion: str) -> dict[str, Any]:
        id_ = asked["DataSetId"]
        (table,) = asked["PhysicalTableMap"].values()
        (content,) = table.values()
        columns = [{"Name": each["Name"], "Type": each["Type"]} for each in content["Columns"]]
        kept = {
            key: value for key, value in asked.items() if key not in {"Tags", "Permissions", "AwsAccountId"}
        }
        arn = self._arn(f"dataset/{id_}")
        self.data_sets[id_] = kept | {"Arn": arn, "OutputColumns": columns}
        answer = {"Arn": arn, "DataSetId": id_}
        if asked["ImportMode"] == "SPICE":
            answer |= {"IngestionId": ingestion, "IngestionArn": f"{arn}/ingestion/{ingestion}"}
        return answer

    def _DescribeDataSet(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {"DataSet": self._there(self.data_sets, asked["DataSetId"])}

    def _DeleteDataSet(self, asked: dict[str, Any]) -> dict[str, Any]:
        id_ = asked["DataSetId"]
        self._there(self.data_sets, id_)
        self._forget(f"dataset/{id_}")
        for kept in (self.data_sets, self.schedules, self.properties):
            kept.pop(id_, None)  # type: ignore[attr-defined]  # mappings of different values
        return {"DataSetId": id_}

    def _ListDataSets(self, asked: dict[str, Any]) -> dict[str, Any]:
        summaries = [{"DataSetId": id_, "Arn": self._arn(f"dataset/{id_}")} for id_ in self.data_sets]
        return self._page("DataSetSummaries", summaries, asked)

    def _DescribeIngestion(self, asked: dict[str, Any]) -> dict[str, Any]:
        state = {
            "Arn": f"{self._arn('dataset/' + asked['DataSetId'])}/ingestion/{asked['IngestionId']}",
            "IngestionId": asked["IngestionId"],
            "IngestionStatus": "COMPLETED",
            "CreatedTime": 1.7e9,
            "RowInfo": {"RowsIngested": 42},
        }
        if errors := self.failing.get(asked["DataSetId"]):
            state |= {"IngestionStatus": "FAILED", "ErrorInfo": errors[0]}
        return {"Ingestion": state}


class Refreshes(QuickSightServer):
    """Look-back windows and schedules."""

    def _PutDataSetRefreshProperties(self, asked: dict[str, Any]) -> dict[str, Any]:
        data = self._there(self.data_sets, asked["DataSetId"])
        wanted = asked["DataSetRefreshProperties"]
        column = wanted["RefreshConfiguration"]["IncrementalRefresh"]["LookbackWindow"]["ColumnName"]
        types = {each["Name"]: each["Type"] for each in data["OutputColumns"]}
        if data["ImportMode"] != "SPICE" or types.get(column) != "DATETIME":
            raise Refusal("InvalidParameterValueException", f"{column} cannot be looked back by")
        self.properties[asked["DataSetId"]] = wanted
        return {}

    def _DeleteDataSetRefreshProperties(self, asked: dict[str, Any]) -> dict[str, Any]:
        self._there(self.properties, asked["DataSetId"])
        if any(
            s["RefreshType"] == "INCREMENTAL_REFRESH" for s in self.schedules[asked["DataSetId"]].values()
        ):
            raise Refusal("ConflictException", "an incremental schedule needs it")
        del self.properties[asked["DataSetId"]]
        return {}

    def _CreateRefreshSchedule(self, asked: dict[str, Any]) -> dict[str, Any]:
        there = self.schedules[asked["DataSetId"]]
        if asked["Schedule"]["ScheduleId"] in there:
            raise Refusal("ResourceExistsException", asked["Schedule"]["ScheduleId"])
        if len(there) == 5:
            raise Refusal("LimitExceededException", "five schedules")
        return self._scheduled(asked)

    def _UpdateRefreshSchedule(self, asked: dict[str, Any]) -> dict[str, Any]:
        self._there(self.schedules[asked["DataSetId"]], asked["Schedule"]["ScheduleId"])
        return self._scheduled(asked)

    def _scheduled(self, asked: dict[str, Any]) -> dict[str, Any]:
        id_, schedule = asked["DataSetId"], asked["Schedule"]
        if self._there(self.data_sets, id_)["ImportMode"] != "SPICE":
            raise Refusal("PreconditionNotMetException", "not imported")
        incremental = schedule["RefreshType"] == "INCREMENTAL_REFRESH"
        if incremental and id_ not in self.properties:
            raise Refusal("PreconditionNotMetException", "no look-back window")
        frequency = schedule["ScheduleFrequency"]
        if frequency["Interval"].startswith("MINUTE") and not incremental:
            raise Refusal("InvalidParameterValueException", "too often for a full refresh")
        if frequency["Interval"] == "DAILY" and not {"TimeOfTheDay", "Timezone"} <= frequency.keys():
            raise Refusal("InvalidParameterValueException", "when?")
        self.schedules[id_][schedule["ScheduleId"]] = schedule
        return {"ScheduleId": schedule["ScheduleId"]}

    def _ListRefreshSchedules(self, asked: dict[str, Any]) -> dict[str, Any]:
        arn = self._arn(f"dataset/{asked['DataSetId']}/refresh-schedule")
        kept = self.schedules[asked["DataSetId"]].values()
        return {"RefreshSchedules": [{**each, "Arn": f"{arn}/{each['ScheduleId']}"} for each in kept]}

    def _DeleteRefreshSchedule(self, asked: dict[str, Any]) -> dict[str, Any]:
        self._there(self.schedules[asked["DataSetId"]], asked["ScheduleId"])
        del self.schedules[asked["DataSetId"]][asked["ScheduleId"]]
        return {}
