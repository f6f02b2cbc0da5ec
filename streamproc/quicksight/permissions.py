"""Who may do what with what is published.

QuickSight takes lists of actions, and its console knows only these: owner or viewer of each kind
(https://docs.aws.amazon.com/quicksight/latest/APIReference/API_ResourcePermission.html and the user guide's "Sharing").
"""

from __future__ import annotations

from collections.abc import Mapping

from streamproc.settings import QuickSight

#: Principal → actions.
Grants = Mapping[str, frozenset[str]]

_VIEWERS = {
    "datasource": "",
    "dataset": "",
    "dashboard": "DescribeDashboard ListDashboardVersions QueryDashboard",
}

_OWNERS = {
    "datasource": "DescribeDataSource DescribeDataSourcePermissions PassDataSource UpdateDataSource"
    " DeleteDataSource UpdateDataSourcePermissions",
    "dataset": "DescribeDataSet DescribeDataSetPermissions PassDataSet DescribeIngestion ListIngestions"
    " UpdateDataSet DeleteDataSet CreateIngestion CancelIngestion UpdateDataSetPermissions"
    " PutDataSetRefreshProperties DescribeDataSetRefreshProperties DeleteDataSetRefreshProperties"
    " CreateRefreshSchedule DescribeRefreshSchedule ListRefreshSchedules UpdateRefreshSchedule"
    " DeleteRefreshSchedule",
    "dashboard": "DescribeDashboard ListDashboardVersions QueryDashboard UpdateDashboard DeleteDashboard"
    " UpdateDashboardPermissions DescribeDashboardPermissions UpdateDashboardPublishedVersion",
}


def granted(kind: str, asked: QuickSight) -> Grants | None:
    """What the settings say of a kind; ``None`` when they name nobody, which leaves all as it is."""
    if asked.owners is None and asked.viewers is None:
        return None
    viewers = {principal: _actions(_VIEWERS[kind]) for principal in asked.viewers or ()}
    owners = {principal: _actions(_OWNERS[kind]) for principal in asked.owners or ()}
    return {principal: actions for principal, actions in {**viewers, **owners}.items() if actions}


def _actions(words: str) -> frozenset[str]:
    return frozenset(f"quicksight:{word}" for word in words.split())
