"""Looks at requests the way the service will, before it is asked.

Two things: whether a request has the shape that the service's own model says (botocore checks types and required
members and leaves out the rest), and whether a dashboard makes sense: QuickSight finds a column that is not there only
when it builds the dashboard, minutes later.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import botocore.session
from botocore.validate import ParamValidator

from streamproc.errors import ConfigError, Mistake
from streamproc.quicksight.resources import Kind, Resource

_OPERATIONS = {
    Kind.DATA_SOURCE: "CreateDataSource",
    Kind.DATA_SET: "CreateDataSet",
    Kind.DASHBOARD: "CreateDashboard",
}

#: Which types of column a field takes.
_NUMBERS = frozenset({"INTEGER", "DECIMAL"})
_TAKES: Mapping[str, frozenset[str]] = {
    "NumericalMeasureField": _NUMBERS,
    "NumericalDimensionField": _NUMBERS,
    "CategoricalMeasureField": frozenset({"STRING"}),
    "CategoricalDimensionField": frozenset({"STRING"}),
    "DateDimensionField": frozenset({"DATETIME"}),
    "TimeRangeFilter": frozenset({"DATETIME"}),
    "RelativeDatesFilter": frozenset({"DATETIME"}),
    "CategoryFilter": frozenset({"STRING"}),
}


def check(resources: Sequence[Resource], account: str) -> None:
    """Raise :class:`ConfigError` with everything the service would refuse.

    The limits are reached by pages with very many tables; anything else is a mistake of ours.
    """
    mistakes = []
    columns = {each.id: _output(each.request) for each in resources if each.kind is Kind.DATA_SET}
    for each in resources:
        arguments = {"AwsAccountId": account, **each.request}
        problems = [*shape_problems(_OPERATIONS[each.kind], arguments)]
        if each.kind is Kind.DASHBOARD and not problems:
            problems += definition_problems(each.request["Definition"], columns)
        fix = "Spread the page's tables over several streams, or report it"
        mistakes += [Mistake(str(each), problem, fix) for problem in problems]
    if mistakes:
        raise ConfigError(mistakes)


@cache
def _model() -> Any:
    return botocore.session.get_session().get_service_model("quicksight")


def shape_problems(operation: str, arguments: Mapping[str, Any]) -> Iterator[str]:
    """How the arguments of an operation differ from the service's model."""
    shape = _model().operation_model(operation).input_shape
    report = ParamValidator().validate(arguments, shape)
    if report.has_errors():
        yield from report.generate_report().splitlines()
    else:
        yield from _limits(shape, arguments, operation)


def _limits(shape: Any, value: Any, path: str) -> Iterator[str]:
    """What botocore's validator does not look at: upper bounds, enumerations and patterns."""
    limits = shape.metadata
    size = value if isinstance(value, int | float) else len(value) if hasattr(value, "__len__") else 0
    if "max" in limits and size > limits["max"]:
        yield f"{path} is {size}, at most {limits['max']} is possible"
    match shape.type_name:
        case "structure":
            for name, content in value.items():
                yield from _limits(shape.members[name], content, f"{path}.{name}")
        case "list":
            for number, content in enumerate(value):
                yield from _limits(shape.member, content, f"{path}[{number}]")
        case "map":
            for key, content in value.items():
                yield from _limits(shape.key, key, f"{path}.{key}")
                yield from _limits(shape.value, content, f"{path}.{key}")
        case "string":
            if limits.get("enum") and value not in limits["enum"]:
                yield f"{path} is {value}, which is none of {', '.join(limits['enum'])}"
            # Patterns of Java's; those that Python does not read belong to members that we do not send.
            pattern = limits.get("pattern", "")
            if pattern and "\\p{" not in pattern and not re.fullmatch(pattern, value, re.ASCII):
                yield f"{path} is {value}, which is not of the form {pattern}"


def _output(request: Mapping[str, Any]) -> dict[str, str]:
    """The columns of a data set and their types."""
    (table,) = request["PhysicalTableMap"].values()
    return {each["Name"]: each["Type"] for each in table["CustomSql"]["Columns"]}


def definition_problems(
    definition: Mapping[str, Any], columns: Mapping[str, Mapping[str, str]]
) -> Iterator[str]:
    """What is wrong within a dashboard. ``columns``: by the id of the data set, names and types."""
    known = {
        each["Identifier"]: columns.get(each["DataSetArn"].rpartition("/")[2], {})
        for each in definition["DataSetIdentifierDeclarations"]
    }
    for member, content in _members(definition):
        if isinstance(content, Mapping) and "Column" in content:
            yield from _column_problems(member, content["Column"], known)
    yield from _reference_problems(definition)


def _column_problems(
    member: str, column: Mapping[str, str], known: Mapping[str, Mapping[str, str]]
) -> Iterator[str]:
    data, name = column["DataSetIdentifier"], column["ColumnName"]
    if data not in known:
        yield f"{member} is of the data set {data}, which is not declared"
    elif name not in known[data]:
        yield f"{member} is of the column {name}, which {data} has not"
    elif member in _TAKES and known[data][name] not in _TAKES[member]:
        yield f"{member} is of the column {name} of {data}, which is {known[data][name]}"


def _reference_problems(definition: Mapping[str, Any]) -> Iterator[str]:
    """Ids that stand twice, and names of what is not there."""
    yield from _twice("SheetId", (sheet["SheetId"] for sheet in definition["Sheets"]))
    for key in ("VisualId", "FilterId", "FilterGroupId", "FilterControlId", "ParameterControlId"):
        yield from _twice(key, _values(definition, key))
    filters = set(_values(definition, "FilterId"))
    parameters = {
        content["Name"] for member, content in _members(definition) if member.endswith("ParameterDeclaration")
    }
    sheets = {sheet["SheetId"] for sheet in definition["Sheets"]}
    scoped = (
        each["SheetId"]
        for group in definition["FilterGroups"]
        for each in group["ScopeConfiguration"]["SelectedSheets"]["SheetVisualScopingConfigurations"]
    )
    yield from _missing("sheet", scoped, sheets)
    yield from _missing("filter", _values(definition, "SourceFilterId"), filters)
    yield from _missing("parameter", _values(definition, "SourceParameterName"), parameters)
    yield from _missing("parameter", _values(definition["FilterGroups"], "Parameter"), parameters)
    for sheet in definition["Sheets"]:
        keys = ("VisualId", "FilterControlId", "ParameterControlId")
        there = {id_ for key in keys for id_ in _values(sheet, key)}
        yield from _missing(f"element of the sheet {sheet['SheetId']}", _values(sheet, "ElementId"), there)
        for visual in sheet["Visuals"]:
            (content,) = visual.values()
            wells = content["ChartConfiguration"]["FieldWells"]
            fields = list(_values(wells, "FieldId"))
            yield from _twice("FieldId", fields)
            sort = content["ChartConfiguration"].get("SortConfiguration", {})
            yield from _missing("field", _values(sort, "FieldId"), set(fields))


def _twice(key: str, ids: Iterable[str]) -> Iterator[str]:
    for id_, count in Counter(ids).items():
        if count > 1:
            yield f"{key} {id_} stands {count} times"


def _missing(what: str, named: Iterable[str], there: set[str]) -> Iterator[str]:
    for name in sorted(set(named) - there):
        yield f"names the {what} {name}, which is not there"


def _values(tree: Any, key: str) -> Iterator[str]:
    return (content for member, content in _members(tree) if member == key)


def _members(tree: Any) -> Iterator[tuple[str, Any]]:
    """Every member of every structure in the tree."""
    if isinstance(tree, Mapping):
        for member, content in tree.items():
            yield member, content
            yield from _members(content)
    elif isinstance(tree, list):
        for content in tree:
            yield from _members(content)
