"""The dashboard of a stream, as QuickSight's API wants it.

``From`` and ``To`` are parameters that all sheets share but Realtime, which shows the newest windows and the events
of the last hour. Shapes: https://docs.aws.amazon.com/quicksight/latest/APIReference/API_DashboardVersionDefinition.html
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from streamproc.quicksight.data_sets import DataSet
from streamproc.quicksight.sheets import Sheet, sheets
from streamproc.quicksight.visuals import Json, identifier

#: Days that are shown until somebody chooses others.
_DAYS = 7

#: Minutes of events on the sheet Realtime.
_MINUTES = 60

#: The column by which a whole sheet can be restricted to one site.
_SITE = "host"


def definition(data_sets: Sequence[DataSet], arn: Callable[[DataSet], str]) -> Json:
    """The dashboard's ``Definition``; ``arn`` tells a data set's. Empty sheets are left out, maybe all."""
    made = sheets(data_sets)
    used = {data.identifier: data for sheet in made for data in sheet.data.values()}
    return {
        "DataSetIdentifierDeclarations": [
            {"Identifier": name, "DataSetArn": arn(data)} for name, data in used.items()
        ],
        "Sheets": [_sheet(sheet) for sheet in made],
        "ParameterDeclarations": [
            _moment("From", f"addDateTime(-{_DAYS}, 'DD', truncDate('DD', now()))"),
            _moment("To", "truncDate('DD', now())"),
        ],
        "FilterGroups": [
            *(group for data in used.values() for group in _times(data, made)),
            *(group for sheet in made for group in _sites(sheet)),
        ],
        "AnalysisDefaults": {
            "DefaultNewSheetConfiguration": {
                "InteractiveLayoutConfiguration": {"Grid": {"CanvasSizeOptions": _CANVAS}},
                "SheetContentType": "INTERACTIVE",
            }
        },
        "Options": {"Timezone": "UTC", "WeekStart": "MONDAY"},
    }


_CANVAS = {"ScreenCanvasSizeOptions": {"ResizeOption": "FIXED", "OptimizedViewPortWidth": "1600px"}}


def _sheet(sheet: Sheet) -> Json:
    content: Json = {
        "SheetId": sheet.id,
        "Name": sheet.name,
        "ContentType": "INTERACTIVE",
        "Visuals": [each.visual for each in sheet.elements],
        "Layouts": [
            {"Configuration": {"GridLayout": {"Elements": sheet.layout(), "CanvasSizeOptions": _CANVAS}}}
        ],
    }
    controls = []
    if any(_ranged(data) for data in sheet.data.values()):
        content["ParameterControls"] = [_picker(sheet, name) for name in ("From", "To")]
        controls += [(f"{sheet.id}-{name.lower()}", "PARAMETER_CONTROL") for name in ("From", "To")]
    if _with_site(sheet):
        content["FilterControls"] = [
            {
                "Dropdown": {
                    "FilterControlId": f"{sheet.id}-site-control",
                    "Title": "Host",
                    "SourceFilterId": f"{sheet.id}-site",
                    "Type": "MULTI_SELECT",
                }
            }
        ]
        controls.append((f"{sheet.id}-site-control", "FILTER_CONTROL"))
    if controls:
        elements = [
            {"ElementId": id_, "ElementType": type_, "ColumnSpan": 2, "RowSpan": 1} for id_, type_ in controls
        ]
        content["SheetControlLayouts"] = [{"Configuration": {"GridLayout": {"Elements": elements}}}]
    return content


def _picker(sheet: Sheet, name: str) -> Json:
    return {
        "DateTimePicker": {
            "ParameterControlId": f"{sheet.id}-{name.lower()}",
            "Title": name,
            "SourceParameterName": name,
        }
    }


def _moment(name: str, expression: str) -> Json:
    return {
        "DateTimeParameterDeclaration": {
            "Name": name,
            "DefaultValues": {"RollingDate": {"Expression": expression}},
            "TimeGranularity": "DAY",
        }
    }


def _ranged(data: DataSet) -> bool:
    """Whether From and To apply."""
    return data.kind not in {"hops", "events"}


def _times(data: DataSet, made: Sequence[Sheet]) -> list[Json]:
    """The filter by time of a data set, on all sheets that show it."""
    if data.kind == "hops":
        return []  # its query has the bounds
    shared = {"FilterId": f"time-{data.key}", "Column": identifier(data, data.time)}
    if data.kind == "events":
        by_time: Json = {
            "RelativeDatesFilter": {
                **shared,
                "AnchorDateConfiguration": {"AnchorOption": "NOW"},
                "TimeGranularity": "MINUTE",
                "RelativeDateType": "LAST",
                "RelativeDateValue": _MINUTES,
                "NullOption": "NON_NULLS_ONLY",
            }
        }
    else:
        by_time = {
            "TimeRangeFilter": {
                **shared,
                "RangeMinimumValue": {"Parameter": "From"},
                "RangeMaximumValue": {"Parameter": "To"},
                "IncludeMinimum": True,
                "IncludeMaximum": True,  # the whole day, because of the granularity
                "TimeGranularity": "DAY",
                "NullOption": "NON_NULLS_ONLY",
            }
        }
    on = [sheet for sheet in made if data.identifier in sheet.data]
    return [_group(f"time-{data.key}-group", by_time, on, "SINGLE_DATASET")]


def _with_site(sheet: Sheet) -> list[DataSet]:
    """The data sets of a sheet that know sites; a funnel's and a session's is that of the first event."""
    return [each for each in sheet.data.values() if _SITE in each.named and each.named[_SITE].dimension]


def _sites(sheet: Sheet) -> list[Json]:
    """One filter by host for all data sets of a sheet that have it."""
    known = _with_site(sheet)
    if not known:
        return []
    by_site: Json = {
        "CategoryFilter": {
            "FilterId": f"{sheet.id}-site",
            "Column": identifier(known[0], _SITE),
            "Configuration": {
                "FilterListConfiguration": {
                    "MatchOperator": "CONTAINS",
                    "SelectAllOptions": "FILTER_ALL_VALUES",
                }
            },
        }
    }
    return [_group(f"{sheet.id}-site-group", by_site, [sheet], "ALL_DATASETS")]


def _group(id_: str, filter_: Json, on: Sequence[Sheet], across: str) -> Json:
    return {
        "FilterGroupId": id_,
        "Filters": [filter_],
        "ScopeConfiguration": {
            "SelectedSheets": {
                "SheetVisualScopingConfigurations": [
                    {"SheetId": sheet.id, "Scope": "ALL_VISUALS"} for sheet in on
                ]
            }
        },
        "Status": "ENABLED",
        "CrossDataset": across,
    }
