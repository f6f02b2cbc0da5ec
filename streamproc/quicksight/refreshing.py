"""The refresh schedules of a data set: ours made as they should be, those of others left alone."""

from __future__ import annotations

from typing import Any

from streamproc.quicksight.resources import Resource
from streamproc.quicksight.service import Service

#: What the ids of our schedules begin with.
_OURS = "streamproc-"


async def synchronize(service: Service, wanted: Resource) -> None:
    """Set the look-back window and the schedules of a data set, and take away those that it should not have.

    The order matters: an incremental schedule needs the window, and the window cannot go before the schedule.
    """
    name = {"DataSetId": wanted.id}
    there = await _schedules(service, wanted.id)
    for id_ in sorted(there.keys() - wanted.refreshes.keys()):
        await service.call("delete_refresh_schedule", **name, ScheduleId=id_)
    if wanted.lookback is not None:
        await service.call(
            "put_data_set_refresh_properties", **name, DataSetRefreshProperties=wanted.lookback
        )
    for id_, schedule in wanted.refreshes.items():
        content = {"ScheduleId": id_, **schedule}
        if id_ not in there:
            await service.call("create_refresh_schedule", **name, Schedule=content)
        elif any(there[id_].get(key) != value for key, value in schedule.items()):
            await service.call("update_refresh_schedule", **name, Schedule=content)
    if wanted.lookback is None and wanted.refreshes:
        await service.maybe("delete_data_set_refresh_properties", **name)


async def _schedules(service: Service, data_set: str) -> dict[str, dict[str, Any]]:
    answer = await service.maybe("list_refresh_schedules", DataSetId=data_set) or {}
    found = {each["ScheduleId"]: each for each in answer.get("RefreshSchedules", ())}
    return {id_: each for id_, each in found.items() if id_.startswith(_OURS)}
