"""What a topic page gives: its data sets, its dashboard, and what is found wrong with them before the service is."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamproc.errors import ConfigError
from streamproc.quicksight.checks import check, definition_problems, shape_problems
from streamproc.quicksight.publishing import differing
from streamproc.quicksight.resources import Kind
from streamproc.quicksight.visuals import granularity
from streamproc.topic_pages import load_page, read_page
from streamproc.topology import DAY, HOUR, MINUTE, SECOND
from tests.quicksight.pages import (
    ACCOUNT,
    SHIPPED,
    columns_of,
    definition_of,
    made,
    measures_of,
    shipped,
    visuals_of,
)
from tests.support.quicksight_server import MODEL
from tests.support.quicksight_stub import QuickSightStub


@pytest.fixture(scope="module")
def clickstream() -> tuple[dict[str, Any], dict[str, dict[str, str]]]:
    """The definition of the shipped page's dashboard, and the columns of its data sets."""
    return definition_of(shipped()), columns_of(shipped())


BASE: dict[str, Any] = {
    "stream": {"name": "shop"},
    "contract": {
        "fields": {
            "time": {"type": "integer", "required": True},
            **{
                name: {"type": "string"}
                for name in ("visitor", "host", "path", "country", "utm_source", "kind")
            },
            "value": {"type": "number"},
            "size": {"type": "integer"},
            "extra": {"type": "json"},
        },
        "event_time": {"field": "time"},
    },
}

WINDOWS = [
    {"kind": "tumbling", "size": "1m"},
    {"kind": "tumbling", "size": "1d"},
    {"kind": "hopping", "size": "10s", "hop": "5s"},
    {"kind": "hopping", "size": "6h", "hop": "1h"},
]
MEASURES = [
    {"kind": "count"},
    {"kind": "sum", "column": "value"},
    {"kind": "sum", "column": "size"},
    {"kind": "min", "column": "size"},
    {"kind": "max", "column": "event_time"},
    {"kind": "avg", "column": "value"},
    {"kind": "first", "column": "path"},
    {"kind": "last", "column": "size"},
    {"kind": "distinct", "column": "visitor"},
    {"kind": "approx_distinct", "column": "visitor"},
    {"kind": "approx_percentile", "column": "value", "at": 0.5},
]
STEPS = [["seen", "kind = 'seen'"], ["bought", "kind = 'bought'"]]

measures = st.dictionaries(
    st.sampled_from(["events", "step", "duration", "host_name", "a", "b"]),
    st.sampled_from(MEASURES),
    min_size=1,
)
over_windows = st.fixed_dictionaries(
    {
        "window": st.sampled_from(WINDOWS),
        "by": st.lists(
            st.sampled_from(["host", "path", "country", "utm_source", "kind", "size"]), unique=True
        ),
        "measures": measures,
    }
)
over_sessions = st.fixed_dictionaries(
    {
        "window": st.just({"kind": "session", "key": "visitor"}),
        "measures": st.builds(
            lambda plain, funnel: plain | ({"steps": {"kind": "funnel", "steps": STEPS}} if funnel else {}),
            measures,
            st.booleans(),
        ),
    }
)
tables = st.dictionaries(
    st.sampled_from(["views", "warehouse", "events", "funnel", "t1", "t2"]), over_windows | over_sessions
)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_page_gives_what_the_service_would_take(path):
    page = load_page(path)
    check(made(page), ACCOUNT)
    assert {each.kind for each in made(page)} == set(Kind)


@given(tables)
@settings(max_examples=12)
def test_any_page_gives_what_the_service_would_take(found):
    page = read_page(BASE | {"tables": found}, "shop.toml")
    resources = made(page)
    check(resources, ACCOUNT)
    ids = [each.id for each in resources]
    assert len(ids) == len(set(ids))
    for name in found:
        assert f"streamproc-shop-table-{name}" in ids


@given(tables)
@settings(max_examples=5)
def test_every_visual_is_of_columns_that_are_there(found):
    """Found by text instead of by structure."""
    page = read_page(BASE | {"tables": found}, "shop.toml")
    definition, columns = definition_of(page), columns_of(page)
    arns = {d["Identifier"]: d["DataSetArn"] for d in definition["DataSetIdentifierDeclarations"]}
    pairs = re.findall(r"'DataSetIdentifier': '([^']*)', 'ColumnName': '([^']*)'", str(definition))
    assert pairs
    assert [p for p in pairs if p[1] not in columns[arns[p[0]].rpartition("/")[2]]] == []


def test_the_shipped_clickstream_has_all_sheets_and_every_table_is_on_one():
    definition = definition_of(shipped())
    assert [sheet["Name"] for sheet in definition["Sheets"]] == [
        "Overview",
        "Acquisition",
        "Content",
        "Audience",
        "Sessions and funnel",
        "Realtime",
    ]
    shown = {data for _, _, content in visuals_of(definition) for data, _, _ in measures_of(content)}
    tables = {table.name for table in shipped().tables} - {"checkout_funnel"}
    assert shown == tables | {"checkout_funnel checkout", "warehouse events"}


def test_every_kind_of_visual_is_used():
    kinds = {kind for _, kind, _ in visuals_of(definition_of(shipped()))}
    assert kinds == {
        "KPIVisual",
        "LineChartVisual",
        "BarChartVisual",
        "TableVisual",
        "FilledMapVisual",
        "FunnelChartVisual",
    }


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_distinct_counts_and_percentiles_are_never_added_up(path):
    page = load_page(path)
    kinds = {(table.name, m.name): m.kind for table in page.tables for m in table.measures}
    sessions = {table.name for table in page.tables if table.window.kind == "session"}
    for _, _, content in visuals_of(definition_of(page)):
        for data, column, how in measures_of(content):
            kind = kinds.get((data, column), "")
            if kind in {"distinct", "approx_distinct", "approx_percentile"}:
                assert how == ("AVERAGE" if data in sessions else "MAX"), (data, column)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_what_a_table_is_grouped_by_is_no_number_of_it(path):
    """A flag neither: over groups the average says nothing of the events, whatever is written beside it."""
    page = load_page(path)
    keys = {
        (table.name, name) for table in page.tables if table.window.kind != "session" for name in table.by
    }
    for _, _, content in visuals_of(definition_of(page)):
        assert keys.isdisjoint((data, column) for data, column, _ in measures_of(content))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_overlapping_windows_are_added_up_only_within_one_window(path):
    page = load_page(path)
    hopping = {table.name for table in page.tables if table.window.kind == "hopping"}
    for _, kind, content in visuals_of(definition_of(page)):
        for data, _, how in measures_of(content):
            if data in hopping and how == "SUM":
                wells = str(content["ChartConfiguration"]["FieldWells"])
                assert kind in {"KPIVisual", "LineChartVisual"} and "'DateGranularity': 'MINUTE'" in wells


@pytest.mark.parametrize(
    ("step", "unit"),
    [
        (DAY, "DAY"),
        (6 * HOUR, "HOUR"),
        (5 * MINUTE, "MINUTE"),
        (90 * SECOND, "SECOND"),
        (1500, "MILLISECOND"),
    ],
)
def test_windows_are_kept_apart_by_the_coarsest_unit_that_does(step, unit):
    assert granularity(step) == unit


def test_countries_are_places_and_measures_are_described():
    (audience,) = (each for each in made(shipped()) if each.id.endswith("table-audience"))
    tags = {
        each["TagColumnOperation"]["ColumnName"]: each["TagColumnOperation"]["Tags"]
        for each in audience.request["LogicalTableMap"]["table"]["DataTransforms"]
    }
    assert tags["country"] == [{"ColumnGeographicRole": "COUNTRY"}]
    assert tags["revenue"] == [{"ColumnDescription": {"Text": "Sum of value, where event_type = 'purchase'"}}]


def test_ids_do_not_change_when_a_table_is_added():
    page = read_page(
        BASE | {"tables": {"views": {"window": WINDOWS[0], "measures": {"n": MEASURES[0]}}}}, "x"
    )
    more = {"now": {"window": WINDOWS[2], "measures": {"n": MEASURES[0]}}}
    larger = read_page(
        BASE | {"tables": {"views": {"window": WINDOWS[0], "measures": {"n": MEASURES[0]}}, **more}}, "x"
    )
    assert {each.id for each in made(page)} < {each.id for each in made(larger)}
    same = {each.id: each.fingerprint for each in made(page) if each.kind is not Kind.DASHBOARD}
    assert same.items() <= {each.id: each.fingerprint for each in made(larger)}.items()


def test_a_stream_without_tables_and_without_a_warehouse_is_nothing():
    page = read_page(BASE, "shop.toml")
    assert made(page, STREAMPROC_QUICKSIGHT_WAREHOUSE="none") == []


def test_a_page_with_more_tables_than_a_dashboard_takes_is_refused():
    tables = {
        f"t{n}": {"window": WINDOWS[0], "by": ["host"], "measures": {"n": MEASURES[0]}} for n in range(51)
    }
    with pytest.raises(ConfigError, match="at most 50"):
        check(made(read_page(BASE | {"tables": tables}, "shop.toml")), ACCOUNT)


def test_a_page_with_many_tables_has_further_sheets():
    tables = {
        f"t{n}": {"window": WINDOWS[0], "by": ["path"], "measures": {"n": MEASURES[0]}} for n in range(40)
    }
    page = read_page(BASE | {"tables": tables}, "shop.toml")
    check(made(page), ACCOUNT)
    names = [(sheet["Name"], len(sheet["Visuals"])) for sheet in definition_of(page)["Sheets"]]
    # On the overview a line of each table and a number of the first; then a line, a bar chart and a table of each.
    assert names == [
        ("Overview", 41),
        ("Content 1", 50),
        ("Content 2", 50),
        ("Content 3", 20),
        ("Realtime", 1),
    ]


def first(definition: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(content for _, found, content in visuals_of(definition) if found == kind)


def wells(definition: dict[str, Any], kind: str) -> dict[str, Any]:
    (found,) = first(definition, kind)["ChartConfiguration"]["FieldWells"].values()
    assert isinstance(found, dict)
    return found


def unknown_column(d: dict[str, Any]) -> None:
    wells(d, "BarChartVisual")["Category"][0]["CategoricalDimensionField"]["Column"]["ColumnName"] = "nowhere"


def undeclared_data_set(d: dict[str, Any]) -> None:
    d["DataSetIdentifierDeclarations"] = d["DataSetIdentifierDeclarations"][1:]


def text_over_time(d: dict[str, Any]) -> None:
    wells(d, "LineChartVisual")["Category"][0]["DateDimensionField"]["Column"]["ColumnName"] = "visitor_id"


def text_added_up(d: dict[str, Any]) -> None:
    wells(d, "TableVisual")["Values"][0]["NumericalMeasureField"]["Column"]["ColumnName"] = "host"


def visual_twice(d: dict[str, Any]) -> None:
    d["Sheets"][0]["Visuals"].append(d["Sheets"][0]["Visuals"][0])


def sheet_twice(d: dict[str, Any]) -> None:
    d["Sheets"][1]["SheetId"] = d["Sheets"][0]["SheetId"]


def element_of_nothing(d: dict[str, Any]) -> None:
    d["Sheets"][0]["Layouts"][0]["Configuration"]["GridLayout"]["Elements"][0]["ElementId"] = "gone"


def control_of_nothing(d: dict[str, Any]) -> None:
    d["Sheets"][1]["FilterControls"][0]["Dropdown"]["SourceFilterId"] = "gone"


def parameter_of_nothing(d: dict[str, Any]) -> None:
    d["ParameterDeclarations"] = d["ParameterDeclarations"][1:]


def filter_of_nothing(d: dict[str, Any]) -> None:
    scope = d["FilterGroups"][0]["ScopeConfiguration"]["SelectedSheets"]["SheetVisualScopingConfigurations"]
    scope[0]["SheetId"] = "gone"


def sorted_by_nothing(d: dict[str, Any]) -> None:
    sort = first(d, "BarChartVisual")["ChartConfiguration"]["SortConfiguration"]
    sort["CategorySort"][0]["FieldSort"]["FieldId"] = "gone"


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (unknown_column, "the column nowhere, which traffic_sources has not"),
        (undeclared_data_set, "which is not declared"),
        (text_over_time, "DateDimensionField is of the column visitor_id of sessions, which is STRING"),
        (text_added_up, "NumericalMeasureField is of the column host of traffic_sources, which is STRING"),
        (visual_twice, "VisualId overview-table-sessions-visitor_id-count stands 2 times"),
        (sheet_twice, "SheetId overview stands 2 times"),
        (element_of_nothing, "names the element of the sheet overview gone"),
        (control_of_nothing, "names the filter gone"),
        (parameter_of_nothing, "names the parameter From"),
        (filter_of_nothing, "names the sheet gone"),
        (sorted_by_nothing, "names the field gone"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_the_service_would_find_only_while_it_builds_a_dashboard_is_found_before(
    spoil, told, clickstream
):
    definition, columns = deepcopy(clickstream[0]), clickstream[1]
    assert list(definition_problems(definition, columns)) == []
    spoil(definition)
    assert told in "\n".join(definition_problems(definition, columns))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "Missing required parameter"),
        ({"AwsAccountId": "1", "DataSetId": "a", "IngestionId": "b"}, "valid min length: 12"),
        ({"AwsAccountId": ACCOUNT + "2", "DataSetId": "a", "IngestionId": "b"}, "at most 12"),
        ({"AwsAccountId": ACCOUNT, "DataSetId": "a", "IngestionId": "b c"}, "not of the form"),
        (
            {"AwsAccountId": ACCOUNT, "DataSetId": "a", "IngestionId": "b", "IngestionType": "ALL"},
            "is none of",
        ),
    ],
)
def test_requests_are_held_against_all_that_the_service_s_model_says(arguments, told):
    assert told in "\n".join(shape_problems("CreateIngestion", arguments))


def test_a_difference_is_named_by_what_it_is_in():
    wanted = {"a": {"x": 1}, "s": [{"Name": "one", "v": 1}, {"Name": "new", "v": 1}], "l": [1, 2]}
    there = {"a": {"x": 2, "filled": 3}, "s": [{"Name": "gone"}, {"Name": "one", "v": 2, "w": 3}], "l": [1]}
    assert differing(wanted, there) == ["a.x", "s[gone] goes", "s[one].v", "s[new] is new", "l"]
    assert differing(wanted, wanted | {"filled": 1}) == []


def test_the_documented_policy_allows_every_operation_that_is_used():
    """The stand-in has those operations and no others, and the tests of publishing run on it."""
    text = (Path(__file__).parents[2] / "docs" / "quicksight.md").read_text()
    (block,) = re.findall(r"^```json\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (statement,) = json.loads(block)["Statement"]
    used = {name for name in MODEL.operation_names if hasattr(QuickSightStub, f"_{name}")}
    # What a data set or a dashboard is built on has to be passed to it; no operation is called so.
    assert set(statement["Action"]) == {
        f"quicksight:{name}" for name in used | {"PassDataSource", "PassDataSet"}
    }
