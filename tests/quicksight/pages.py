"""Topic pages, and what they are in QuickSight, without a service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from streamproc.quicksight.resources import Kind, Place, Resource, resources
from streamproc.settings import read_settings
from streamproc.topic_pages import load_page
from streamproc.topology import Topology

SHIPPED = sorted((Path(__file__).parents[2] / "topics").glob("*.toml"))
ACCOUNT = "012345678901"
SECRET = f"arn:aws:secretsmanager:eu-central-1:{ACCOUNT}:secret:tables-AbCdEf"

ENVIRONMENT = {
    "STREAMPROC_QUICKSIGHT_SUMMARIES": "rds://tables/clicks",
    "STREAMPROC_QUICKSIGHT_SUMMARIES_SECRET": SECRET,
    "STREAMPROC_QUICKSIGHT_WAREHOUSE": "redshift-cluster://events/clicks",
    "STREAMPROC_QUICKSIGHT_WAREHOUSE_SECRET": SECRET,
}


@cache
def shipped(name: str = "clickstream") -> Topology:
    return load_page(next(path for path in SHIPPED if path.stem == name))


def made(page: Topology, **environment: str) -> list[Resource]:
    return resources(page, read_settings(environ=ENVIRONMENT | environment), Place(ACCOUNT, "eu-central-1"))


def definition_of(page: Topology) -> dict[str, Any]:
    """The dashboard, as it arrives at the service: a tree of its own."""
    (dashboard,) = (each for each in made(page) if each.kind is Kind.DASHBOARD)
    definition: dict[str, Any] = json.loads(json.dumps(dashboard.request["Definition"]))
    return definition


def columns_of(page: Topology) -> dict[str, dict[str, str]]:
    """By the id of the data set: names and types."""
    return {
        each.id: {
            column["Name"]: column["Type"]
            for column in each.request["PhysicalTableMap"]["query"]["CustomSql"]["Columns"]
        }
        for each in made(page)
        if each.kind is Kind.DATA_SET
    }


def visuals_of(definition: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Sheet, kind and content of every visual."""
    for sheet in definition["Sheets"]:
        for visual in sheet["Visuals"]:
            ((kind, content),) = visual.items()
            yield sheet["SheetId"], kind, content


def measures_of(content: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Data set, column and aggregation of every measure of a visual."""

    def walk(tree: Any) -> Iterator[dict[str, Any]]:
        if isinstance(tree, dict):
            if "AggregationFunction" in tree:
                yield tree
            for inner in tree.values():
                yield from walk(inner)
        elif isinstance(tree, list):
            for inner in tree:
                yield from walk(inner)

    for field in walk(content["ChartConfiguration"]["FieldWells"]):
        how = field["AggregationFunction"]
        name = how if isinstance(how, str) else how["SimpleNumericalAggregation"]
        yield field["Column"]["DataSetIdentifier"], field["Column"]["ColumnName"], name
